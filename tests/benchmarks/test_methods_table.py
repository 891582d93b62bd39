"""benchmarks.methods: what is trained in which order, choices, the table."""

import os

import pytest

from benchmarks import methods
from benchmarks.methods import Cell, Row
from semppl_jax import pretraining
from semppl_jax.errors import UserError
from semppl_jax.train import watchdog
from semppl_jax.workdir import metrics

_RATE = 'optimizer.learning_rate'
_ROWS = {
  'semppl': Row(lambda: methods.digits.get_config(), [{}]),
  'swav': Row(
    lambda: methods.digits.get_config('swav'), [{_RATE: 0.1}, {_RATE: 0.2}]
  ),
  'suave': Row(
    lambda: methods.digits.get_config('suave'),
    [{_RATE: 0.3}, {_RATE: 0.4}],
    'swav',
  ),
}


@pytest.fixture(autouse=True)
def _rows(monkeypatch):
  monkeypatch.setattr(methods, 'ROWS', _ROWS)
  monkeypatch.setattr(methods, 'WITHOUT_TRAINING', ())


@pytest.fixture
def trained(monkeypatch):
  """Configs in the order in which they were trained; scores by rate."""
  seen = []
  top1 = {0.1: 0.5, 0.2: 0.6, 0.3: 0.9, 0.4: 0.8, 8e-3: 0.7}

  def pretrain(cfg, workdir):
    assert not cfg.init or os.path.exists(f'{cfg.init}/results.json')
    seen.append(cfg)
    score = top1[cfg.optimizer.learning_rate] + cfg.seed / 100
    found = dict.fromkeys(methods.COLUMNS, score) | {'seconds': 3600, 'step': 9}
    os.makedirs(workdir)
    metrics.write_json(f'{workdir}/{pretraining.RESULTS}', found)

  monkeypatch.setattr(methods.pretraining, 'pretrain', pretrain)
  return seen


def test_trials_decide_before_the_seeds_and_starts_come_first(
  trained, tmp_path
):
  plan = list(methods.cells(['semppl', 'swav', 'suave'], 2))
  assert methods.forecast(plan, tmp_path).startswith('10 runs of one core')
  methods.work(plan, tmp_path, '2')
  rates = [(cfg.seed, cfg.optimizer.learning_rate) for cfg in trained]
  validated, tested = rates[:4], rates[4:]
  assert {seed for seed, _ in validated} == {methods.VALIDATION_SEED}
  assert sorted(tested) == [
    (seed, rate) for seed in (0, 1) for rate in (8e-3, 0.2, 0.3)
  ]
  for cfg in trained:
    validates = cfg.seed == methods.VALIDATION_SEED
    wanted = methods.VALIDATION_IMAGES if validates else 0
    assert cfg.dataset.validation == wanted
    assert cfg.labels.seed == cfg.seed and cfg.labels.per_class == 2
    if cfg.method == 'suave':  # of the better SwAV, of the same seed
      assert cfg.init == str(tmp_path / f'swav-{cfg.seed}-1')
  count = len(trained)
  methods.work(plan, tmp_path, '2')
  assert len(trained) == count  # finished ones are kept
  assert methods.forecast(plan, tmp_path) == (
    '0 runs are left, 0.0 hours of one core.'
  )


def test_the_table_by_hand(trained, tmp_path):
  methods.work(list(methods.cells(['semppl', 'swav'], 2)), tmp_path, '2')
  text, found = methods.table(['semppl', 'swav'], 2, tmp_path)
  # Seed 1 is one point above seed 0, in both rows.
  assert found['swav'][1]['knn_top1'] == pytest.approx(0.61)
  lines = text.splitlines()
  assert lines[2].startswith('| semppl | 2 | 70.5 ± 0.5 |')
  assert lines[3].startswith('| swav | 2 | 60.5 ± 0.5 |')
  assert lines[3].endswith('| -10.0 ± 0.0 | -10.0 ± 0.0 | 3600 |')
  assert lines[2].endswith('|  |  | 3600 |')
  chosen = methods.choices(['semppl', 'swav'], tmp_path).splitlines()
  assert chosen[2:] == [
    f'| swav | {_RATE}=0.1 | 60.0 |  |',
    f'| swav | {_RATE}=0.2 | 70.0 | yes |',
  ]


def test_a_trial_that_collapses_is_none_to_take(trained, tmp_path, monkeypatch):
  usual = methods.pretraining.pretrain

  def pretrain(cfg, workdir):
    if cfg.optimizer.learning_rate == 0.2:
      os.makedirs(workdir)
      raise watchdog.AlarmError(9, 6, 'one prototype takes all')
    usual(cfg, workdir)

  monkeypatch.setattr(methods.pretraining, 'pretrain', pretrain)
  methods.work(list(methods.cells(['swav'], 1)), tmp_path, '2')
  assert methods.choices(['swav'], tmp_path).count('stopped') == 1
  assert [cfg.optimizer.learning_rate for cfg in trained] == [0.1, 0.1]


def test_what_another_process_trains_is_left_to_it(tmp_path, monkeypatch):
  def pretrain(cfg, workdir):
    raise UserError('Another job works in --workdir x: stop it.')

  monkeypatch.setattr(methods.pretraining, 'pretrain', pretrain)
  assert not methods.train(Cell('semppl', 0, 0), tmp_path, '2')

  def other(cfg, workdir):
    raise UserError('The disk is full.')

  monkeypatch.setattr(methods.pretraining, 'pretrain', other)
  with pytest.raises(UserError, match='disk'):
    methods.train(Cell('semppl', 0, 0), tmp_path, '2')


def test_a_share_of_labels(tmp_path):
  cfg = methods.config(Cell('semppl', 0, 3), str(tmp_path), '10%')
  assert (cfg.labels.per_class, cfg.labels.fraction) == (0, 0.1)
  assert cfg.queue.capacity == 256
  cfg = methods.config(Cell('swav', 0, 3), str(tmp_path), '5')
  assert (cfg.labels.per_class, cfg.labels.fraction) == (5, 0.0)


def test_an_unknown_method_is_one_line(monkeypatch, capsys):
  monkeypatch.setattr('sys.argv', ['methods', '--methods=semppl,sawv'])
  with pytest.raises(SystemExit):
    methods.main()
  assert (
    '--methods: sawv; known: semppl, swav, suave' in capsys.readouterr().err
  )
