"""A disk that does not answer at once; workers that are killed."""

import errno
import multiprocessing
import os
import pickle
import resource
import signal

import numpy as np
import pytest
from absl import flags

from semppl_jax.data import image_files, images, pipeline, retry, sources
from semppl_jax.data import tfds_files as tfds_files_lib
from semppl_jax.errors import UserError
from tests.helpers import tfds_data


@pytest.fixture
def pauses(monkeypatch):
  """Seconds that were waited for, of which none pass."""
  waited = []
  monkeypatch.setattr(retry.time, 'sleep', waited.append)
  return waited


def _failing(monkeypatch, number, times):
  """Opening an image fails so many times."""
  left = [times]

  def flaky(*args):
    if left[0]:
      left[0] -= 1
      raise OSError(number, os.strerror(number))
    return open(*args)

  monkeypatch.setattr(image_files, 'open', flaky, raising=False)


@pytest.mark.parametrize('number', [errno.EIO, errno.ESTALE, errno.ETIMEDOUT])
def test_what_is_read_at_the_last_try_is_the_same(
  tmp_path, monkeypatch, pauses, number
):
  path = tmp_path / 'a.png'
  path.write_bytes(b'some')
  _failing(monkeypatch, number, 3)
  assert image_files.read(str(path)) == b'some'
  assert len(pauses) == 3 and pauses == sorted(pauses)


def test_a_disk_that_does_not_answer_ends_the_run(
  tmp_path, monkeypatch, pauses
):
  """And no other image stands in, which the next run would not see."""
  for name in 'ab':
    (tmp_path / f'{name}.png').write_bytes(b'no image')
  paths = [str(tmp_path / f'{name}.png') for name in 'ab']
  source = sources.Records(
    [0, 0], lambda index: image_files.read(paths[index]), encoded=True
  )
  _failing(monkeypatch, errno.EIO, 99)
  with pytest.raises(UserError) as error:
    list(
      pipeline.batches(
        source, source.labels, seed=0, batch_size=2, start_step=0, num_steps=1,
        threads=0, images=pipeline.Images(canvas=(4, 4)),
      )
    )  # fmt: skip
  text = str(error.value)
  assert '.png cannot be read: Input/output error, 4 times' in text
  assert 'the same command goes on' in text and '\n' not in text


@pytest.mark.parametrize('number', [errno.ENOENT, errno.EACCES])
def test_a_file_that_is_gone_is_unreadable_at_once(monkeypatch, pauses, number):
  _failing(monkeypatch, number, 1)
  with pytest.raises(images.Unreadable, match=os.strerror(number)):
    image_files.read('a.png')
  assert not pauses


@pytest.fixture
def cifar(tmp_path):
  splits = {'train': tfds_data.examples('cifar10', [0, 1, 2, 3])}
  tfds_data.write(tmp_path, 'cifar10', splits)
  source = tfds_files_lib.find('cifar10', str(tmp_path)).open('train').source
  whole = [source[i] for i in range(4)]
  return pickle.loads(pickle.dumps(source)), whole  # its files are not open


@pytest.fixture
def no_more_files():
  """A call after which this process cannot open any, and one that ends it."""
  limits = resource.getrlimit(resource.RLIMIT_NOFILE)
  set_limit = lambda n: resource.setrlimit(
    resource.RLIMIT_NOFILE, (n, limits[1])
  )
  yield lambda: set_limit(3), lambda: set_limit(limits[0])
  set_limit(limits[0])


def test_a_record_file_that_opens_at_the_second_try(
  cifar, monkeypatch, no_more_files
):
  """Array_record would never open it again, and all its images were lost."""
  source, whole = cifar
  start, end = no_more_files
  monkeypatch.setattr(retry.time, 'sleep', lambda seconds: end())
  start()
  assert source[1] == whole[1]
  assert [source[i] for i in range(4)] == whole


def test_a_record_file_that_does_not_open_ends_the_run(
  cifar, pauses, no_more_files
):
  source, whole = cifar
  start, end = no_more_files
  start()
  with pytest.raises(UserError, match='Too many open files.*4 times') as error:
    source[1]
  end()
  assert '\n' not in str(error.value) and len(pauses) == 3
  assert [source[i] for i in range(4)] == whole


@pytest.mark.long
@pytest.mark.parametrize('workers', [1, 2])
def test_a_worker_that_is_killed(workers):
  flags.FLAGS.mark_as_parsed()  # as `main` does; grain's workers ask for it
  source = sources.Records(
    np.zeros(9, int), lambda index: np.full((2, 3, 3), index, np.uint8)
  )
  every = pipeline.batches(
    source, source.labels, seed=0, batch_size=6, start_step=0, num_steps=10**6,
    workers=workers,
  )  # fmt: skip
  next(every)
  os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
  with pytest.raises(UserError, match='was killed .* same command goes on'):
    for _ in range(1000):
      next(every)
