"""Data sets in a bucket, of a server on this machine that speaks as S3 does."""

import csv
import logging
import os
import subprocess
import sys
import threading

import numpy as np
import pytest
from absl import flags
from PIL import Image

from semppl_jax import config, storage
from semppl_jax.data import (
  datasets,
  image_files,
  images,
  label_maps,
  listing,
  masks,
  pipeline,
  python_objects,
  retry,
  transfer_sets,
)
from semppl_jax.data import labels as labels_lib
from semppl_jax.errors import UserError
from semppl_jax.storage import clients, objects
from semppl_jax.storage.errors import told
from semppl_jax.tools import mask_store
from tests.helpers import bucket as bucket_lib
from tests.helpers import objectnet_data, tfds_data
from tests.helpers import proxy as proxy_lib

_DENIED = proxy_lib.refuse(403, 'AccessDenied')
_SECRET = 'wJalrXUtnFEMIK7MDENGbPxRfiCYEXAMPLEKEY'


@pytest.fixture(scope='module')
def server(s3_server):
  """A proxy before the server; `requests` are what came."""
  logging.getLogger('werkzeug').setLevel(logging.ERROR)
  with proxy_lib.Proxy(s3_server['AWS_ENDPOINT_URL']) as proxy:
    ours = {
      'AWS_ENDPOINT_URL': proxy.endpoint,
      'AWS_SECRET_ACCESS_KEY': _SECRET,
    }
    with bucket_lib.told(s3_server | ours):
      place = storage.path('s3://birds/x')
      clients.of(place)._fs.call_s3('create_bucket', Bucket='birds')
      yield proxy


@pytest.fixture(autouse=True)
def nothing_happens(server):
  server.rule = None
  server.requests.clear()
  yield
  server.rule = None


@pytest.fixture
def pauses(monkeypatch):
  """Seconds that were waited for, of which none pass."""
  waited = []
  monkeypatch.setattr(retry.time, 'sleep', waited.append)
  return waited


@pytest.fixture(scope='module')
def folder(server, tmp_path_factory):
  """A folder of images on the disk, a copy of which is in the bucket."""
  root = tmp_path_factory.mktemp('folder')
  random = np.random.default_rng(0)
  names = [f'train/{c}/{i}.png' for c in 'abcdefgh' for i in range(3)]
  names += ['train/a/deep/é %20+&=?#.png', 'train/b/no image.txt']
  names += ['val/a/1.png', 'val/c/2.JPG', 'unlabelled/1.png', 'other/1.png']
  names += ['train/a/.hidden.png', 'unlabelled/thumbs.db']
  for name in names:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    pixels = random.integers(0, 256, (9, 7, 3), np.uint8)
    if name.endswith(('.txt', '.db')):
      (root / name).write_bytes(b'some')
    else:
      kind = 'JPEG' if name.endswith('.JPG') else 'PNG'
      Image.fromarray(pixels).save(root / name, kind)
  objects.upload(root, storage.path('s3://birds/folder'))
  # What a console makes for a folder is no file.
  objects.write(storage.path('s3://birds/folder'), b'')
  server_key = {'Bucket': 'birds', 'Key': 'folder/train/', 'Body': b''}
  place = storage.path('s3://birds/x')
  clients.of(place)._fs.call_s3('put_object', **server_key)
  return root


def settings(name, path, **others):
  cfg = config.default().dataset
  cfg.update({'name': name, 'path': str(path), 'image_size': 8, **others})
  return cfg


def described(data):
  """All of a data set but what its images are."""
  of = lambda source: source and (source.labels.tolist(), source.names)
  return data._replace(train=of(data.train), test=of(data.test), notes=())


def passes(cfg, **options):
  """What a run sees, and an evaluation."""
  data = datasets.load(cfg)
  kwargs = {'seed': 3, 'batch_size': 10, 'start_step': 1, 'num_steps': 4}
  how = pipeline.whole(cfg, data)
  found = list(
    pipeline.batches(
      data.train, data.train.labels, images=how, **kwargs | options
    )
  )
  crops = pipeline.Images(crop=(8, 0.9)) if data.train.encoded else how
  options = {k: v for k, v in options.items() if k == 'workers'}
  for part in filter(None, (data.train, data.test)):
    found += pipeline.in_order(part, batch_size=7, images=crops, **options)
  return data, found


def same(one, other):
  if isinstance(one, (list, tuple)):
    assert type(one) is type(other) and len(one) == len(other)
    for pair in zip(one, other):
      same(*pair)
  elif one is not None:
    assert one.dtype == other.dtype and one.shape == other.shape
    assert one.tobytes() == other.tobytes()


def test_a_folder_is_the_same(folder):
  data, found = passes(settings('folder', folder))
  there, batches = passes(settings('folder', 's3://birds/folder'))
  assert described(there) == described(data) and there.train.remote
  assert [n.partition(': ')[2] for n in there.notes] == [
    n.partition(': ')[2] for n in data.notes
  ]
  assert len(there.notes) == 3 and 'deep/é %20+&=?#.png' in there.train.names
  same(batches, found)


@pytest.mark.parametrize('slash', ['', '/'])
def test_a_folder_is_listed_once(folder, server, slash):
  datasets.load(settings('folder', f's3://birds/folder{slash}'))
  assert [method for method, _ in server.requests] == ['GET']
  assert 'list-type=2' in server.requests[0][1]


def test_a_listing_of_several_pages(folder, server, monkeypatch):
  whole = [*map(sorted, datasets.load(settings('folder', folder)).train.names)]
  ask = clients.S3.listed
  client = clients.of(storage.path('s3://birds/x'))
  call = client._fs.call_s3
  monkeypatch.setattr(
    client._fs, 'call_s3', lambda *args, **kw: call(*args, MaxKeys=7, **kw)
  )
  monkeypatch.setattr(clients.S3, 'listed', ask)
  there = datasets.load(settings('folder', 's3://birds/folder'))
  assert [*map(sorted, there.train.names)] == whole and len(server.requests) > 3


@pytest.mark.long
def test_worker_processes_change_nothing(folder, server):
  flags.FLAGS.mark_as_parsed()  # as `main` does; grain's workers ask for it
  _, found = passes(settings('folder', folder))
  # This process has used its client: workers must not inherit it.
  path = 's3://birds/folder'
  _, batches = passes(settings('folder', path), workers=2)
  same(batches, found)
  server.rule = always(_IMAGE, proxy_lib.refuse(400, 'ExpiredToken'))
  assert 'expired (ExpiredToken): renew them' in said(workers=1)


def test_a_fork_reads_too(folder):
  path = 's3://birds/folder/train/a/0.png'
  whole = image_files.read(path)
  ours, its = os.pipe()
  child = os.fork()
  if not child:  # no pytest here: whatever happens, it ends at once
    try:
      threading.Timer(30, os._exit, [3]).start()
      os.write(its, image_files.read(path))
    finally:
      os._exit(0)
  os.close(its)
  with os.fdopen(ours, 'rb') as file:
    assert file.read() == whole
  os.waitpid(child, 0)


def test_a_list_of_labels_and_images_to_embed(folder, tmp_path):
  there = 's3://birds/folder'
  rows = [['name', 'class'], ['b/0.png', 'b'], ['a/1.png', 'a']]
  with (tmp_path / 'labels.csv').open('w', newline='') as file:
    csv.writer(file).writerows(rows)
  objects.put(tmp_path / 'labels.csv', storage.path('s3://birds/labels.csv'))
  assert labels_lib.read_list('s3://birds/labels.csv') == labels_lib.read_list(
    str(tmp_path / 'labels.csv')
  )
  one, other = (
    python_objects.source(f'{root}/train') for root in (folder, there)
  )
  assert one.names == [n.replace(there, str(folder)) for n in other.names]
  assert [r['image'] for r in one] == [r['image'] for r in other]
  with pytest.raises(UserError, match='no file'):
    python_objects.source(f'{there}/train/x.png')


def test_a_set_for_transfer(server, tmp_path):
  parts = [f'train/{c}/{i}' for c in 'xy' for i in range(9)]
  for part in (*parts, 'test/x/1'):
    path = tmp_path / 'birdsnap' / f'{part}.png'
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new('RGB', (4, 4)).save(path)
  objects.upload(tmp_path, storage.path('s3://birds/sets'))
  server.requests.clear()
  cfg = settings('folder', tmp_path, seed=0)
  found = transfer_sets.load('birdsnap', cfg)
  cfg.path = 's3://birds/sets'
  there = transfer_sets.load('birdsnap', cfg)
  assert described(there.data) == described(found.data)
  assert len(server.requests) <= 2 and there.data.train.remote


def test_objectnet_is_the_same(server, tmp_path):
  shown = {
    'alarm_clock': tfds_data.photos(2, 0),
    'banana': tfds_data.photos(1, 1),
    'chair': tfds_data.photos(1, 2),
  }
  objectnet_data.write(tmp_path / 'o', shown)
  objects.upload(tmp_path / 'o', storage.path('s3://birds/o'))
  server.requests.clear()
  found = label_maps.objectnet(str(tmp_path / 'o'))
  there = label_maps.objectnet('s3://birds/o')
  assert sum('list-type=2' in path for _, path in server.requests) == 1
  same([*there.meanings], [*found.meanings])
  assert there.source.names == found.source.names and there.source.remote
  same([r['image'] for r in there.source], [r['image'] for r in found.source])


def test_arrays_are_the_same(tmp_path, monkeypatch):
  monkeypatch.setattr('semppl_jax.data.array_files._TRANSFER', 1000)
  random = np.random.default_rng(0)
  np.savez(
    tmp_path / 'a.npz',
    train_images=random.integers(0, 256, (20, 8, 8, 3), np.uint8),
    train_labels=np.arange(20) % 3,
    test_images=random.integers(0, 256, (7, 8, 8, 3), np.uint8),
    test_labels=np.arange(7) % 3,
  )
  objects.put(tmp_path / 'a.npz', storage.path('s3://birds/a.npz'))
  data, found = passes(settings('arrays', tmp_path / 'a.npz'))
  there, batches = passes(settings('arrays', 's3://birds/a.npz'))
  assert described(there) == described(data)
  same(batches, found)
  with pytest.raises(UserError, match='b.npz.*No such file'):
    datasets.load(settings('arrays', 's3://birds/b.npz'))


@pytest.fixture(scope='module')
def prepared(server, tmp_path_factory):
  """A data set of tfds; its copy is in the bucket."""
  root = tmp_path_factory.mktemp('tfds')
  splits = {
    'train': tfds_data.examples('oxford_flowers102', [0, 1, 2, 3] * 6),
    'test': tfds_data.examples('oxford_flowers102', [3, 2, 1], split='test'),
  }
  tfds_data.write(root, 'oxford_flowers102', splits, shards=3)
  objects.upload(root, storage.path('s3://birds/tfds'))
  return root


@pytest.mark.parametrize('split', ['train', 'train[:10]+train[60%:]'])
def test_array_records_are_the_same(prepared, server, split):
  cfg = settings('tfds:oxford_flowers102', prepared, train_split=split)
  data, found = passes(cfg)
  cfg.path = 's3://birds/tfds'
  there, batches = passes(cfg)
  assert described(there) == described(data) and there.train.remote
  same(batches, found)
  # Labels and names are beside the data now.
  server.requests.clear()
  cfg.path += '/oxford_flowers102/2.1.1'
  assert described(datasets.load(cfg)) == described(data)
  assert not [a for _, a in server.requests if a.endswith('-of-00003')]


def test_array_records_where_nothing_can_be_written(
  prepared, server, tmp_path, monkeypatch
):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  server.rule = lambda number, method, path: (
    _DENIED if method == 'PUT' else None
  )
  cfg = settings('tfds:oxford_flowers102', 's3://birds/tfds')
  cfg.train_split = 'train[:5]'
  datasets.load(cfg)
  assert list(tmp_path.rglob('*.npz'))


def test_a_shard_that_is_missing(prepared):
  place = storage.path('s3://birds/part')
  objects.upload(prepared, place)
  inside = place / 'oxford_flowers102/2.1.1'
  (name,) = [n for n in objects.names(inside) if 'train' in n and '00001-' in n]
  objects.remove([inside / name])
  with pytest.raises(UserError, match=f'has no {name}, a part of train'):
    datasets.load(settings('tfds:oxford_flowers102', place))


def test_masks_are_the_same(folder, tmp_path):
  data = datasets.load(cfg := settings('folder', folder))
  count = len(data.train)
  random = np.random.default_rng(0)
  drawn = [random.integers(0, 2, (6, 5)) > 0 for _ in range(count)]
  layout = masks.Layout('ours', data.fingerprint, count, 10, 'drawn')
  mask_store.create(tmp_path, layout)
  for shard in range(layout.num_shards):
    own = [drawn[i] if i % 4 else None for i in layout.ids(shard)]
    mask_store.write_shard(tmp_path, layout, shard, own)
  objects.upload(tmp_path, storage.path('s3://birds/masks'))
  cfg.masks = str(tmp_path)
  _, found = passes(cfg)
  cfg.path, cfg.masks = 's3://birds/folder', 's3://birds/masks'
  _, batches = passes(cfg)
  assert batches[0][0].masks is not None
  same(batches, found)


# -- what can go wrong --

_IMAGE = '/train/c/1.png'


def once(path, act):
  """Happens at the first request for a path."""
  left = [act]

  def rule(number, method, asked):
    return left.pop() if asked.endswith(path) and left else None

  return rule


def always(path, act):
  return lambda number, method, asked: act if asked.endswith(path) else None


_PASSES = {
  'cut off': proxy_lib.cut_body,
  'hung up': proxy_lib.cut_request,
  'error': proxy_lib.refuse(500, 'InternalError'),
  'slow down': proxy_lib.refuse(503, 'SlowDown'),
}


@pytest.mark.parametrize('what', _PASSES)
def test_what_passes_changes_nothing(folder, server, pauses, what):
  _, found = passes(settings('folder', folder))
  server.rule = once(_IMAGE, _PASSES[what])
  _, batches = passes(settings('folder', 's3://birds/folder'))
  same(batches, found)
  # A connection that is lost at once, the client makes anew by itself.
  assert 0.5 in pauses or what == 'hung up'


def said(path='s3://birds/folder', workers=0, **options):
  """The line of an error."""
  with pytest.raises(UserError) as error:
    passes(settings('folder', path, **options), workers=workers)
  chain, one = [], error.value
  while one is not None:
    chain.append(repr(one))
    one = one.__cause__ or (
      one.__context__ if not one.__suppress_context__ else None
    )
  assert _SECRET not in ' '.join(chain) and '\n' not in str(error.value)
  return str(error.value)


@pytest.mark.parametrize('what', _PASSES)
def test_what_lasts_ends_the_run(folder, server, pauses, what):
  """And no other image stands in, which the next run would not see."""
  server.rule = always(_IMAGE, _PASSES[what])
  line = said()
  assert f's3://birds/folder{_IMAGE} cannot be read: the server' in line
  assert 'does not answer' in line and 'the same command goes on' in line
  assert len([s for s in pauses if s == 8]) >= 1


@pytest.mark.parametrize(
  'status, code, words',
  [
    (400, 'ExpiredToken', 'expired (ExpiredToken): renew them'),
    (403, 'AccessDenied', 'no permission (AccessDenied)'),
    (403, 'InvalidAccessKeyId', 'not accepted (InvalidAccessKeyId)'),
  ],
)
def test_what_holds_for_all_images_ends_it_at_once(
  folder, server, pauses, status, code, words
):
  server.rule = always(_IMAGE, proxy_lib.refuse(status, code))
  line = said()
  assert line.startswith(f's3://birds/folder{_IMAGE} cannot be read: ')
  assert words in line and not pauses


def test_credentials_that_no_server_gives_do_not_come_by_waiting():
  """Their line says what to do, whatever did not answer behind them."""

  class EndpointConnectionError(Exception):
    pass

  class CredentialRetrievalError(Exception):
    pass

  with pytest.raises(storage.StorageError) as error, told('s3://b/x', 'read'):
    try:
      raise EndpointConnectionError
    except EndpointConnectionError as behind:
      raise CredentialRetrievalError from behind
  assert 'no credentials' in str(error.value)
  assert not isinstance(error.value, storage.NoAnswerError)


def test_an_object_that_is_gone(folder, server):
  """As a file that is gone: another of its kind stands in."""
  data = datasets.load(cfg := settings('folder', 's3://birds/folder'))
  row = data.train.names.index('c/1.png')
  server.rule = always(_IMAGE, proxy_lib.refuse(404, 'NoSuchKey'))
  told = []
  list(
    pipeline.batches(
      data.train, data.train.labels, seed=0, batch_size=10, start_step=0,
      num_steps=4, images=pipeline.whole(cfg, data),
      on_unreadable=lambda *what: told.append(what),
    )
  )  # fmt: skip
  assert told == [('c/1.png', f'No such file or directory (id {row})')]
  with pytest.raises(images.Unreadable, match='No such file'):
    image_files.read(f's3://birds/folder{_IMAGE}')
  line = said(on_corrupt='error')
  assert 'c/1.png cannot be decoded: No such file' in line


def test_a_bucket_or_a_folder_that_is_not_there(server):
  assert 's3://fishes: there is no such bucket' in said('s3://fishes/x')
  assert 'is not a folder' in said('s3://birds/none')
  assert 'hdfs://' in said('hdfs://birds/folder')
  line = said(f's3://me:{_SECRET}@birds/folder')
  assert 'password' in line
  server.rule = lambda number, method, path: _DENIED
  assert 's3://birds/folder cannot be listed: no permission' in said()
  cfg = settings('tfds:oxford_flowers102', 's3://birds/none')
  with pytest.raises(UserError, match='no permission'):
    datasets.load(cfg)
  server.rule = None
  with pytest.raises(UserError, match='no data set oxford_flowers102 in s3:'):
    datasets.load(cfg)


def test_a_walk_is_that_of_the_disk(folder):
  here = {
    os.path.relpath(parent, folder): (sorted(children), sorted(names))
    for parent, children, names in os.walk(folder)
  }
  root = 's3://birds/folder'
  with listing.once(root):
    there = {
      os.path.relpath(parent, root): (sorted(children), sorted(names))
      for parent, children, names in listing.walk(root)
    }
  assert there == here
  assert list(listing.walk('s3://birds/none')) == []
  assert listing.is_file(f'{root}/val/a/1.png')
  assert not listing.is_file(f'{root}/val/a') and listing.is_folder(root)


def test_a_disk_needs_no_client(folder):
  code = (
    'import sys; from semppl_jax.data import datasets, folders; '
    f'folders.search({str(folder)!r}); '
    'assert not {"s3fs", "gcsfs", "aiobotocore", "aiohttp"} & {*sys.modules}'
  )
  subprocess.run([sys.executable, '-c', code], check=True)


# -- the other cloud --


@pytest.fixture(scope='module')
def google(gs_server):
  with bucket_lib.told(gs_server):
    yield bucket_lib.make('gs')


def test_data_sets_of_the_other_cloud(google, folder, prepared):
  objects.upload(folder, storage.path(f'{google}/folder'))
  objects.upload(prepared, storage.path(f'{google}/tfds'))
  for name, here, there in (
    ('folder', folder, 'folder'),
    ('tfds:oxford_flowers102', prepared, 'tfds'),
  ):
    data, found = passes(settings(name, here))
    other, batches = passes(settings(name, f'{google}/{there}'))
    assert described(other) == described(data)
    same(batches, found)
  with pytest.raises(images.Unreadable, match='No such file'):
    image_files.read(f'{google}/folder/none.png')
  assert 'gs://fishes-x: there is no such bucket' in said('gs://fishes-x/y')
