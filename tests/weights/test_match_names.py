"""Foreign names for our networks: matched where they tell, else refused."""

import functools
import itertools
import json
import random
import re
import time

import haiku as hk
import jax
import jax.numpy as jnp
import pytest

from semppl_jax.errors import CheckpointError
from semppl_jax.models import encoders
from semppl_jax.weights import match_names

ROOT = 'sk_res_net50/~/'
STEM = ('initial_conv_1', 'initial_conv_2', 'initial_batchnorm_0')


@functools.cache
def _init(architecture):
  bn = {'create_scale': True, 'create_offset': True, 'decay_rate': 0.9}
  init = hk.transform_with_state(
    lambda x: encoders.ResNet(architecture, bn)(x, True)
  ).init
  images = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32)
  return jax.eval_shape(init, jax.random.key(0), images)[0]


def tree(encoder='resnet50', width=1, selective_kernels=True):
  """Our shapes, {module: {leaf: shape}}."""
  architecture = encoders.Architecture(
    encoder, width, selective_kernels=selective_kernels
  )
  return {
    module: {name: x.shape for name, x in leaves.items()}
    for module, leaves in _init(architecture).items()
  }


def renamed(shapes, rename):
  """The tree under other names, shuffled, and the mapping back to ours."""
  mapping = {rename(module): module for module in shapes}
  assert len(mapping) == len(shapes)
  names = sorted(mapping)
  random.Random(0).shuffle(names)
  return {name: shapes[mapping[name]] for name in names}, mapping


def scheme(*rules):
  """Renames by regular expressions, one after the other."""

  def rename(module):
    for pattern, to in rules:
      module = re.sub(pattern, to, module)
    return module

  return rename


def plus_one(text):
  """A replacement: `text` with {} for each number of the match, plus one."""
  return lambda match: text.format(*(int(x) + 1 for x in match.groups()))


def haikus(text):
  """A replacement: names as Haiku gives them, the first without a number."""

  def replace(match):
    *before, last = match.groups()
    return text.format(*before) + ('' if last == '0' else f'_{last}')

  return replace


OTHER_ROOT = scheme(('^sk_res_net50', 'resnet'))
NESTED = scheme(
  ('^sk_res_net50', 'res_net_sk'),
  (r'block_group_(\d+)/~/block_(\d+)', r'stages/~/stage_\1/~/unit_\2/~/inner'),
  ('sk_conv/~/conv', 'selective_kernel/~/split/~/conv2_d'),
  ('sk_conv/~/batchnorm', 'selective_kernel/~/split/~/batch_norm'),
  ('sk_conv/~/(squeeze|mix)_(conv|batchnorm)', r'selective_kernel/~/\1/~/\2'),
  ('shortcut_(conv|batchnorm)', r'projection/~/\1'),
)
# Blocks numbered through, by Haiku's own names; no '~'.
STARTS = [0, *itertools.accumulate((3, 4, 6, 3))]
NUMBERED = scheme(
  (
    r'block_group_(\d+)/~/block_(\d+)',
    lambda m: haikus('block{}')(
      re.match('()(.*)', str(STARTS[int(m[1])] + int(m[2])))
    ),
  ),
  ('/~/', '/'),
)
OTHER_UNITS = scheme(
  ('sk_conv/~/conv', 'sk/dense_conv'),
  ('sk_conv/~/batchnorm', 'bn_sk'),
  ('sk_conv/~/squeeze_conv', 'fc_0'),
  ('sk_conv/~/squeeze_batchnorm', 'bn_fc'),
  ('sk_conv/~/mix_conv', 'fc_1'),
  ('shortcut', 'proj'),
)
# Inside a block, modules numbered as they are made, the shortcut first.
_FLAT = ('conv_0', 'sk_conv/~/conv', 'squeeze_conv', 'mix_conv', 'conv_2')
_NORMS = ('batchnorm_0', '~/batchnorm', 'squeeze_batchnorm', 'batchnorm_2')


def flat(shortcut):
  """Modules numbered inside the block; `shortcut` names its two, with {}."""

  def rename(module):
    block = re.match(r'(.*/block_\d+)/~/(.*)', module)
    if not block:
      return module.replace('initial_', 'stem_')
    folder, name = block.groups()
    if name.startswith('shortcut'):
      return f'{folder}/~/{shortcut.format(name.split("_")[1])}'
    kind, order = 'conv', _FLAT
    if 'batchnorm' in name:
      kind, order = 'batchnorm', _NORMS
    number = [n for n, end in enumerate(order) if name.endswith(end)][-1]
    return f'{folder}/~/{kind}_{number + 1}'

  return rename


# The shortcut at its group, beside the blocks.
HOISTED = scheme(
  ('/~/block_0/~/shortcut', '/~/skip'), ('^sk_res_net50', 'resnet')
)
# The stem's first two BatchNorms counted from 1, over our second's name.
FROM_ONE = scheme(
  (r'initial_(conv|batchnorm)_(\d)', lambda m: f'{m[1]}_{int(m[2]) + 1}'),
  (r'block_group_(\d+)/~/block_(\d+)', plus_one('group{}/block{}')),
)


@pytest.mark.parametrize(
  'rename',
  (
    OTHER_ROOT,
    NESTED,
    NUMBERED,
    OTHER_UNITS,
    flat('shortcut_{}'),
    flat('downsample/{}'),
    flat('{}_skip_0'),
    HOISTED,
    FROM_ONE,
  ),
)
def test_other_names_are_matched(rename):
  theirs, mapping = renamed(tree(), rename)
  assert match_names.match(theirs, tree()) == mapping
  # Whatever the order of either tree.
  ordered = dict(sorted(theirs.items()))
  backwards = dict(reversed(tree().items()))
  assert match_names.match(ordered, backwards) == mapping


@pytest.mark.long
def test_large_networks_are_matched_at_once():
  ours = tree('resnet200', 2)
  theirs, mapping = renamed(ours, NESTED)
  start = time.perf_counter()
  assert match_names.match(theirs, ours) == mapping
  assert time.perf_counter() - start < 1


def test_plain_networks_are_matched():
  for encoder in ('resnet50', 'resnet18'):
    ours = tree(encoder, 1, False)
    theirs, mapping = renamed(
      ours, scheme(('^res', 'x/res'), ('batchnorm', 'bn'), ('block_', 'b_'))
    )
    assert match_names.match(theirs, ours) == mapping


def test_the_first_blocks_shortcut_is_not_guessed():
  # All numbered alike: which of the two of equal shape is the shortcut's?
  for shortcut in ('{}_0', '{}_6'):
    theirs, mapping = renamed(tree(), flat(shortcut))
    with pytest.raises(
      CheckpointError, match='a mapping file decides'
    ) as error:
      match_names.match(theirs, tree())
    named = re.findall(r"'(\S+/\S+)'", str(error.value))
    shapes = [theirs[name] for name in named[:2]]
    shapes += [tree()[name] for name in named[2:]]
    assert shapes == shapes[:1] * 4
    assert {mapping[name] for name in named[:2]} == set(named[2:])
    assert '\n' not in str(error.value)


def test_one_equal_name_proves_nothing():
  # Here batchnorm_2 is the shortcut's, made last: not our batchnorm_2.
  rename = scheme(
    ('/batchnorm_2', '/batchnorm_1'), ('shortcut_batchnorm', 'batchnorm_2')
  )
  theirs, _ = renamed(tree(), rename)
  with pytest.raises(CheckpointError, match='batchnorm_1.*batchnorm_2'):
    match_names.match(theirs, tree())


def test_blocks_without_numbers_are_not_guessed():
  letters = scheme(
    (r'block_(\d)(?=/~/[a-z])', lambda m: 'block_' + 'abcdef'[int(m[1])])
  )
  theirs, _ = renamed(tree(), letters)
  with pytest.raises(CheckpointError, match='block_b.*block_c'):
    match_names.match(theirs, tree())


def test_two_numberings_that_agree_are_not_guessed():
  # block_1 and block_01 count alike.
  theirs, _ = renamed(
    tree(), scheme(('block_group_0/~/block_2', 'block_group_0/~/block_01'))
  )
  with pytest.raises(CheckpointError, match='block_01'):
    match_names.match(theirs, tree())


@pytest.mark.parametrize(
  'theirs, lacking, excess',
  (
    (('resnet50', 2), 'w (1, 1, 64, 64)', 'w (1, 1, 128, 128)'),
    (('resnet50', 1, False), 'w (3, 3, 64, 128)', 'w (3, 3, 64, 64)'),
    (('resnet101',), None, 'w (1, 1, 256, 1024)'),
  ),
)
def test_other_architectures_are_refused(theirs, lacking, excess):
  with pytest.raises(CheckpointError) as error:
    match_names.match(tree(*theirs), tree())
  message = str(error.value)
  assert f'has in excess {excess}' in message
  assert ('lacks' in message) == bool(lacking)
  assert f'lacks {lacking}' in message or not lacking
  assert '\n' not in message


def test_explanation_is_short_and_complete():
  _, mapping = renamed(tree(), NESTED)
  lines = match_names.explain(mapping).splitlines()
  assert len(lines) == 17  # 6 of the stem, 2 of the shortcut, 9 of blocks
  assert f'res_net_sk/~/{STEM[0]} -> {ROOT}{STEM[0]}' in lines
  unit = '/~/stage_*/~/unit_*/~/inner/~/selective_kernel/~/mix/~/conv'
  ours = 'sk_res_net50/~/block_group_*/~/block_*/~/sk_conv/~/mix_conv'
  assert f'res_net_sk/~/stages{unit} -> {ours} (16 times)' in lines


def write(folder, content):
  path = folder / 'names.json'
  path.write_text(content if isinstance(content, str) else json.dumps(content))
  return str(path)


def test_mapping_file_decides(tmp_path):
  theirs, mapping = renamed(tree(), flat('{}_0'))
  path = write(tmp_path, mapping)
  assert match_names.from_file(path, theirs, tree()) == mapping


@pytest.mark.parametrize(
  'content, words',
  (
    ('{', ('not JSON',)),
    ('["a"]', ('JSON object of strings',)),
    ('{"a": 1}', ('JSON object of strings',)),
    ('{"a": "b", "a": "c"}', ("'a' is mapped 2 times",)),
    (
      {'net/~/initial_conv1': ROOT + STEM[0]},
      ('the checkpoint has no', "did you mean 'net/~/initial_conv_1'?"),
    ),
    (
      {f'net/~/{STEM[0]}': ROOT + 'initial_conv1'},
      ('our network has no', f'did you mean {ROOT + STEM[0]!r}?'),
    ),
    (
      {f'net/~/{STEM[0]}': ROOT + STEM[1]},
      ('expected w (3, 3, 32, 64), found w (3, 3, 32, 32)', STEM[1]),
    ),
    (
      {
        f'net/~/{STEM[2]}': ROOT + STEM[2],
        'net/~/initial_batchnorm_1': ROOT + STEM[2],
      },
      ('2 modules become', STEM[2]),
    ),
    ({}, ('158 modules of the checkpoint are missing', 'the first is')),
  ),
)
def test_wrong_mapping_files_are_refused(tmp_path, content, words):
  theirs, _ = renamed(tree(), scheme(('^sk_res_net50', 'net')))
  path = write(tmp_path, content)
  with pytest.raises(CheckpointError) as error:
    match_names.from_file(path, theirs, tree())
  for word in (path, *words):
    assert word in str(error.value)
  assert '\n' not in str(error.value)


def test_missing_mapping_file_is_named(tmp_path):
  path = str(tmp_path / 'none.json')
  with pytest.raises(CheckpointError, match='none.json.*No such file'):
    match_names.from_file(path, tree(), tree())
