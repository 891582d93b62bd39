"""Every reader of bytes from outside: good files, and what it makes of others.

A target writes small good files of all kinds that the reader takes. Its `read`
looks at a folder with some of them changed; it checks what is read, and may
raise a UserError of one line, or `Unreadable`.
"""

import contextlib
import io
import json
import os
import pathlib
import random
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
from absl import flags
from PIL import Image
from tensorboardX import record_writer

from semppl_jax import checkpoint, main
from semppl_jax.data import (
  array_files,
  images,
  label_maps,
  masks,
  tfds_files,
  tfrecords,
)
from semppl_jax.data import (
  labels as labels_lib,
)
from semppl_jax.errors import UserError
from semppl_jax.tools import mask_store, to_array_record
from semppl_jax.weights import files as files_lib
from semppl_jax.weights import load as load_lib
from semppl_jax.weights import match_names
from semppl_jax.workdir import lock, metrics
from tests.helpers import golden, objectnet_data, tfds_data
from tests.resilience import fuzz_mutations

_ROOT = pathlib.Path(__file__).parents[2]
Files = dict[str, bytes]  # by name, '/' in it
Mutation = Callable[[random.Random, bytes, list[bytes]], bytes]


class Target(NamedTuple):
  """A reader, or some that are alike."""

  seeds: Callable[[pathlib.Path], list[Files]]  # may use an empty folder
  read: Callable[[pathlib.Path], Any]
  aware: Mapping[str, Mutation] = {}  # by the end of a file's name
  megabytes: int = 200  # that reading may take at most


def _contents(folder: pathlib.Path) -> Files:
  paths = [path for path in sorted(folder.rglob('*')) if path.is_file()]
  return {str(p.relative_to(folder)): p.read_bytes() for p in paths}


# -- Weights --


def _weights(folder):
  found = load_lib.load_checkpoint(golden.path('release_checkpoint_tiny.pkl'))
  load_lib.save_safetensors(folder / 'x.safetensors', found)
  return [_contents(folder)]


def _read_weights(folder):
  found = load_lib.load_checkpoint(folder / 'x.safetensors')
  for tree in (found.params, found.state):
    for leaves in tree.values():
      assert all(np.isfinite(leaf).all() for leaf in leaves.values())


# -- Images --


def _images(folder):
  photo = np.asarray(tfds_data.photos(1, seed=0, size=(24, 40))[0])
  found = []
  for mode, kind, options in (
    ('RGB', 'JPEG', {}), ('RGB', 'JPEG', {'progressive': True}),
    ('RGB', 'JPEG', {'exif': b'Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0'}),
    ('CMYK', 'JPEG', {}), ('L', 'JPEG', {'restart_marker_blocks': 1}),
    ('RGB', 'PNG', {}), ('P', 'PNG', {'transparency': 0}), ('1', 'PNG', {}),
    ('I;16', 'PNG', {}), ('RGBA', 'PNG', {}), ('P', 'GIF', {'interlace': 1}),
    ('RGB', 'BMP', {}), ('P', 'BMP', {}), ('RGB', 'WEBP', {}),
    ('RGBA', 'WEBP', {'lossless': True}), ('RGB', 'TIFF', {}),
    ('RGB', 'TIFF', {'compression': 'tiff_lzw'}),
    ('RGB', 'TIFF', {'compression': 'jpeg'}), ('I;16', 'TIFF', {}),
  ):  # fmt: skip
    image = Image.fromarray(photo)
    if mode == 'I;16':
      image = Image.fromarray(photo[..., 0].astype(np.uint16) * 257)
    file = io.BytesIO()
    image.convert(mode).save(file, kind, **options)
    found.append({'x': file.getvalue()})
  interlaced = (_ROOT / 'tests/golden_data/jpeg').glob('*.jp*g')
  return found + [{'x': path.read_bytes()} for path in sorted(interlaced)[:2]]


def _read_image(folder):
  data = (folder / 'x').read_bytes()
  for side in (None, 16):
    image = images.load(data, side)
    assert image.dtype == np.uint8 and image.ndim == 3, image.shape
    assert image.shape[2] == 3 and image.size, image.shape
    assert side is None or max(image.shape) <= max(side, 3)


# -- Labels and masks --

_NAMES = [f'n{i % 3:08d}/n{i % 3:08d}_{i}.JPEG' for i in range(60)]


def _lists(folder):
  lines = [name.rpartition('/')[2] for name in _NAMES[:9]]
  return [{'x.txt': '\n'.join(x).encode()} for x in (lines, _NAMES[3:30])]


def _read_list(folder):
  wanted = labels_lib.read_list(str(folder / 'x.txt'))
  known = np.arange(60) % 3
  found = labels_lib.select_listed(known, _NAMES, wanted, 'labels.file x.txt')
  assert found.dtype == np.int32 and 0 < sum(found >= 0) <= len(wanted)


def _label_maps(folder):
  objectnet_data.write(folder, {})
  return [_contents(folder)]


def _read_label_maps(folder):
  for numbers in label_maps._imagenet_classes(folder / 'mappings').values():
    assert all(0 <= number < 1000 for number in numbers)


_LAYOUT = masks.Layout('folder x', 'abc', 13, 5, 'by hand; 1')


def _masks(folder):
  mask_store.create(folder, _LAYOUT)
  for shard in range(3):
    own = [np.eye(9 + i, 20, dtype=bool) for i in _LAYOUT.ids(shard)]
    mask_store.write_shard(folder, _LAYOUT, shard, own[:-1] + [None])
  return [_contents(folder)]


def _read_masks(folder):
  opened = masks.Masks(folder, 'abc', 13)
  for image in range(13):
    mask = opened.read(image)
    assert mask is None or (mask.dtype == bool and mask.ndim == 2)


# -- Arrays and records --


def _npz(folder):
  random = np.random.RandomState(0)
  make = lambda *shape: random.randint(0, 256, shape).astype(np.uint8)
  labels = np.arange(6)
  np.savez(folder / 'a.npz', train_images=make(6, 4, 4), train_labels=labels)
  np.savez_compressed(
    folder / 'b.npz', train_images=make(6, 4, 4, 3), train_labels=labels,
    test_images=make(6, 4, 4, 3), test_labels=labels.astype(np.uint8),
  )  # fmt: skip
  return [{'x.npz': data} for data in _contents(folder).values()]


def _read_npz(folder):
  for pixels, labels in array_files.read(str(folder / 'x.npz')).values():
    assert pixels.dtype == np.uint8 and pixels.ndim == 4 and pixels.size
    assert labels.shape == pixels.shape[:1] and labels.dtype.kind in 'iu'
    assert labels.min() >= -1


def _tfrecords(folder):
  writer = record_writer.RecordWriter(str(folder / 'x.tfrecord'))
  for size in (0, 1, 5000, 30):
    writer.write(bytes(size))
  writer.close()
  return [_contents(folder)]


def _read_tfrecords(folder):
  records = list(tfrecords.read(folder / 'x.tfrecord', 4))
  assert len(records) == 4 and all(type(x) is bytes for x in records)


def _write_tfds(folder, **options):
  examples = tfds_data.examples('imagenet_v2', [0, 1, 1, 2])
  return tfds_data.write(folder, 'imagenet_v2', {'test': examples}, **options)


def _tfds(folder):
  own = _write_tfds(folder)
  os.environ['XDG_CACHE_HOME'] = str(folder / 'none')
  tfds_files.find('', str(own)).open('test')
  seed = _contents(own)
  # The index's name has the time in it, which is another for every case.
  index = next(name for name in seed if 'index' in name)
  seed['index.npz'] = seed.pop(index)
  return [seed]


def _read_tfds(folder):
  os.utime(folder / 'dataset_info.json', (0, 0))
  (folder / 'index.npz').rename(folder / 'semppl_jax_index_test_0.npz')
  _check_split(folder)
  os.unlink(folder / 'semppl_jax_index_test_0.npz')
  _check_split(folder)


def _check_split(folder):
  assert isinstance(tfds_files.data_dir(str(folder)), str)
  source, names = tfds_files.find('', str(folder)).open('test')
  assert source.labels.dtype == np.int32 and source.labels.ndim == 1
  assert len(source) == len(source.names) and all(source.names)
  assert source.labels.max(initial=-1) < max(len(names), 1)
  for index in range(len(source)):
    try:
      images.decode(source[index]['image'])
    except images.Unreadable:
      continue


def _copied_tfds(folder):
  return [_contents(_write_tfds(folder, file_format='tfrecord'))]


def _read_copied_tfds(folder):
  try:
    to_array_record.convert(folder)
  except OSError as error:  # such as a name that is too long, as documented
    raise UserError(error.strerror) from error


# -- What runs write --


def _runs(folder):
  checkpointer = checkpoint.Checkpointer(str(folder), keep=1)
  with contextlib.closing(checkpointer) as saved:
    leaves = {'m': {'w': np.ones((2, 3), np.float32)}, 'n': np.int32(3)}
    saved.save(3, leaves, {'step': 3, 'seen': [1, 2]})
  return [_contents(folder)]


def _read_run(folder):
  for step in checkpoint.steps(str(folder)):
    found = checkpoint.read(str(folder), step, ('',))
    assert found["state['m']['w']"].tolist() == [[1, 1, 1]] * 2
    assert found["state['n']"] == 3


_CONFIG = {
  'seed': 0,
  'encoder': {'encoder': 'resnet50', 'padding': 'same', 'bn_eps': 1e-5},
  'views': {'area': [0.1, 1.0]},
}


def _json(folder):
  rows = [{'step': i, 'loss': 1.5, 'accuracy': None} for i in range(5)]
  return [{
    'config.json': json.dumps(_CONFIG, indent=2).encode(),
    'metrics.jsonl': b'\n'.join(json.dumps(row).encode() for row in rows),
    'results.json': json.dumps({'knn_top1': 0.5, 'rows': rows}).encode(),
    'mapping.json': json.dumps({'a/b': 'c/d', 'e': 'f'}).encode(),
  }]  # fmt: skip


def _read_json(folder):
  failures = []
  tasks = (
    lambda: lock.claim(str(folder), _CONFIG),
    lambda: files_lib._run_settings(folder / 'config.json'),
    lambda: [row['step'] for row in metrics.read(str(folder))],
    lambda: metrics.MetricsWriter(str(folder), step=3).close(),
    lambda: metrics.read_json(folder / 'results.json'),
    lambda: match_names._read(str(folder / 'mapping.json')),
  )
  for task in tasks:
    try:
      task()
    except UserError as error:
      failures.append(error)
  if failures:
    raise failures[0]


# -- The command line --

_COMMANDS = (
  '--config.loss.alpha=0.5\n--config.queue.capacity=64\n--workdir=x',
  '--config.views.large_area=(0.5, 1.0)\n--config.dataset.name=digits',
  '--config.progress=False\n--config.loss.semantic_invariance_weight=1',
  '--config.encoder.selective_kernels=true\n--config.seed=-1\n--num_processes=2',
)


def _commands(folder):
  return [{'arguments': text.encode()} for text in _COMMANDS]


def _read_command(folder):
  text = (folder / 'arguments').read_text('utf-8', 'surrogateescape')
  file = f'--config={_ROOT / "experiments" / "digits.py"}'
  more = [part for part in text.split('\n') if 'help' not in part]
  flags.FLAGS.unparse_flags()
  argv = ['main', file, *more]
  try:
    with mock.patch.object(sys, 'argv', argv):  # ml_collections looks there
      main._parse(argv)
  except SystemExit as leaving:  # a flag that only asks for words
    assert leaving.code in (0, 1)


TARGETS = {
  'safetensors': Target(
    _weights, _read_weights, {'.safetensors': fuzz_mutations.safetensors}
  ),
  # MAX_PIXELS in RGB, and while they are converted.
  'images': Target(_images, _read_image, megabytes=1600),
  'lists': Target(_lists, _read_list, {'.txt': fuzz_mutations.lines}),
  'label_maps': Target(
    _label_maps, _read_label_maps, {'.json': fuzz_mutations.json_file}
  ),
  'masks': Target(_masks, _read_masks, {'.json': fuzz_mutations.json_file}),
  'npz': Target(_npz, _read_npz, {'.npz': fuzz_mutations.npz}),
  'tfrecords': Target(_tfrecords, _read_tfrecords),
  'tfds': Target(
    _tfds, _read_tfds,
    {'.json': fuzz_mutations.json_file, '.npz': fuzz_mutations.npz},
  ),
  'to_array_record': Target(
    _copied_tfds, _read_copied_tfds, {'.json': fuzz_mutations.json_file}
  ),
  'checkpoints': Target(
    _runs, _read_run,
    {'metadata': fuzz_mutations.json_file, '.json': fuzz_mutations.json_file},
  ),
  'json': Target(
    _json, _read_json,
    {'.json': fuzz_mutations.json_file, '.jsonl': fuzz_mutations.json_lines},
  ),
  'commands': Target(_commands, _read_command),
}  # fmt: skip
