"""Metrics where objects cannot be appended to."""

import pytest

from semppl_jax.storage import objects, parts
from semppl_jax.workdir import metrics, run_log


def steps(run):
  return [row['step'] for row in metrics.read(str(run))]


def test_lines_are_written_when_it_is_time(bucket):
  now = [0.0]
  lines = parts.Lines(bucket / 'x.jsonl', clock=lambda: now[0])
  with pytest.raises(FileNotFoundError):
    parts.read(bucket / 'x.jsonl')
  lines.add('1\n')
  assert not (bucket / 'x.jsonl.parts').exists()
  now[0] = parts.SECONDS
  lines.add('2\n')
  assert parts.read(bucket / 'x.jsonl') == '1\n2\n'
  lines.add('3\n')
  assert parts.read(bucket / 'x.jsonl') == '1\n2\n'
  lines.flush()
  assert parts.read(bucket / 'x.jsonl') == '1\n2\n3\n'
  assert objects.names(bucket / 'x.jsonl.parts') == ['000001.jsonl']


def test_a_large_part_makes_way_for_another(s3, monkeypatch):
  monkeypatch.setattr(parts, '_LARGE', 4)
  lines = parts.Lines(s3 / 'x')
  for i in range(12):
    lines.add(f'{i}\n')
    lines.flush()
  text = ''.join(f'{i}\n' for i in range(12))
  assert parts.read(s3 / 'x') == text
  assert len(objects.names(s3 / 'x.parts')) == 5
  more = parts.Lines(s3 / 'x')  # of the next process
  more.add('12\n')
  more.flush()
  assert parts.read(s3 / 'x') == text + '12\n'
  parts.join(s3 / 'x', 'all\n')
  assert parts.read(s3 / 'x') == 'all\n' and not (s3 / 'x.parts').exists()


def test_parts_go_from_the_first_on(s3, monkeypatch):
  """A kill in between leaves the last ones, never an early one alone."""
  monkeypatch.setattr(parts, '_LARGE', 1)
  lines = parts.Lines(s3 / 'x')
  for i in range(12):
    lines.add(f'{i}\n')
    lines.flush()
  gone = []
  monkeypatch.setattr(
    objects, 'remove', lambda places: gone.extend(p.name for p in places)
  )
  parts.join(s3 / 'x', 'all\n')
  assert gone == sorted(gone) and len(gone) == 12


def test_metrics_after_a_kill(s3):
  run = s3 / 'run'
  with pytest.raises(FileNotFoundError):
    metrics.read(str(run))
  first = metrics.MetricsWriter(str(run), step=0)
  for step in range(1, 8):
    first.write(step, {'loss': float('nan') if step == 2 else step})
    if step == 6:
      first.flush()
  # Killed here: step 7 is lost; of step 4 there is a checkpoint.
  assert steps(run) == [1, 2, 3, 4, 5, 6]
  assert metrics.read(str(run))[1] == {'step': 2, 'loss': None}
  second = metrics.MetricsWriter(str(run), step=4)
  assert steps(run) == [1, 2, 3, 4]
  for step in range(5, 9):
    second.write(step, {'loss': -step})
  second.close()
  second.close()
  assert steps(run) == list(range(1, 9))
  assert metrics.read(str(run))[-1]['loss'] == -8


def test_parts_that_a_kill_has_left_count_once(s3):
  """Between the joined file and the deletion of what it is joined of."""
  run = s3 / 'run'
  first = metrics.MetricsWriter(str(run), step=0)
  for step in range(1, 6):
    first.write(step, {'loss': step})
  first.close()
  text = parts.read(run / 'metrics.jsonl')
  objects.write(run / 'metrics.jsonl', text.encode())
  assert steps(run) == [1, 2, 3, 4, 5]
  metrics.MetricsWriter(str(run), step=3).close()
  assert steps(run) == [1, 2, 3]


def test_a_part_that_is_joined_while_it_is_read(s3, monkeypatch):
  place = s3 / 'x'
  lines = parts.Lines(place)
  lines.add('1\n')
  lines.flush()
  read = objects.read

  def meanwhile(one):
    monkeypatch.setattr(objects, 'read', read)
    parts.join(place, '1\n')
    raise FileNotFoundError(one)

  monkeypatch.setattr(objects, 'read', meanwhile)
  assert parts.read(place) == '1\n'


def test_unreadable_images(s3, capsys):
  path = s3 / 'run/unreadable.jsonl'
  tell = run_log.Unreadable(path)
  tell('a.png', 'cut off')
  tell('a.png', 'cut off')
  tell.flush()
  again = run_log.Unreadable(path)
  again('b.png', 'no image')
  again('a.png', 'cut off')
  assert again.on_all_hosts() == 2
  assert len(run_log.Unreadable(path)) == 2
