import json
import struct

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from semppl_jax.errors import UserError
from semppl_jax.workdir import metrics

LOGITS = np.array(
  [
    [0.1, 0.7, 0.2],  # order of the classes: 1, 2, 0
    [3.0, 2.0, 1.0],  # 0, 1, 2
    [-1.0, -3.0, -2.0],  # 0, 2, 1
  ],
  np.float32,
)


@pytest.mark.parametrize('transform', [lambda f, **k: f, jax.jit])
@pytest.mark.parametrize(
  'k, wanted',
  [
    (1, [True, False, False]),
    (2, [True, True, False]),
    (3, [True, True, True]),
    (5, [True, True, True]),
  ],
)
def test_topk_by_hand(transform, k, wanted):
  topk = transform(metrics.topk_correct, static_argnums=2)
  found = topk(jnp.asarray(LOGITS), jnp.array([1, 1, 1]), k)
  assert found.dtype == bool
  assert found.tolist() == wanted


def test_topk_agrees_with_sorting():
  random = np.random.default_rng(0)
  logits = random.standard_normal((200, 17)).astype(np.float32)
  labels = random.integers(17, size=200)
  larger = np.sum(logits > logits[np.arange(200), labels][:, None], axis=1)
  for k in (1, 5):
    found = metrics.topk_correct(jnp.asarray(logits), jnp.asarray(labels), k)
    np.testing.assert_array_equal(found, larger < k)


def test_topk_of_a_constant_output_is_chance():
  found = metrics.topk_correct(jnp.zeros((4, 4)), jnp.arange(4), 1)
  assert found.tolist() == [True, False, False, False]


def test_topk_without_label_or_with_nan_is_wrong():
  logits = jnp.array([[1.0, 0.0], [jnp.nan, 0.0], [jnp.nan, jnp.nan]])
  found = metrics.topk_correct(logits, jnp.array([-1, 0, 1]), 2)
  assert found.tolist() == [False, False, False]


def events(workdir) -> list[event_pb2.Event]:
  """All TensorBoard events in the order of the files."""
  found = []
  for path in sorted((workdir / 'tensorboard').iterdir()):
    data = path.read_bytes()
    while data:  # length, its checksum, an event, its checksum
      (length,) = struct.unpack('<Q', data[:8])
      found.append(event_pb2.Event.FromString(data[12 : 12 + length]))
      data = data[16 + length :]
  return found


def scalars(workdir) -> list[tuple]:
  return [
    (event.step, value.tag, value.simple_value)
    for event in events(workdir)
    for value in event.summary.value
  ]


def test_lines_and_events(tmp_path):
  writer = metrics.MetricsWriter(str(tmp_path / 'new'), step=0)
  values = {'a': jnp.float32(0.5), 'n': np.int64(3), 'none': None, 'b': 2.0}
  writer.write(10, values)
  writer.write(20, {'a': ml_dtypes.bfloat16(1.5), 'n': 4})
  writer.close()
  writer.close()
  text = (tmp_path / 'new' / 'metrics.jsonl').read_text()
  assert text == (
    '{"step": 10, "a": 0.5, "n": 3, "none": null, "b": 2.0}\n'
    '{"step": 20, "a": 1.5, "n": 4}\n'
  )
  assert scalars(tmp_path / 'new') == [
    (10, 'a', 0.5),
    (10, 'n', 3.0),
    (10, 'b', 2.0),
    (20, 'a', 1.5),
    (20, 'n', 4.0),
  ]


@pytest.mark.parametrize('bad', [np.nan, -np.inf, jnp.float32(jnp.inf)])
def test_not_finite_is_null(tmp_path, bad):
  writer = metrics.MetricsWriter(str(tmp_path), step=0)
  writer.write(1, {'a': bad, 'b': 1.0})
  writer.close()
  assert metrics.read(str(tmp_path)) == [{'step': 1, 'a': None, 'b': 1.0}]
  assert scalars(tmp_path) == [(1, 'b', 1.0)]


def test_a_line_is_there_at_once(tmp_path):
  writer = metrics.MetricsWriter(str(tmp_path), step=0)
  writer.write(1, {'a': 1.0})
  assert metrics.read(str(tmp_path)) == [{'step': 1, 'a': 1.0}]
  writer.close()


def run(tmp_path, start: int, stop: int, scale: float = 1.0):
  writer = metrics.MetricsWriter(str(tmp_path), step=start)
  for step in range(start + 1, stop + 1):
    writer.write(step, {'a': scale * step})
  writer.close()


def test_going_on_drops_later_steps(tmp_path):
  run(tmp_path, 0, 5)
  run(tmp_path, 3, 6, scale=10)
  assert metrics.read(str(tmp_path)) == [
    {'step': s, 'a': float(s if s <= 3 else 10 * s)} for s in range(1, 7)
  ]
  # TensorBoard drops what stands at this step and after it when it reads this.
  starts = [
    e.step
    for e in events(tmp_path)
    if e.session_log.status == event_pb2.SessionLog.START
  ]
  assert starts[-1] == 4


def test_starting_anew_drops_all(tmp_path):
  run(tmp_path, 0, 2)
  run(tmp_path, 0, 1, scale=7)
  assert metrics.read(str(tmp_path)) == [{'step': 1, 'a': 7.0}]


@pytest.mark.parametrize(
  'tail', ['{"step": 3, "a"', '{"step": 3', '12', '\xff']
)
def test_a_half_written_last_line_is_dropped(tmp_path, tail):
  run(tmp_path, 0, 2)
  path = tmp_path / 'metrics.jsonl'
  whole = path.read_bytes()
  path.write_bytes(whole + tail.encode('latin-1'))
  assert [row['step'] for row in metrics.read(str(tmp_path))] == [1, 2]
  run(tmp_path, 2, 3)
  assert path.read_bytes() == whole + b'{"step": 3, "a": 3.0}\n'


def test_cutting_back_is_atomic(tmp_path, monkeypatch):
  run(tmp_path, 0, 4)
  before = (tmp_path / 'metrics.jsonl').read_bytes()

  def fail(*unused):
    raise KeyboardInterrupt

  monkeypatch.setattr(metrics.os, 'replace', fail)
  with pytest.raises(KeyboardInterrupt):
    metrics.MetricsWriter(str(tmp_path), step=2)
  assert (tmp_path / 'metrics.jsonl').read_bytes() == before


def test_nothing_logged(tmp_path):
  with pytest.raises(FileNotFoundError):
    metrics.read(str(tmp_path))


def test_write_json(tmp_path):
  path = tmp_path / 'results.json'
  path.write_text('old')
  value = {
    'z': np.float32(0.5),
    'a': [jnp.int32(2), np.bool_(True), (1, None)],
    'bf16': ml_dtypes.bfloat16(1.5),
    'array': np.array([[1.0, np.nan]], np.float32),
    'nan': float('nan'),
    3: {'name': 'x'},
  }
  metrics.write_json(path, value)
  wanted = {
    'z': 0.5,
    'a': [2, True, [1, None]],
    'bf16': 1.5,
    'array': [[1.0, None]],
    'nan': None,
    '3': {'name': 'x'},
  }
  assert path.read_text() == json.dumps(wanted, indent=2) + '\n'
  assert list(metrics.read_json(path)) == list(wanted)
  assert list(tmp_path.iterdir()) == [path]


def test_write_json_that_fails_leaves_the_old_file(tmp_path):
  path = tmp_path / 'results.json'
  metrics.write_json(path, {'a': 1})
  with pytest.raises(TypeError):
    metrics.write_json(path, {'a': object()})
  assert metrics.read_json(path) == {'a': 1}


def test_read_json_of_no_file_and_of_no_json(tmp_path):
  assert metrics.read_json(tmp_path / 'none.json') is None
  (tmp_path / 'bad.json').write_text('{"a": ')
  with pytest.raises(UserError, match='bad.json is not JSON'):
    metrics.read_json(tmp_path / 'bad.json')


def test_classification_by_hand():
  found = metrics.classification(LOGITS, np.array([1, 1, -1]))
  assert found['top1'] == 0.5 and found['top5'] == 1.0
  p = np.exp(LOGITS[:2, 1]) / np.exp(LOGITS[:2]).sum(axis=1)
  assert found['loss'] == pytest.approx(-np.log(p).mean(), rel=1e-6)
  nothing = metrics.classification(LOGITS, np.full(3, -1))
  assert nothing == dict.fromkeys(('top1', 'top5', 'loss'))


def test_per_class_by_hand():
  right = np.array([True, False, True, True])
  found = metrics.per_class(right, np.array([0, 0, 2, -1]), ['a', 'b', 'c'])
  assert found == {
    'a': {'accuracy': 0.5, 'images': 2},
    'b': {'accuracy': None, 'images': 0},
    'c': {'accuracy': 1.0, 'images': 1},
  }
