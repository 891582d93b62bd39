"""One job per folder, where there are no locks."""

import json
import os
import subprocess
import sys
import threading

import pytest

from semppl_jax import storage
from semppl_jax.errors import UserError
from semppl_jax.storage import lease, objects
from semppl_jax.workdir import lock
from tests.helpers import proxy as proxy_lib


@pytest.fixture
def soon(monkeypatch):
  monkeypatch.setattr(lease, 'SECONDS', 1.5)
  monkeypatch.setattr(lease, 'BEAT', 0.2)
  monkeypatch.setattr(lease, '_LOOK', 0.1)


def of_elsewhere(place, **more):
  """A lease of a job on another machine."""
  said = {'owner': 'process 7 on far', 'id': 'x', 'boot': 'other', 'pid': 7}
  return (json.dumps(said | more) + '\n').encode()


def fails_to_take(place, words):
  with pytest.raises(lease.TakenError, match=words):
    lease.take(place, print)


def test_a_living_process_of_this_machine_is_left_alone_at_once(bucket):
  place = bucket / 'run/.lock'
  mine = lease.take(place, print)
  fails_to_take(place, f'process {os.getpid()} on ')
  mine.release()
  assert not place.exists()
  lease.take(place, print).release()


def test_a_dead_process_of_this_machine_is_followed_at_once(bucket):
  code = (
    'import sys, os\nfrom semppl_jax import storage\n'
    'from semppl_jax.storage import lease\n'
    'lease.take(storage.path(sys.argv[1]), print)\nos._exit(1)'
  )
  place = bucket / 'run/.lock'
  subprocess.run([sys.executable, '-c', code, str(place)], check=False)
  assert place.exists()
  told = []
  lease.take(place, told.append).release()
  assert not told


def test_of_two_that_follow_a_dead_process_one_does(s3, monkeypatch):
  """The other's lease comes between this one's two looks."""
  place = s3 / 'run/.lock'
  dead, alive = of_elsewhere(place), of_elsewhere(place, id='y', pid=8)
  objects.write(place, dead)
  monkeypatch.setattr(
    lease, '_is_alive', lambda theirs: theirs and theirs['id'] == 'y'
  )
  look = lease.Lease._standing

  def look_and_wait(self):
    theirs = look(self)
    objects.write(place, alive)
    return theirs

  monkeypatch.setattr(lease.Lease, '_standing', look_and_wait)
  fails_to_take(place, 'process 7 on far')
  assert objects.read(place) == alive


def test_a_job_of_elsewhere_that_is_gone_is_followed_in_the_end(s3, soon):
  place = s3 / 'run/.lock'
  place.write_bytes(of_elsewhere(place))
  told = []
  mine = lease.take(place, told.append)
  assert told == [
    f'{place} is of process 7 on far: waiting until it is renewed, or 2 s are '
    'over.'
  ]
  mine.release()


def test_a_job_of_elsewhere_that_lives_is_left_alone(s3, soon):
  place, end = s3 / 'run/.lock', threading.Event()
  place.write_bytes(of_elsewhere(place))

  def beat(number=0):
    while not end.wait(0.3):
      place.write_bytes(of_elsewhere(place, beat=(number := number + 1)))

  thread = threading.Thread(target=beat)
  thread.start()
  try:
    fails_to_take(place, 'process 7 on far')
  finally:
    end.set()
    thread.join()


def test_of_many_that_come_at_once_one_gets_it(s3, soon):
  place, got, barrier = s3 / 'run/.lock', [], threading.Barrier(4)
  place.write_bytes(of_elsewhere(place))

  def come():
    barrier.wait()
    try:
      got.append(lease.take(place, lambda line: None))
    except lease.TakenError:
      got.append(None)

  threads = [threading.Thread(target=come) for _ in range(4)]
  for one in threads:
    one.start()
  for one in threads:
    one.join()
  winners = [one for one in got if one]
  assert len(got) == 4 and len(winners) == 1
  winners[0].release()


def test_who_has_lost_it_writes_nothing_any_more(s3, soon):
  run = s3 / 'run'
  mine = lease.take(run / '.lock', print)
  (run / 'x').write_text('mine')
  objects.write.__globals__['clients'].of(run).write(
    run.bucket, (run / '.lock').key, of_elsewhere(run)
  )
  threading.Event().wait(0.5)
  for call in (
    lambda: (run / 'x').write_text('late'),
    lambda: (run / 'x').unlink(),
    lambda: objects.remove_tree(run),
    lambda: objects.move_tree(run, run / 'other'),
  ):
    with pytest.raises(UserError, match='another job has taken it over'):
      call()
  assert (run / 'x').read_text() == 'mine'
  (s3 / 'elsewhere').write_text('of nobody')
  mine.release()
  assert json.loads((run / '.lock').read_text())['id'] == 'x'  # not deleted


def test_who_cannot_renew_it_writes_nothing(proxied, soon):
  """A job that the network has left, until it comes back."""
  place, proxy = proxied
  mine = lease.take(place / 'run/.lock', print)
  proxy.rule = lambda *unused: proxy_lib.cut_request
  threading.Event().wait(1.5)
  before = len(proxy.requests)
  with pytest.raises(UserError, match='does not answer'):
    (place / 'run/x').write_text('x')
  assert ('PUT', f'/{place.bucket}/run/x') not in proxy.requests[before:]
  proxy.rule = None
  (place / 'run/x').write_text('x')
  mine.release()


def test_an_answer_that_is_lost_does_not_lose_it(s3_server, soon):
  """The client repeats a write that was done, and meets its own object."""
  from tests.helpers import bucket as bucket_lib

  with (
    proxy_lib.Proxy(s3_server['AWS_ENDPOINT_URL']) as proxy,
    bucket_lib.told(s3_server | {'AWS_ENDPOINT_URL': proxy.endpoint}),
  ):
    place = storage.path(bucket_lib.make('s3')) / 'run/.lock'
    seen = []

    def rule(number, method, path):
      if method == 'PUT' and 'run' in path:
        seen.append(number)
        return len(seen) % 2 and proxy_lib.cut_answer
      return None

    proxy.rule = rule
    mine = lease.take(place, print)
    threading.Event().wait(1.0)
    proxy.rule = None
    (place.parent / 'x').write_text('x')
    mine.release()
    assert len(seen) > 3 and not place.exists()


def test_the_lock_of_a_work_directory(s3):
  run, config = str(s3 / 'run'), {'a': 1}
  with lock.claimed(run, config):
    assert json.loads((s3 / 'run/config.json').read_text()) == config
    with (
      pytest.raises(UserError, match='Another job works in --workdir s3://'),
      lock.claimed(run, config),
    ):
      pass
  with pytest.raises(UserError, match='other settings: a is 1 there and 2'):
    lock.claim(run, {'a': 2})
  (s3 / 'run/config.json').unlink()
  (s3 / 'run/checkpoints/1/x').write_text('x')
  with pytest.raises(UserError, match='has checkpoints but no config.json'):
    lock.claim(run, config)


def test_who_may_only_read_does_nobody_any_harm(proxied):
  place, proxy = proxied
  with lock.claimed(str(place / 'run'), {'a': 1}):
    pass
  proxy.rule = lambda n, method, path: (
    method == 'PUT' and proxy_lib.refuse(403, 'AccessDenied')
  )
  with lock.claimed(str(place / 'run'), {'a': 1}):
    pass
  with (
    pytest.raises(UserError, match=r'config.json cannot be written: no perm'),
    lock.claimed(str(place / 'other'), {'a': 1}),
  ):
    pass
