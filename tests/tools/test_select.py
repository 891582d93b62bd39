"""semppl-jax select: what it writes, says and refuses."""

import json
import os
import re

import numpy as np
import pytest
from PIL import Image

import semppl_jax
from semppl_jax import config
from semppl_jax.data import datasets, sources
from semppl_jax.data import labels as labels_lib
from semppl_jax.tools import kept_features, select, select_files
from semppl_jax.weights import load as load_lib
from semppl_jax.workdir import metrics
from tests.helpers import tiny


def _picture(path, seed):
  random = np.random.RandomState(seed)
  os.makedirs(path.parent, exist_ok=True)
  Image.fromarray(random.randint(0, 256, (9, 8, 3)).astype(np.uint8)).save(path)


@pytest.fixture
def folder(tmp_path):
  """Three images of a class each, and six without one."""
  where = tmp_path / 'images'
  for seed in range(12):
    part = ('train/cat', 'train/dog', 'unlabelled', 'unlabelled')[seed // 3]
    _picture(where / part / f'{seed}.png', seed)
  return where


@pytest.fixture
def call(tmp_path, capsys):
  """Calls the command; returns its status, what it printed, and errors."""

  def run(*flags, out='out/list.txt', **changes):
    flags = [f'--{key}={value}' for key, value in changes.items()] + [*flags]
    status = select.main([f'--out={tmp_path / out}', *flags])
    said = capsys.readouterr()
    # Lines that progress bars overwrite.
    return status, said.out, re.sub(r'[^\n]*\r', '', said.err)

  return run


def test_a_folder_from_list_to_labels(folder, call, tmp_path):
  status, out, err = call(
    '--no-own_cluster', checkpoint='digits', dataset='folder', path=folder,
    budget=5, seed=3, k=4,
  )  # fmt: skip
  assert status == 0 and 'Warning' not in err
  assert '12 images; features: the projection of digits' in out
  assert 'Label them' in out  # six have no class: nothing is said of classes
  names = labels_lib.read_list(str(tmp_path / 'out/list.txt'))
  assert len(names) == 5
  told = json.loads((tmp_path / 'out/list.json').read_text())
  chosen = [one['name'] for one in told['chosen']]
  assert [x.removeprefix('unlabelled/') for x in chosen] == names
  assert sum(one['cluster_size'] for one in told['chosen']) == 12
  assert told['seed'] == 3 and told['settings']['k'] == 4
  digest = load_lib.digest(load_lib.load_checkpoint('digits'))
  assert told['checkpoint']['fingerprint'] == digest
  with Image.open(tmp_path / 'out/list.png') as sheet:
    assert sheet.size == (5 * 132, 146)
  # Once their class is known, the list is what labels.file reads.
  unknown = [name for name in chosen if name.startswith('unlabelled/')]
  assert 0 < len(unknown) < 5
  for name in unknown:
    os.rename(folder / name, folder / 'train/cat' / name.rpartition('/')[2])
  cfg = config.default()
  cfg.dataset.update(name='folder', path=str(folder))
  cfg.labels.file = str(tmp_path / 'out/list.txt')
  seen = labels_lib.visible_labels(cfg.labels, datasets.load(cfg.dataset))
  assert np.sum(seen >= 0) == 5


def test_the_choice_is_that_of_the_function(folder, call, tmp_path):
  call(checkpoint='digits', dataset='folder', path=folder, budget=4, seed=1)
  told = json.loads((tmp_path / 'out/list.json').read_text())
  names = [one['name'] for one in told['chosen']]
  cfg = config.default().dataset
  cfg.update(name='folder', path=str(folder))
  source = datasets.load(cfg).train
  model = semppl_jax.load_pretrained('digits')
  projections = model.project([source[i]['image'] for i in range(12)])
  rows = semppl_jax.select(projections, 4, seed=1).rows
  assert names == [source.names[row] for row in rows]


def test_a_list_with_classes_is_not_replaced(folder, call, tmp_path):
  flags = dict(checkpoint='digits', dataset='folder', path=folder, budget=3)
  os.rename(folder / 'unlabelled/6.png', folder / 'unlabelled/6,a.png')
  for budget in (12, 3):  # a comma of a name's is none of a class
    assert call(**flags | {'budget': budget})[0] == 0
  out = tmp_path / 'out/list.txt'
  edited = out.read_text().replace('.png', '.png,cat', 1)
  out.write_text(edited)
  status, _, err = call(**flags)
  assert status == 2 and 'with classes of yours' in err
  assert out.read_text() == edited


def test_classes_are_counted_where_all_are_known(call):
  status, out, _ = call(
    checkpoint='digits', dataset='digits', budget=10, sheet=0, iterations=2
  )
  assert status == 0 and 'list.png' not in out
  assert re.search(r'\d+ of 10 classes are among them; .* \d+ of 10\.', out)


def test_a_file_without_projector_gives_embeddings(folder, call, tmp_path):
  whole = load_lib.load_checkpoint('digits')
  heads = ('projector', 'predictor')
  cut = lambda tree: {
    module: leaves
    for module, leaves in tree.items()
    if not module.startswith(heads)
  }
  path = tmp_path / 'encoder.safetensors'
  load_lib.save_safetensors(
    path, whole._replace(params=cut(whole.params), state=cut(whole.state))
  )
  flags = dict(checkpoint=path, dataset='folder', path=folder, budget=2)
  status, out, _ = call(**flags)
  assert status == 0 and 'features: the encoder embedding of' in out
  status, _, err = call(**flags, features='projection')
  assert status == 2 and 'has no projector: take embedding' in err


def test_a_stopped_command_goes_on(folder, call, monkeypatch, tmp_path):
  monkeypatch.setattr(kept_features, 'PART', 5)
  flags = dict(checkpoint='digits', dataset='folder', path=folder, budget=3)
  call(**flags, out='whole/list.txt')
  real, seen = semppl_jax.Model.features, []

  def features(model, source, output, tell):
    seen.append(len(source))
    if len(seen) == 2:
      raise KeyboardInterrupt
    return real(model, source, output, tell)

  monkeypatch.setattr(semppl_jax.Model, 'features', features)
  status, _, err = call(**flags)
  assert status == 130 and 'the same command goes on' in err
  assert call(**flags)[0] == 0
  assert seen == [5, 5, 5, 2]
  for name in ('list.txt', 'list.json', 'list.png'):
    whole, other = (tmp_path / x / name for x in ('whole', 'out'))
    assert whole.read_bytes() == other.read_bytes()
  # Another budget needs no features; other features, or images, do.
  assert call(**flags | dict(budget=4))[0] == 0
  assert len(seen) == 4
  call(**flags, features='embedding')
  assert seen[4:] == [5, 5, 2]
  _picture(folder / 'unlabelled/new.png', 40)
  call(**flags)
  assert seen[7:] == [5, 5, 3]


def test_unreadable_images_are_left_out(folder, call, tmp_path):
  bad = folder / 'unlabelled/6.png'
  bad.write_bytes(b'no image')
  flags = dict(checkpoint='digits', dataset='folder', path=folder, sheet=0)
  status, _, err = call(**flags, budget=11)
  assert status == 0
  assert 'Warning: 1 of 12 images cannot be read and are left out: unlab' in err
  assert '6.png' not in (tmp_path / 'out/list.txt').read_text().split()
  status, _, err = call(**flags, budget=12)
  assert status == 2 and 'budget is 12; it must be a whole number' in err
  for path in folder.rglob('*.png'):
    path.write_bytes(b'no image')
  (folder / 'unlabelled/6.png').rename(folder / 'unlabelled/x.png')
  status, _, err = call(**flags, budget=2)
  assert status == 2 and 'None of the 12 images can be read' in err


@pytest.mark.parametrize(
  'changes, words',
  [
    (dict(budget=13), 'budget is 13; it must be a whole number from 1 to 12'),
    (dict(budget=0), '--budget=0: it takes at least 1'),
    (dict(checkpoint='nowhere'), 'nowhere'),
    (dict(dataset=''), '--dataset is not given, and --checkpoint digits is '),
    (dict(path=''), 'dataset.path is empty'),
    (dict(dataset='synthetic'), 'have no names'),
    (dict(preset='cifar'), "preset is 'cifar'; known: small, cifar10"),
    (dict(momentum=2), 'momentum is 2.0'),
    (dict(out='.'), 'is a folder'),
    (dict(out='images/list.txt'), 'lies in the data set'),
  ],
)  # fmt: skip
def test_mistakes_are_one_line(changes, words, folder, call):
  flags = dict(checkpoint='digits', dataset='folder', path=folder, budget=3)
  status, _, err = call(**flags | changes)
  assert status == 2
  (line,) = [x for x in err.splitlines() if x.startswith('error: ')]
  assert words in line and err.splitlines()[-1] == line


def test_a_folder_of_one_image(call, tmp_path):
  _picture(tmp_path / 'one/a.png', 0)
  status, _, err = call(
    checkpoint='digits', dataset='folder', path=tmp_path / 'one', budget=1
  )
  assert status == 2 and 'There is 1 image: a choice takes at least 2' in err


def test_names_that_several_images_have_are_told(capsys):
  names = ['cat/1.png', 'dog/1.png', 'x/1.png', 'x/2.png', 'dog/3.png']
  source = sources.Records([0, 1, -1, -1, 1], None, names=names)
  found = select_files.listed(source, np.array([3, 1, 4]))
  assert found == ['2.png', 'dog/1.png', 'dog/3.png']
  assert not capsys.readouterr().err
  assert select_files.listed(source, np.array([3, 2])) == ['2.png', 'x/1.png']
  err = capsys.readouterr().err
  assert "as 1 of the chosen ones are, such as 'x/1.png'" in err
  source.names = ['cat/3.png'] * 2 + names[2:]
  select_files.listed(source, np.array([0, 3]))
  assert "such as 'cat/3.png'" in capsys.readouterr().err


def _run(path, **labels):
  """The settings of a run, and what it trained on."""
  cfg = tiny.make_config()
  cfg.labels.update(dict(per_class=0) | labels)
  cfg.dataset.update(name='arrays', path='x.npz', validation=7)
  os.makedirs(path)
  metrics.write_json(f'{path}/config.json', cfg.to_dict())
  metrics.write_json(f'{path}/data.json', {'fingerprint': 'a'})
  return str(path)


@pytest.mark.parametrize(
  'labels, fingerprint, warned',
  [
    (dict(per_class=2), 'a', True),
    (dict(file='list.txt'), 'a', True),
    (dict(per_class=2), 'b', False),  # of other images
    ({}, 'a', False),
  ],
)
def test_a_network_that_saw_labels_is_named(
  labels, fingerprint, warned, tmp_path, capsys
):
  path = _run(tmp_path / 'run', **labels)
  found = select._config_of(path)
  select._warn_of_labels(path, found, fingerprint)
  said = capsys.readouterr().err
  assert ('was trained with labels of these images' in said) == warned
  assert len(said.splitlines()) == warned


def test_a_runs_data_are_the_default(tmp_path):
  path = _run(tmp_path / 'run')
  parse = lambda *flags: select._parser().parse_args(
    [f'--checkpoint={path}', '--budget=2', '--out=x', *flags]
  )
  section = select._dataset(parse(), select._config_of(path))
  assert (section.name, section.path, section.validation) == (
    'arrays', 'x.npz', 7,
  )  # fmt: skip
  moved = select._dataset(parse('--path=y.npz'), select._config_of(path))
  assert (moved.name, moved.path, moved.validation) == ('arrays', 'y.npz', 7)
  other = select._dataset(parse('--dataset=digits'), select._config_of(path))
  assert (other.name, other.validation) == ('digits', 0)
