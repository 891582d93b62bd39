"""Whose parameters are whose, where two trees name one network differently.

DeepMind released checkpoints of encoders with selective kernels, but not their
code: the names in them are not known here. Shapes, and the little that names
tell by themselves (numbers, a word for the shortcut), decide all of a ResNet.
Where they do not, nothing is guessed: a mapping file has to say.

Trees of shapes are {module: {leaf: shape}}, of an encoder's parameters alone.
A mapping is {their module: our module}.
"""

import collections
import difflib
import json
import re
from collections.abc import Iterable, Iterator, Mapping

from semppl_jax.errors import CheckpointError

Shapes = Mapping[str, Mapping[str, tuple[int, ...]]]
_Signature = tuple[tuple[str, tuple[int, ...]], ...]  # leaves and their shapes
_Signatures = dict[str, _Signature]  # of modules, in natural order
_Part = dict[str, str]  # {path inside a part of a network: module}

_OUR_BLOCK = re.compile(r'.*/block_group_\d+/~/block_\d+(?=/)')
_SHORTCUT = re.compile(
  r'(?<![a-z])(shortcut|proj|projection|downsample|skip)(?![a-z])'
)


def match(theirs: Shapes, ours: Shapes) -> dict[str, str]:
  """Maps their modules to ours, by names, blocks and shapes.

  Names that are all equal below the root decide. Otherwise blocks, whatever
  they are called, are found by the shapes they hold, and taken in the order of
  their numbers where several hold the same. For what is inside a block, or in
  none, see `_pair`. The order of the trees does not matter.

  Raises:
    CheckpointError: other modules or shapes than ours, or more than one way.
  """
  their_signatures, our_signatures = _signatures(theirs), _signatures(ours)
  _check_same(their_signatures, our_signatures)
  their_root, our_root = _root(theirs), _root(ours)
  renamed = {our_root + m.removeprefix(their_root): m for m in theirs}
  if all(
    module in renamed and their_signatures[renamed[module]] == signature
    for module, signature in our_signatures.items()
  ):
    return {renamed[module]: module for module in our_signatures}
  mapping = {}
  for their_part, our_part in _parts(their_signatures, our_signatures):
    equals = _by_signature(our_part, our_signatures)
    for signature, same in _by_signature(their_part, their_signatures).items():
      mapping |= _pair(same, equals[signature])
  return mapping


def explain(mapping: Mapping[str, str]) -> str:
  """A few lines 'their module -> our module', those of all blocks in one."""

  def short(module):
    folder, slash, name = module.rpartition('/')
    return re.sub(r'_\d+(?=/|$)', '_*', folder) + slash + name

  pairs = sorted(mapping.items(), key=lambda pair: _natural(pair[1]))
  lines = collections.Counter(f'{short(a)} -> {short(b)}' for a, b in pairs)
  return '\n'.join(
    line if count == 1 else f'{line} ({count} times)'
    for line, count in lines.items()
  )


def from_file(path: str, theirs: Shapes, ours: Shapes) -> dict[str, str]:
  """Reads a mapping, JSON {their module: our module}, and checks all of it.

  Raises:
    CheckpointError: the file cannot be read, or it does not map all modules,
      one to one, onto all of ours with equal shapes.
  """
  mapping = _read(path)
  for module, our_module in mapping.items():
    _check_known(path, module, 'the checkpoint', theirs)
    _check_known(path, our_module, 'our network', ours)
    found, expected = _signature(theirs[module]), _signature(ours[our_module])
    if found != expected:
      raise CheckpointError(
        f'{path}: {module!r} does not fit {our_module!r}: '
        f'expected {_show(expected)}, found {_show(found)}.'
      )
  counts = collections.Counter(mapping.values())
  for module, count in counts.items():
    if count > 1:
      raise CheckpointError(f'{path}: {count} modules become {module!r}.')
  _check_complete(path, mapping, 'the checkpoint', theirs)
  _check_complete(path, counts, 'our network', ours)
  return mapping


def _read(path: str) -> dict[str, str]:
  try:
    with open(path, encoding='utf-8') as file:
      pairs = json.load(file, object_pairs_hook=list)
  except OSError as error:
    raise CheckpointError(f'{path}: {error.strerror}.') from error
  except (ValueError, RecursionError) as error:
    raise CheckpointError(f'{path} is not JSON: {error}.') from error
  # An object is now a list of tuples, so that a key that comes twice shows.
  if not isinstance(pairs, list) or not all(
    isinstance(pair, tuple) and isinstance(pair[1], str) for pair in pairs
  ):
    raise CheckpointError(
      f'{path} is not a JSON object of strings, their module to our module.'
    )
  for module, count in collections.Counter(key for key, _ in pairs).items():
    if count > 1:
      raise CheckpointError(f'{path}: {module!r} is mapped {count} times.')
  return dict(pairs)


def _check_known(path: str, module: str, whose: str, known: Shapes) -> None:
  if module not in known:
    close = difflib.get_close_matches(module, sorted(known), n=1, cutoff=0.4)
    hint = f'; did you mean {close[0]!r}?' if close else '.'
    raise CheckpointError(f'{path}: {whose} has no module {module!r}{hint}')


def _check_complete(path, named: Iterable[str], whose, known: Shapes) -> None:
  missing = sorted(set(known) - set(named), key=_natural)
  if missing:
    raise CheckpointError(
      f'{path}: {len(missing)} modules of {whose} are missing, '
      f'the first is {missing[0]!r}.'
    )


def _natural(name: str) -> list:
  """A sorting key that puts block_10 after block_9."""
  parts = re.split(r'(\d+)', name)  # text, number, text, ...
  return [int(part) if part.isdecimal() else part for part in parts]


def _signature(leaves: Mapping[str, tuple[int, ...]]) -> _Signature:
  return tuple(sorted((name, tuple(shape)) for name, shape in leaves.items()))


def _signatures(shapes: Shapes) -> _Signatures:
  return {m: _signature(shapes[m]) for m in sorted(shapes, key=_natural)}


def _show(signature: _Signature) -> str:
  return ', '.join(f'{name} {shape}' for name, shape in signature)


def _root(modules: Iterable[str]) -> str:
  """The first component of all modules, '' if they have several."""
  roots = {module.split('/')[0] for module in modules}
  return roots.pop() if len(roots) == 1 else ''


def _check_same(theirs: _Signatures, ours: _Signatures) -> None:
  """Refuses trees that hold different modules, whatever their names."""
  counts = [collections.Counter(side.values()) for side in (theirs, ours)]
  differences = []
  for verb, side, differing in (
    ('lacks', ours, counts[1] - counts[0]),
    ('has in excess', theirs, counts[0] - counts[1]),
  ):
    if differing:  # a kernel, of one leaf, says more than a BatchNorm
      module = min(
        (m for m in side if side[m] in differing), key=lambda m: len(side[m])
      )
      differences.append(f'{verb} {_show(side[module])} (like {module!r})')
  if differences:
    raise CheckpointError(
      f"the checkpoint's encoder has {len(theirs)} modules, ours {len(ours)}; "
      f'it {" and ".join(differences)}.'
    )


def _parts(
  theirs: _Signatures, ours: _Signatures
) -> Iterator[tuple[_Part, _Part]]:
  """Pairs of equal blocks, and at last of all modules that are in none."""
  found = _by_contents(_folders(theirs), theirs)
  wanted = _by_contents(_blocks(ours), ours)
  their_rest, our_rest = dict.fromkeys(theirs), dict.fromkeys(ours)
  # Large ones first: what lies inside a block that is found is none itself.
  for contents in sorted(wanted, key=len, reverse=True):
    blocks = wanted[contents]
    folders = {
      folder: modules
      for folder, modules in found.get(contents, {}).items()
      if all(module in their_rest for module in modules)
    }
    orders = _in_order(folders), _in_order(blocks)
    if len(folders) != len(blocks) or None in orders:
      continue  # their modules may still tell by themselves
    for folder, block in zip(*orders):
      yield _part(folders[folder], folder), _part(blocks[block], block)
      for module in folders[folder]:
        del their_rest[module]
      for module in blocks[block]:
        del our_rest[module]
  yield _part(their_rest, _root(theirs)), _part(our_rest, _root(ours))


def _part(modules: Iterable[str], prefix: str) -> _Part:
  return {m.removeprefix(prefix).removeprefix('/'): m for m in modules}


def _folders(signatures: _Signatures) -> dict[str, list[str]]:
  """Prefixes and the modules below them; of equal ones the longest."""
  below = collections.defaultdict(list)
  for module in signatures:
    parts = module.split('/')
    for depth in range(1, len(parts)):
      below['/'.join(parts[:depth])].append(module)
  longest = {tuple(below[prefix]): prefix for prefix in sorted(below, key=len)}
  return {prefix: list(modules) for modules, prefix in longest.items()}


def _blocks(ours: _Signatures) -> dict[str, list[str]]:
  blocks = collections.defaultdict(list)
  for module in ours:
    if found := _OUR_BLOCK.match(module):
      blocks[found[0]].append(module)
  return blocks


def _by_contents(folders, signatures: _Signatures) -> dict:
  """{all signatures, sorted: {prefix: modules}}."""
  result = collections.defaultdict(dict)
  for prefix, modules in folders.items():
    contents = tuple(sorted(signatures[module] for module in modules))
    result[contents][prefix] = modules
  return result


def _by_signature(part: _Part, signatures) -> dict[_Signature, _Part]:
  result = collections.defaultdict(dict)
  for path, module in part.items():
    result[signatures[module]][path] = module
  return result


def _pair(theirs: _Part, ours: _Part) -> dict[str, str]:
  """Pairs modules of equal shapes by what their paths tell.

  The only one; or by paths, or last components of paths, if all are equal: some
  that are equal prove nothing, as theirs may count otherwise; or first the one
  shortcut; or by numbers, where the paths of each side differ in nothing else.
  """
  if len(theirs) == 1:
    return dict(zip(theirs.values(), ours.values()))
  for name in (lambda path: path, lambda path: path.split('/')[-1]):
    a, b = (
      {name(p): module for p, module in x.items()} for x in (theirs, ours)
    )
    if set(a) == set(b) and len(a) == len(theirs):
      return {a[key]: b[key] for key in a}
  shortcuts = [list(filter(_SHORTCUT.search, side)) for side in (theirs, ours)]
  if len(shortcuts[0]) == len(shortcuts[1]) == 1:
    first = {theirs.pop(shortcuts[0][0]): ours.pop(shortcuts[1][0])}
    return first | _pair(theirs, ours)
  orders = _in_order(theirs), _in_order(ours)
  if None not in orders:
    return {theirs[a]: ours[b] for a, b in zip(*orders)}
  (a, b, *_), (c, d, *_) = theirs.values(), ours.values()
  raise CheckpointError(
    f"the checkpoint's {a!r} and {b!r} have equal shapes, and their names do "
    f'not tell which is our {c!r} and which {d!r}: a mapping file decides.'
  )


def _in_order(paths: Iterable[str]) -> list[str] | None:
  """Sorts paths by their numbers; None if they differ in more, or numbers tie.

  Haiku calls several modules of one kind x, x_1, x_2.
  """
  numbers, texts = {}, set()
  for path in paths:
    parts = [
      part if part == '~' or re.search(r'_\d+$', part) else part + '_0'
      for part in path.split('/')
    ]
    full = '/'.join(parts)
    numbers[path] = [int(number) for number in re.findall(r'\d+', full)]
    texts.add(re.sub(r'\d+', '#', full))
  distinct = len({tuple(key) for key in numbers.values()}) == len(numbers)
  if len(texts) > 1 or not distinct:
    return None
  return sorted(numbers, key=numbers.__getitem__)
