"""Images per second from a bucket whose server answers after a while.

  pip install '.[s3,benchmark]'
  python -m benchmarks.object_storage --rounds=5

A server on this machine speaks as much of S3 as reading needs, and answers each
request after --latency milliseconds. The same JPEGs (500 x 375, as large as
ImageNet's, benchmarks/synthetic_photos.py) lie in a folder and in a file of
array_record, on the disk (in the system's cache, that is) and in the bucket;
`data.pipeline` reads and decodes them in random order onto a canvas of 512.
Ways take turns, round after round; figures are medians over the rounds, with
their range. `threads of a disk`: as many as there are cores, as files on a disk
are read. Prints a table in Markdown.
"""

import asyncio
import functools
import multiprocessing
import os
import pathlib
import tempfile
import urllib.parse
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from absl import app, flags
from array_record.python import array_record_data_source, array_record_module

from benchmarks import host_crops, synthetic_photos
from semppl_jax import storage
from semppl_jax.data import array_records, datasets, pipeline, retry, sources
from semppl_jax.storage import objects

_PHOTOS = flags.DEFINE_integer('photos', 48, 'Different files.')
_COPIES = flags.DEFINE_integer('copies', 20, 'Of each file.')
_LATENCY = flags.DEFINE_float('latency', 30.0, 'Milliseconds of a request.')
_ROUNDS = flags.DEFINE_integer('rounds', 5, 'Of all ways in turn.')
_SECONDS = flags.DEFINE_float('seconds', 3.0, 'Of each measurement.')
_WORKERS = flags.DEFINE_integer('workers', 0, 'Processes that read and decode.')

_CANVAS = pipeline.Images(canvas=(512, 512))
_BUCKET = 's3://bucket'
_RECORDS = 'photos.array_record'


class Server:
  """Objects of a folder as S3 gives them, each request after a delay."""

  def __init__(self, folder: str, delay: float):
    self._folder, self._delay = pathlib.Path(folder), delay

  def start(self) -> int:
    """Starts it in a process of its own; the port."""
    ours, its = multiprocessing.get_context('spawn').Pipe()
    context = multiprocessing.get_context('spawn')
    context.Process(target=self._run, args=(its,), daemon=True).start()
    return ours.recv()

  def _run(self, connection: Any) -> None:
    asyncio.run(self._serve(connection))

  async def _serve(self, connection: Any) -> None:
    server = await asyncio.start_server(self._talk, '127.0.0.1', 0, backlog=512)
    connection.send(server.sockets[0].getsockname()[1])
    await server.serve_forever()

  async def _talk(self, reader: Any, writer: Any) -> None:
    try:
      while head := await reader.readuntil(b'\r\n\r\n'):
        line, *rest = head.decode().split('\r\n')
        pairs = (one.partition(':') for one in rest)
        headers = {name.lower(): value.strip() for name, _, value in pairs}
        await asyncio.sleep(self._delay)
        status, kind, body = self._answer(line.split()[1], headers)
        writer.write(
          f'HTTP/1.1 {status}\r\nContent-Type: {kind}\r\n'
          f'Content-Length: {len(body)}\r\n\r\n'.encode()
        )
        writer.write(body)
        await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
      pass
    finally:
      writer.close()

  def _answer(self, address: str, headers: Any) -> tuple[str, str, bytes]:
    path, _, query = address.partition('?')
    _, _, key = urllib.parse.unquote(path).strip('/').partition('/')
    if 'list-type=2' in query:
      prefix = urllib.parse.parse_qs(query).get('prefix', [''])[0]
      return '200 OK', 'application/xml', self._listing(prefix).encode()
    with (self._folder / key).open('rb') as file:
      if 'range' not in headers:
        return '200 OK', 'image/jpeg', file.read()
      first, last = headers['range'].removeprefix('bytes=').split('-')
      file.seek(int(first))
      part = file.read(int(last) + 1 - int(first))
    return '206 Partial Content', 'application/octet-stream', part

  def _listing(self, prefix: str) -> str:
    entries = [
      f'<Contents><Key>{path.relative_to(self._folder)}</Key>'
      f'<Size>{path.stat().st_size}</Size><ETag>"0"</ETag>'
      '<LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>'
      for path in sorted(self._folder.rglob('*'))
      if path.is_file()
      and str(path.relative_to(self._folder)).startswith(prefix)
    ]
    return (
      '<?xml version="1.0"?><ListBucketResult><IsTruncated>false'
      f'</IsTruncated>{"".join(entries)}</ListBucketResult>'
    )


def write(folder: str, photos: list[bytes], copies: int) -> None:
  """The photos, so many times, as files of 10 classes and as records."""
  writer = array_record_module.ArrayRecordWriter(
    os.path.join(folder, _RECORDS), 'group_size:1'
  )
  for i in range(copies * len(photos)):
    photo = photos[i % len(photos)]
    path = pathlib.Path(folder, 'photos', str(i % 10), f'{i:05}.jpg')
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(photo)
    writer.write(photo)
  writer.close()


def from_folder(folder: str) -> sources.Source:
  """The files, of a folder on the disk or in the bucket."""
  found = datasets.folders.search(f'{folder}/photos')
  return datasets.files(found.train, found.labels)


def from_records(folder: str, count: int) -> sources.Source:
  """The records, likewise."""
  path = f'{folder}/{_RECORDS}'
  if storage.is_remote(path):
    size = objects.stat(storage.path(path)).size
    part = array_records.Part(path, size, 0, count)
    data = array_records.Records([part], retry.remote)
  else:
    data = array_record_data_source.ArrayRecordDataSource(path)
  return sources.Records(
    np.zeros(count, np.int32),
    functools.partial(_get, data),
    encoded=True,
    remote=storage.is_remote(path),
  )


def _get(data: Any, index: int) -> bytes:
  return data[index]


def rate(source: sources.Source, threads: int | None = None) -> float:
  """Images per second of endless batches."""
  start: Callable[[], Iterator[Any]] = lambda: pipeline.batches(
    source, source.labels, seed=0, batch_size=64, start_step=0,
    num_steps=10**6, images=_CANVAS, workers=_WORKERS.value, threads=threads,
  )  # fmt: skip
  return host_crops.rate(start, _SECONDS.value)['images_per_second']


def _cores() -> int:
  return len(os.sched_getaffinity(0))


def main(unused_argv: list[str]) -> None:
  """Measures, and prints the table."""
  photos = synthetic_photos.photos(_PHOTOS.value)
  count = len(photos) * _COPIES.value
  os.environ.setdefault('AWS_ACCESS_KEY_ID', 'none')
  os.environ.setdefault('AWS_SECRET_ACCESS_KEY', 'none')
  os.environ.setdefault('AWS_DEFAULT_REGION', 'us-east-1')
  with tempfile.TemporaryDirectory() as folder:
    write(folder, photos, _COPIES.value)
    port = Server(folder, _LATENCY.value / 1000).start()
    os.environ['AWS_ENDPOINT_URL'] = f'http://127.0.0.1:{port}'
    bucket = f'bucket, {_LATENCY.value:g} ms a request'
    ways = {}
    for place, where in (('disk', folder), (bucket, _BUCKET)):
      ways[place, 'folder'] = functools.partial(rate, from_folder(where))
      ways[place, 'array_record'] = functools.partial(
        rate, from_records(where, count)
      )
    slow = f'{bucket}, threads of a disk'
    for kind in ('folder', 'array_record'):
      source = ways[bucket, kind].args[0]
      ways[slow, kind] = functools.partial(rate, source, _cores())
    found = {way: [] for way in ways}
    for turn in range(_ROUNDS.value):
      for way in list(ways)[:: 1 if turn % 2 else -1]:
        found[way].append(ways[way]())
  size = sum(map(len, photos)) / len(photos) / 1000
  print(
    f'{count} JPEGs of {size:.0f} kB, {_cores()} cores, {_WORKERS.value} '
    f'workers, {_ROUNDS.value} rounds of {_SECONDS.value:g} s:\n\n'
    '| from | folder, images/s | array_record, images/s |\n| --- | --- | --- |'
  )
  for place in ('disk', bucket, slow):
    cells = (
      f'{np.median(x):.0f} ({min(x):.0f} to {max(x):.0f})'
      for x in (found[place, kind] for kind in ('folder', 'array_record'))
    )
    print(f'| {place} | {" | ".join(cells)} |')


if __name__ == '__main__':
  app.run(main)
