"""Which ImageNet classes the classes of other test sets are.

ImageNet's classes are numbered in the order of their sorted WordNet ids, as in
tfds and in the release's classifiers.
"""

import functools
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from semppl_jax import storage
from semppl_jax.data import image_files, images, listing, sources
from semppl_jax.errors import UserError
from semppl_jax.utils.text import nearest_name

NUM_CLASSES = 1000

# ObjectNet's files in mappings/.
_FOLDERS = 'folder_to_objectnet_label.json'  # folder of images -> class
_MEANINGS = 'objectnet_to_imagenet_1k.json'  # class -> 'name; name' of ImageNet
_NAMES = 'imagenet_to_label_2012_v2'  # ImageNet's names by ILSVRC2012 id
_LINES = 'pytorch_to_imagenet_2012_id.json'  # ImageNet's class -> line of these

# hendrycks/imagenet-r, eval.py @44d3a1d7; timm's indices are the same.
_IMAGENET_R = """
01443537 01484850 01494475 01498041 01514859 01518878 01531178 01534433 01614925
01616318 01630670 01632777 01644373 01677366 01694178 01748264 01770393 01774750
01784675 01806143 01820546 01833805 01843383 01847000 01855672 01860187 01882714
01910747 01944390 01983481 01986214 02007558 02009912 02051845 02056570 02066245
02071294 02077923 02085620 02086240 02088094 02088238 02088364 02088466 02091032
02091134 02092339 02094433 02096585 02097298 02098286 02099601 02099712 02102318
02106030 02106166 02106550 02106662 02108089 02108915 02109525 02110185 02110341
02110958 02112018 02112137 02113023 02113624 02113799 02114367 02117135 02119022
02123045 02128385 02128757 02129165 02129604 02130308 02134084 02138441 02165456
02190166 02206856 02219486 02226429 02233338 02236044 02268443 02279972 02317335
02325366 02346627 02356798 02363005 02364673 02391049 02395406 02398521 02410509
02423022 02437616 02445715 02447366 02480495 02480855 02481823 02483362 02486410
02510455 02526121 02607072 02655020 02672831 02701002 02749479 02769748 02793495
02797295 02802426 02808440 02814860 02823750 02841315 02843684 02883205 02906734
02909870 02939185 02948072 02950826 02951358 02966193 02980441 02992529 03124170
03272010 03345487 03372029 03424325 03452741 03467068 03481172 03494278 03495258
03498962 03594945 03602883 03630383 03649909 03676483 03710193 03773504 03775071
03888257 03930630 03947888 04086273 04118538 04133789 04141076 04146614 04147183
04192698 04254680 04266014 04275548 04310018 04325704 04347754 04389033 04409515
04465501 04487394 04522168 04536866 04552348 04591713 07614500 07693725 07695742
07697313 07697537 07714571 07714990 07718472 07720875 07734744 07742313 07745940
07749582 07753275 07753592 07768694 07873807 07880968 07920052 09472597 09835506
10565667 12267677"""

_BORDER = (
  2  # red pixels around every image of ObjectNet, against training on it
)


def imagenet_r(class_names: Sequence[str]) -> np.ndarray:
  """The classes that ImageNet-R has, [200] int, rising.

  Args:
    class_names: ImageNet's 1000 WordNet ids, in the classifier's order.

  Raises:
    UserError: they are no WordNet ids.
  """
  place = {name: i for i, name in enumerate(class_names)}
  wanted = [f'n{number}' for number in _IMAGENET_R.split()]
  if missing := [wnid for wnid in wanted if wnid not in place]:
    raise UserError(
      f'ImageNet has no class {missing[0]} here; its first ones are '
      f'{", ".join(class_names[:3])}. Is label.labels.txt missing?'
    )
  return np.sort([place[wnid] for wnid in wanted])


class ObjectNet(NamedTuple):
  """The images of ObjectNet whose classes ImageNet has, too."""

  source: sources.Source  # its labels number `class_names`
  class_names: tuple[str, ...]  # C folders; 113 in the whole data set
  meanings: np.ndarray  # [C, 1000] bool: the ImageNet classes that each one is


def objectnet(folder: str) -> ObjectNet:
  """Reads ObjectNet as it is unpacked: images/CLASS/*.png and mappings/.

  The red border is cut off every image.

  Args:
    folder: with these two.

  Raises:
    UserError: a file or a class of images that is missing, damaged, or does
      not fit the others.
  """
  with listing.once(folder):
    return _objectnet(storage.path(folder))


def _objectnet(root: pathlib.Path | storage.RemotePath) -> ObjectNet:
  known = _imagenet_classes(root / 'mappings')
  for name in image_files.subfolders(str(root / 'images')):
    if name not in known:
      raise UserError(
        f'{root / "images" / name} is no class of mappings/'
        f'{_FOLDERS}{nearest_name(name, known)}'
      )
  names = sorted(name for name, classes in known.items() if classes)
  meanings = np.zeros((len(names), NUM_CLASSES), bool)
  paths, labels = [], []
  for label, name in enumerate(names):
    found = image_files.find(str(root / 'images' / name))
    if not found:
      raise UserError(
        f'{root / "images" / name} has no images; ImageNet has this class, '
        'so they belong to the test.'
      )
    meanings[label, known[name]] = True
    paths += found
    labels += [label] * len(found)
  source = sources.Records(
    labels,
    functools.partial(_read, paths),
    encoded=True,  # the images take time to decode; it is done in _read
    remote=storage.is_remote(root),
    names=['/'.join(pathlib.Path(path).parts[-2:]) for path in paths],
  )
  return ObjectNet(source, tuple(names), meanings)


def _read(paths: Sequence[str], index: int) -> np.ndarray:
  """An image without its border, [H, W, 3] uint8."""
  image = images.decode(image_files.read(paths[index]))
  if min(image.shape[:2]) <= 2 * _BORDER:
    raise images.Unreadable(f'it has no more than its border of {_BORDER} px')
  return image[_BORDER:-_BORDER, _BORDER:-_BORDER]


def _imagenet_classes(folder: pathlib.Path) -> dict[str, list[int]]:
  """The ImageNet classes of every folder of images; none: not in ImageNet."""
  label_of = _read_json(folder / _FOLDERS, str)
  meaning_of = _read_json(folder / _MEANINGS, str)
  numbers = _numbers_by_name(folder)
  if unused := set(meaning_of) - set(label_of.values()):
    raise UserError(
      f'{folder / _MEANINGS} has a class {min(unused)!r}, which is not in '
      f'{_FOLDERS}.'
    )
  classes = {name: [] for name in label_of}
  for name, label in label_of.items():
    for meaning in filter(None, meaning_of.get(label, '').split(';')):
      classes[name].append(_number(meaning.strip(), numbers, folder))
  if not any(classes.values()):
    raise UserError(f'{folder / _MEANINGS} has no class.')
  return classes


def _number(
  name: str, numbers: Mapping[str, list[int]], folder: pathlib.Path
) -> int:
  found = numbers.get(name, [])
  if len(found) != 1:
    raise UserError(
      f'{folder / _MEANINGS} has an ImageNet class {name!r}, of which there '
      f'are {len(found)} in {_NAMES}'
      f'{"" if found else nearest_name(name, numbers)}'
    )
  return found[0]


def _numbers_by_name(folder: pathlib.Path) -> dict[str, list[int]]:
  """ImageNet's classes by name; two names stand for two classes each."""
  names = [line.strip() for line in _read_text(folder / _NAMES).splitlines()]
  line_of = _read_json(folder / _LINES, int)
  # From 0 in ObjectNet's file; counted from 1, the lines are clear as well.
  first = min(line_of.values(), default=0)
  wanted = list(range(first, first + NUM_CLASSES))
  if (
    first not in (0, 1)
    or sorted(line_of.values()) != wanted
    or set(line_of) != set(map(str, range(NUM_CLASSES)))
  ):
    raise UserError(
      f'{folder / _LINES} must give each of the numbers 0 to '
      f'{NUM_CLASSES - 1} a line of its own.'
    )
  if len(names) != NUM_CLASSES:
    raise UserError(
      f'{folder / _NAMES} has {len(names)} lines, not {NUM_CLASSES:,}.'
    )
  numbers: dict[str, list[int]] = {name: [] for name in names}
  for number, line in line_of.items():
    numbers[names[line - first]].append(int(number))
  return numbers


def _read_json(path: pathlib.Path, kind: type) -> dict[str, Any]:
  """A file {text: kind}."""
  try:
    content = json.loads(_read_text(path))
  except storage.StorageError:
    raise
  except (ValueError, RecursionError) as e:
    raise UserError(f'{path} is not JSON: {e}') from e
  values = content.values() if isinstance(content, dict) else [None]
  if not all(isinstance(value, kind) for value in values):
    raise UserError(
      f'{path} must hold a JSON object whose values are of type '
      f'{kind.__name__}.'
    )
  return content


def _read_text(path: pathlib.Path) -> str:
  try:
    return path.read_text(encoding='utf-8')
  except OSError as e:
    raise UserError(f'{path} cannot be read: {e.strerror}.') from e
  except UnicodeDecodeError as e:
    raise UserError(f'{path} is not text.') from e
