"""Small data sets on disk, as `tfds build` leaves them, without TensorFlow.

Names, configs, versions, features and class names are those of the builders of
tensorflow_datasets; only the images are ours. `write` writes one data set:

  tfds_data.write(
    data_dir,
    'imagenet_v2/topimages',
    {'test': tfds_data.examples('imagenet_v2', labels=[0, 1, 1], split='test')},
  )

Nothing is downloaded, and no builder looks for its files.
"""

import colorsys
import functools
import io
import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from unittest import mock

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from tensorboardX import record_writer
from tensorflow_datasets.core import naming
from tensorflow_datasets.core import writer as tfds_writer
from tensorflow_datasets.core.utils import shard_utils

Example = dict[str, Any]

# Builders without a list of class names take it from a file they download.
_CIFAR10 = 'airplane automobile bird cat deer dog frog horse ship truck'
_STL10 = 'airplane bird car cat deer dog horse monkey ship truck'
_CIFAR100 = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy
bridge bus butterfly camel can castle caterpillar cattle chair chimpanzee clock
cloud cockroach couch crab crocodile cup dinosaur dolphin elephant flatfish
forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion
lizard lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange
orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine
possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper
snail snake spider squirrel streetcar sunflower sweet_pepper table tank
telephone television tiger tractor train trout tulip turtle wardrobe whale
willow_tree wolf woman worm"""
_CIFAR100_COARSE = """
aquatic_mammals fish flowers food_containers fruit_and_vegetables
household_electrical_devices household_furniture insects large_carnivores
large_man-made_outdoor_things large_natural_outdoor_scenes
large_omnivores_and_herbivores medium_mammals non-insect_invertebrates people
reptiles small_mammals trees vehicles_1 vehicles_2"""
_CLASS_NAMES = {
  'cifar10': {'label': _CIFAR10},
  'cifar100': {'label': _CIFAR100, 'coarse_label': _CIFAR100_COARSE},
  'stl10': {'label': _STL10},
}

# How an image is called: the feature, and the text it holds.
_IMAGE_NAMES = {
  'imagenet2012': ('file_name', '{name}_{number}.JPEG'),
  'imagenet2012_subset': ('file_name', '{name}_{number}.JPEG'),
  'imagenet2012_corrupted': ('file_name', 'ILSVRC2012_val_{number:08}.JPEG'),
  'imagenet_v2': ('file_name', '{label}/{number:040x}.jpeg'),
  'imagenet_r': ('file_name', '{name}/art_{number}.jpg'),
  'imagenet_sketch': ('file_name', '{name}/sketch_{number}.JPEG'),
  'cifar10': ('id', '{split}_{number:05}'),
  'cifar100': ('id', '{split}_{number:05}'),
  'food101': ('id', '{name}/{number}'),  # from version 2.1.0 on
  'sun397': ('file_name', '{name}/sun_{number:016}.jpg'),
  'cars196': ('id', '{number:05}'),
  'dtd': ('file_name', '{name}/{name}_{number:04}.jpg'),
  'oxford_iiit_pet': ('file_name', '{name}_{number}.jpg'),
  'caltech101': ('image/file_name', 'image_{number:04}.jpg'),
  'oxford_flowers102': ('file_name', 'image_{number:05}.jpg'),
}
_IMAGENET_VALIDATION = 'ILSVRC2012_val_{number:08}.JPEG'


def write(
  data_dir: str | pathlib.Path,
  name: str,
  splits: Mapping[str, Iterable[Example]],
  *,
  file_format: str = 'array_record',
  alternatives: Sequence[str] = (),
  shards: int = 1,
  shuffle: bool = True,
) -> pathlib.Path:
  """Writes a data set that tfds knows.

  Args:
    data_dir: where `TFDS_DATA_DIR` would point to.
    name: NAME[/CONFIG][:VERSION], as for tfds.load.
    splits: the examples of each split. An image is an array, or the bytes of a
      file, which are stored as they are; a label a number or a class name.
      What an example lacks is filled in.
    file_format: array_record or tfrecord (these can be read, too).
    alternatives: formats to write besides, as `tfds convert_format` in place.
    shards: the number of files a split has.
    shuffle: False: in the given order. True: in the order of a hash of the
      index, as tfds does.

  Returns:
    The folder of the version, for tfds.builder_from_directory.
  """
  builder = _builder(name, str(data_dir), file_format)
  if builder.BUILDER_CONFIGS:
    _write_default_config(builder)
  return _write(builder, splits, alternatives, shards, shuffle)


def write_custom(
  data_dir: str | pathlib.Path,
  name: str,
  features: Mapping[str, Any],
  splits: Mapping[str, Iterable[Example]],
  *,
  version: str = '1.0.0',
  file_format: str = 'array_record',
  alternatives: Sequence[str] = (),
  shards: int = 1,
  shuffle: bool = True,
) -> pathlib.Path:
  """Like `write`, for a data set that tfds does not know.

  Args:
    data_dir: as for `write`.
    name: the data set's, such as my_birds; it has no configs.
    features: such as {'image': tfds.features.Image()}.
    splits: as for `write`.
    version: the data set's.
    file_format: as for `write`.
    alternatives: as for `write`.
    shards: as for `write`.
    shuffle: as for `write`.

  Returns:
    The folder of the version.
  """
  members = {
    'name': name,
    'VERSION': tfds.core.Version(version),
    '_info': lambda self: tfds.core.DatasetInfo(
      builder=self, features=tfds.features.FeaturesDict(dict(features))
    ),
    '_split_generators': None,  # abstract, and not used here
    '_generate_examples': None,
    '__module__': __name__,
  }
  base = tfds.core.GeneratorBasedBuilder
  made = type('Custom', (base,), members, skip_registration=True)
  builder = _make(made, data_dir=str(data_dir), file_format=file_format)
  return _write(builder, splits, alternatives, shards, shuffle)


def examples(
  name: str,
  labels: Iterable[int],
  seed: int = 0,
  split: str = 'train',
) -> list[Example]:
  """Photos of the given classes, with file names like the real ones.

  Args:
    name: the data set: NAME[/CONFIG][:VERSION].
    labels: one image each; -1: no class (as in stl10's unlabelled split).
    seed: of the photos.
    split: what some file names depend on.

  Returns:
    Examples for `write`; the images are encoded as in the real data set.
  """
  features = _features(name)
  size = features['image'].shape[:2]
  labels = list(labels)
  images = photos(labels, seed, None if None in size else size)
  return [
    {
      'image': _encode(name, image),
      'label': label,
      **_image_name(name, features, label, split, number),
    }
    for number, (label, image) in enumerate(zip(labels, images), start=1)
  ]


def class_names(name: str, feature: str = 'label') -> list[str]:
  """The class names of a data set: NAME[/CONFIG][:VERSION]."""
  return _features(name)[feature].names


def jpeg(image: np.ndarray, mode: str | None = None, **options: Any) -> bytes:
  """Encodes uint8 [H, W, 3], or [H, W] for grey; mode: such as CMYK or L."""
  return _save(image, mode, 'JPEG', {'quality': 92, **options})


def png(image: np.ndarray, mode: str | None = None, **options: Any) -> bytes:
  """Encodes uint8 [H, W, 3], [H, W, 4] with alpha, or [H, W] for grey."""
  return _save(image, mode, 'PNG', options)


def photos(
  count: int | Sequence[int],
  seed: int,
  size: tuple[int, int] | None = None,
) -> list[np.ndarray]:
  """Colour images, each class with its own colours and stripes.

  Args:
    count: the classes to show; a number stands for classes 0 .. count - 1.
    seed: of sizes, positions, brightness and noise.
    size: (H, W) of all images; None: landscape, portrait and square ones in
      turn, 40 to 100 pixels a side.

  Returns:
    Images [H, W, 3], uint8.
  """
  random = np.random.RandomState(seed)
  labels = range(count) if isinstance(count, int) else count
  return [
    _photo(random, int(label), size or _random_size(random, turn=i % 3))
    for i, label in enumerate(labels)
  ]


class _Writer(tfds_writer.ExampleWriter):
  """Writes files of records; tfrecord without TensorFlow."""

  def write(self, path: Any, examples: Iterable[tuple[Any, bytes]]) -> None:
    if self.file_format != tfds.core.FileFormat.TFRECORD:
      super().write(path, examples)
      return
    writer = record_writer.RecordWriter(str(path))
    for _, record in examples:
      writer.write(record)
    writer.close()


def _builder(name: str, data_dir: str, file_format: str) -> Any:
  parsed, options = naming.parse_builder_name_kwargs(name)
  builder = _make(
    tfds.builder_cls(str(parsed)),
    data_dir=data_dir,
    file_format=file_format,
    **options,
  )
  for feature, names in _CLASS_NAMES.get(builder.name, {}).items():
    builder.info.features[feature].names = names.split()
  return builder


def _make(builder_class: Any, **options: Any) -> Any:
  # Left out: a look for metadata online, which is off by default, but which
  # leaves an empty folder among the temporary files each time.
  method = 'initialize_from_bucket'
  with mock.patch.object(tfds.core.DatasetInfo, method, lambda self: None):
    return builder_class(**options)


@functools.cache
def _features(name: str) -> Any:
  return _builder(name, '/nonexistent', 'array_record').info.features


def _write_default_config(builder: Any) -> None:
  file = builder.data_path.parent.parent / '.config/metadata.json'
  file.parent.mkdir(parents=True, exist_ok=True)
  default = builder.get_default_builder_config().name
  file.write_text(json.dumps({'default_config_name': default}))


def _write(
  builder: Any,
  splits: Mapping[str, Iterable[Example]],
  alternatives: Sequence[str],
  shards: int,
  shuffle: bool,
) -> pathlib.Path:
  tfds.disable_progress_bar()
  builder.data_path.mkdir(parents=True)
  formats = [builder.info.file_format]
  for other in alternatives:
    builder.info.add_alternative_file_format(other)
    formats.append(tfds.core.FileFormat(other))
  writer = tfds_writer.MultiOutputExampleWriter(
    [_Writer(file_format) for file_format in formats]
  )
  infos = [
    _write_split(builder, split, rows, writer, shards, shuffle)
    for split, rows in splits.items()
  ]
  builder.info.set_splits(tfds.core.SplitDict(infos))
  builder.info.write_to_directory(builder.data_path)
  return pathlib.Path(builder.data_dir)


def _write_split(
  builder: Any,
  split: str,
  rows: Iterable[Example],
  example_writer: tfds_writer.ExampleWriter,
  shards: int,
  shuffle: bool,
) -> tfds.core.SplitInfo:
  features = builder.info.features
  template = builder._get_filename_template(split)
  writer = tfds_writer.Writer(
    tfds.core.ExampleSerializer(features.get_serialized_info()),
    filename_template=template,
    hash_salt=split,
    disable_shuffling=not shuffle,
    example_writer=example_writer,
    shard_config=shard_utils.ShardConfig(num_shards=shards),
  )
  for key, row in enumerate(rows):
    whole = {k: _value(feature, row.get(k)) for k, feature in features.items()}
    writer.write(key, features.encode_example(whole))
  lengths, size = writer.finalize()
  return tfds.core.SplitInfo(
    name=split,
    shard_lengths=lengths,
    num_bytes=size,
    filename_template=template,
  )


def _value(feature: Any, value: Any) -> Any:
  """The value to store: TensorFlow would encode arrays; None: any will do."""
  if isinstance(feature, tfds.features.Image):
    if value is None:
      value = np.zeros((4, 4, feature.shape[-1]), np.uint8)
    if isinstance(value, np.ndarray):
      return (jpeg if feature.encoding_format == 'jpeg' else png)(value)
    return value
  if value is not None:
    return value
  if isinstance(feature, tfds.features.BBoxFeature):
    return tfds.features.BBox(0.0, 0.0, 1.0, 1.0)
  return '' if isinstance(feature, tfds.features.Text) else 0


def _encode(name: str, image: np.ndarray) -> bytes:
  # These builders encode arrays, as PNG; the others copy JPEG files.
  arrays = ('cifar10', 'cifar100', 'stl10')
  return (png if name.startswith(arrays) else jpeg)(image)


def _image_name(
  name: str, features: Any, label: int, split: str, number: int
) -> dict[str, str]:
  dataset = str(naming.parse_builder_name_kwargs(name)[0])
  feature, text = _IMAGE_NAMES.get(dataset, ('', ''))
  if feature not in features:
    return {}
  if dataset.startswith('imagenet2012') and split == 'validation':
    text = _IMAGENET_VALIDATION
  class_name = features['label'].names[label]
  return {
    feature: text.format(
      name=class_name, label=label, split=split, number=number
    )
  }


def _save(
  image: np.ndarray, mode: str | None, file_format: str, options: Any
) -> bytes:
  if image.ndim == 3 and image.shape[-1] == 1:
    image = image[..., 0]
  picture = Image.fromarray(image)
  if mode is not None:
    picture = picture.convert(mode)
  file = io.BytesIO()
  picture.save(file, file_format, **options)
  return file.getvalue()


def _random_size(random: np.random.RandomState, turn: int) -> tuple[int, int]:
  short = random.randint(40, 65)
  long = int(short * random.uniform(1.2, 1.55))
  return [(short, long), (long, short), (short, short)][turn]


def _photo(
  random: np.random.RandomState, label: int, size: tuple[int, int]
) -> np.ndarray:
  y, x = np.mgrid[: size[0], : size[1]] / min(size)  # [H, W] each
  angle = np.pi / 4 * (label % 4)
  waves = 2.5 + label // 4 % 3  # stripes along the shorter side
  along = np.cos(angle) * x + np.sin(angle) * y
  phase = random.uniform(0, 1)
  stripe = 0.5 + 0.5 * np.sin(2 * np.pi * (waves * along + phase))
  hue = label * 0.618034 % 1  # the golden ratio: no two classes are alike
  colours = [colorsys.hsv_to_rgb(hue, 0.85, v) for v in (0.35, 0.9)]
  image = stripe[..., None] * np.subtract(colours[1], colours[0]) + colours[0]
  image = 255 * random.uniform(0.8, 1.05) * image  # [H, W, 3]
  return np.clip(image + random.normal(0, 10, image.shape), 0, 255).astype(
    np.uint8
  )
