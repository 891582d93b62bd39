"""An array_record copy of a data set that tfds prepared as tfrecord.

  python -m semppl_jax.to_array_record FOLDER

FOLDER is that of one version, with dataset_info.json; or one above it, such as
tfds's data_dir: then all versions below it are converted. The copy lies beside
the tfrecord files and takes as much room; these may be deleted afterwards. All
is as `tfds convert_format` would leave it, but needs no TensorFlow.

Both checksums of each record are verified. Called again after an interruption,
it goes on where it was: only whole files have the name of a shard, and only
when all are there does dataset_info.json say so.
"""

import argparse
import concurrent.futures
import contextlib
import multiprocessing
import os
import pathlib
import re
import signal
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import tqdm
from array_record.python import array_record_module

from semppl_jax.data import tfrecords
from semppl_jax.errors import UserError
from semppl_jax.tools import command
from semppl_jax.utils import files
from semppl_jax.utils.text import first_line

_INFO = 'dataset_info.json'


class OtherFormatError(UserError):
  """A data set that is stored neither as tfrecord nor as array_record."""


class Shard(NamedTuple):
  """A file to copy."""

  source: pathlib.Path
  target: pathlib.Path
  length: int  # records


def find(folder: str | pathlib.Path) -> list[pathlib.Path]:
  """The folders of versions: `folder` itself, or those below it.

  Raises:
    UserError: there is none.
  """
  folder = pathlib.Path(folder).expanduser()
  if (folder / _INFO).is_file():
    return [folder]
  # NAME/CONFIG/VERSION at most; downloads/ may have millions of files deeper.
  patterns = ('*', '*/*', '*/*/*')
  found = [p.parent for x in patterns for p in folder.glob(f'{x}/{_INFO}')]
  versions = [f for f in found if re.fullmatch(r'\d+\.\d+\.\d+', f.name)]
  if not versions:
    raise UserError(
      f'There is no {_INFO} in {folder}, nor in a folder NAME/VERSION or '
      'NAME/CONFIG/VERSION below it.'
    )
  return sorted(versions)


def convert(
  folder: pathlib.Path, *, workers: int = 1, overwrite: bool = False
) -> str:
  """Copies one version of a data set, or what its copy lacks.

  Args:
    folder: of the version.
    workers: processes, each of which copies one shard at a time.
    overwrite: True: also copies shards again that are there already.

  Returns:
    What was done, in words.

  Raises:
    OtherFormatError: it is not stored as tfrecord.
    UserError: the data set cannot be read, or the copy cannot be written.
    OSError: dataset_info.json cannot be written.
  """
  info = _read_info(folder)
  # Very old data sets do not say it.
  formats = [info.file_format or 'tfrecord', *info.alternative_file_formats]
  if formats[0] == 'array_record':
    return 'is stored as array_record, nothing to do'
  if 'tfrecord' not in formats:
    raise OtherFormatError(
      f'{folder} is stored as {", ".join(formats)}, and only tfrecord can be '
      'converted.'
    )
  shards = _shards(info, folder)
  lacking = [s for s in shards if overwrite or not _is_whole(s)]
  _copy(lacking, workers, str(folder))
  if 'array_record' not in formats:
    _announce(info, folder)
  elif not lacking:
    return 'is converted already'
  _tidy(shards)
  return (
    f'{len(lacking)} of {len(shards)} shards written as array_record'
    + ', the others were there' * (len(lacking) < len(shards))
  )


def convert_shard(shard: Shard) -> None:
  """Copies one shard; the target is whole or not there.

  Raises:
    UserError: the source is damaged, or the target cannot be written.
  """
  try:
    with files.atomic(shard.target) as part:
      # The option is tfds's: random access to each record.
      writer = array_record_module.ArrayRecordWriter(str(part), 'group_size:1')
      with contextlib.closing(writer):
        for record in tfrecords.read(shard.source, shard.length):
          writer.write(record)
          if not writer.ok():
            break  # `close` raises the reason
  except (OSError, RuntimeError) as e:  # array_record raises the latter
    raise UserError(
      f'{shard.source} cannot be copied to {shard.target.name}: {first_line(e)}'
    ) from e


def main(arguments: Sequence[str] | None = None) -> int:
  """The command line; returns the exit status."""
  parser = argparse.ArgumentParser(
    prog='python -m semppl_jax.to_array_record',
    description='An array_record copy of a data set that tfds prepared.',
  )
  parser.add_argument('FOLDER', help='of a version, or one above several')
  parser.add_argument(
    '--workers',
    type=int,
    default=min(8, os.cpu_count() or 1),
    help='processes, %(default)s by default',
  )
  parser.add_argument(
    '--overwrite', action='store_true', help='copy again what is there'
  )
  options = parser.parse_args(arguments)
  return command.status(lambda: _convert_all(options))


def _convert_all(options: argparse.Namespace) -> None:
  if options.workers < 1:
    raise UserError(f'--workers={options.workers}: it takes at least 1.')
  folders = find(options.FOLDER)
  for folder in folders:
    try:
      done = convert(
        folder, workers=options.workers, overwrite=options.overwrite
      )
      print(f'{folder}: {done}.')
    except OtherFormatError as e:
      if len(folders) == 1:
        raise
      print(e)


# -- The data set --


def _read_info(folder: pathlib.Path) -> Any:
  from tensorflow_datasets.core import dataset_info  # late: it takes a second

  try:
    return dataset_info.read_proto_from_builder_dir(folder)
  except Exception as e:  # one of many for a damaged file
    raise UserError(
      f'{folder} is not a data set that tfds can read: {first_line(e)}'
    ) from e


def _shards(info: Any, folder: pathlib.Path) -> list[Shard]:
  from tensorflow_datasets.core import dataset_info

  splits = dataset_info.get_split_dict_from_proto(info, folder, 'tfrecord')
  shards = []
  for name, split in splits.items():
    if not split.shard_lengths:
      raise UserError(f'{folder / _INFO} tells no shards of {name}.')
    here = split.filename_template
    there = here.replace(filetype_suffix='array_record')
    sources, targets = (
      [pathlib.Path(path) for path in names.sharded_filepaths(split.num_shards)]
      for names in (here, there)
    )
    if sources == targets:
      raise UserError(
        f'{folder}: files of {name} have one name for all formats.'
      )
    # Their names come from a file that may be anybody's.
    if any(path.parent != pathlib.Path(folder) for path in sources + targets):
      raise UserError(f'{folder / _INFO} names files of {name} elsewhere.')
    shards += map(Shard, sources, targets, split.shard_lengths)
  return shards


def _is_whole(shard: Shard) -> bool:
  """Whether the copy is there; its index is written last."""
  if not shard.target.is_file():
    return False
  reader = array_record_module.ArrayRecordReader(str(shard.target))
  whole = reader.ok() and reader.num_records() == shard.length
  with contextlib.suppress(RuntimeError):  # again what was not ok
    reader.close()
  return whole


def _announce(info: Any, folder: pathlib.Path) -> None:
  from tensorflow_datasets.core import dataset_info

  info.alternative_file_formats.append('array_record')
  files.write_text(folder / _INFO, dataset_info.get_dataset_info_json(info))


def _tidy(shards: list[Shard]) -> None:
  """Removes what killed processes left."""
  names = {shard.target.name for shard in shards}
  for folder in {shard.target.parent for shard in shards}:
    for part in folder.glob('*.part'):
      if part.name.rsplit('.', 2)[0] in names:
        part.unlink(missing_ok=True)


# -- Many shards --


def _copy(shards: list[Shard], workers: int, what: str) -> None:
  for shard in shards:
    if not shard.source.is_file():
      raise UserError(f'{shard.source}, with {shard.length} records, is gone.')
  sizes = [shard.source.stat().st_size for shard in shards]
  with tqdm.tqdm(
    total=sum(sizes),
    desc=what,
    unit='B',
    unit_scale=True,
    disable=None if shards else True,  # None: where nobody looks at it
  ) as bar:
    for index in _finished(shards, min(workers, len(shards))):
      bar.update(sizes[index])


def _finished(shards: list[Shard], workers: int) -> Iterator[int]:
  """Copies all; yields the index of each that is done."""
  if workers <= 1:
    for index, shard in enumerate(shards):
      convert_shard(shard)
      yield index
    return
  context = multiprocessing.get_context('spawn')
  pool = concurrent.futures.ProcessPoolExecutor(workers, context)
  try:
    with _without_interrupts():  # at Ctrl-C, begun shards are finished
      jobs = {pool.submit(convert_shard, s): i for i, s in enumerate(shards)}
    for job in concurrent.futures.as_completed(jobs):
      job.result()
      yield jobs[job]
  except concurrent.futures.BrokenExecutor as e:
    raise UserError('A worker process died; try fewer --workers.') from e
  finally:
    pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _without_interrupts() -> Iterator[None]:
  """Processes that are started meanwhile never see Ctrl-C."""
  before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
  try:
    yield
  finally:
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


if __name__ == '__main__':
  sys.exit(main())
