"""benchmarks.methods: what is trained in which order, choices, the table."""

import json
import os

import numpy as np
import pytest

from benchmarks import (
  drawn_folders,
  method_page,
  method_rows,
  method_runs,
  method_settings,
  method_table,
  methods,
  without_training,
)
from benchmarks.method_rows import Row
from benchmarks.method_runs import Cell
from benchmarks.method_settings import Table
from experiments import digits
from semppl_jax import methods as objectives
from semppl_jax import pretraining
from semppl_jax.errors import UserError
from semppl_jax.train import run as run_lib
from semppl_jax.train import watchdog
from semppl_jax.workdir import metrics


@pytest.fixture(autouse=True)
def own_registry(monkeypatch):
  """The oracle, which a row makes known, is of this test alone."""
  monkeypatch.setattr(objectives, 'METHODS', dict(objectives.METHODS))


_RATE = 'optimizer.learning_rate'
_ROWS = {
  'semppl': Row(digits.get_config, [{}]),
  'swav': Row(lambda: digits.get_config('swav'), [{_RATE: 0.1}, {_RATE: 0.2}]),
  'suave': Row(
    lambda: digits.get_config('suave'),
    [{_RATE: 0.3}, {_RATE: 0.4}],
    'swav',
  ),
}


@pytest.fixture(autouse=True)
def _rows(monkeypatch):
  for module in (methods, method_runs, method_table):
    monkeypatch.setattr(module, 'ROWS', _ROWS)
  monkeypatch.setattr(without_training, 'NAMES', ())


@pytest.fixture
def table(tmp_path):
  return Table(str(tmp_path))


@pytest.fixture
def trained(monkeypatch):
  """Configs in the order in which they were trained; scores by rate."""
  seen = []
  top1 = {0.1: 0.5, 0.2: 0.6, 0.3: 0.9, 0.4: 0.8, 8e-3: 0.7}

  def pretrain(cfg, workdir):
    assert not cfg.init or os.path.exists(f'{cfg.init}/results.json')
    seen.append(cfg)
    score = top1[cfg.optimizer.learning_rate] + cfg.seed / 100
    found = dict.fromkeys(method_table.COLUMNS, score)
    found |= {'seconds': 3600, 'step': 9}
    os.makedirs(workdir)
    metrics.write_json(f'{workdir}/config.json', cfg.to_dict())
    metrics.write_json(f'{workdir}/{pretraining.RESULTS}', found)

  monkeypatch.setattr(method_runs.pretraining, 'pretrain', pretrain)
  return seen


def _train(names, seeds, table):
  plan = list(method_runs.cells(names, seeds, table))
  method_runs.work(plan, table)
  return plan


def test_trials_decide_before_the_seeds_and_starts_come_first(
  trained, table, tmp_path
):
  plan = _train(['semppl', 'swav', 'suave'], 2, table)
  rates = [(cfg.seed, cfg.optimizer.learning_rate) for cfg in trained]
  validated, tested = rates[:4], rates[4:]
  assert {seed for seed, _ in validated} == {method_runs.VALIDATION_SEED}
  assert sorted(tested) == [
    (seed, rate) for seed in (0, 1) for rate in (8e-3, 0.2, 0.3)
  ]
  for cfg in trained:
    validates = cfg.seed == method_runs.VALIDATION_SEED
    assert cfg.dataset.validation == (300 if validates else 0)
    assert cfg.labels.seed == cfg.seed and cfg.labels.per_class == 2
    if cfg.method == 'suave':  # of the better SwAV, of the same seed
      assert cfg.init == str(tmp_path / f'swav-{cfg.seed}-1')
  count = len(trained)
  method_runs.work(plan, table)
  assert len(trained) == count  # finished ones are kept


def test_a_run_waits_for_the_one_that_it_begins_with(trained, table):
  suave = Cell('suave', 0, 3)
  assert method_runs.ready(suave, table) is None  # which SwAV is not decided
  for trial in (0, 1):
    method_runs.train(Cell('swav', trial, 10), table)
  assert method_runs.ready(suave, table) is None
  method_runs.train(Cell('swav', 0, 3), table)  # the worse one
  assert method_runs.ready(suave, table) is None
  method_runs.train(Cell('swav', 1, 3), table)
  assert method_runs.ready(suave, table) == suave
  undecided = suave._replace(trial=-1)
  assert method_runs.ready(undecided, table) is None


def test_the_plan_is_told_before_anything_is_trained(
  trained, table, monkeypatch
):
  names = ['semppl', 'swav', 'suave']
  plan = list(method_runs.cells(names, 2, table))
  runs = methods.check(names, table)
  measured = lambda *unused: 1.0  # second of a step
  monkeypatch.setattr(methods.pass_time, 'seconds_of_passes', measured)
  lines = methods.forecast(plan, table, runs).splitlines()
  assert lines[:3] == [
    '   4 of swav, about 562 steps',
    '   4 of suave, about 562 steps',
    '   2 of semppl, about 562 steps',
  ]
  # 10 runs of 562 * 1.3 + 30 seconds.
  assert lines[3] == (
    "10 runs are left, 2.1 hours of one core, by a pass of semppl's network."
  )
  method_runs.train(plan[0], table)  # an hour, as `trained` says
  assert methods.forecast(plan, table, runs).splitlines()[-1] == (
    '9 runs are left, 9.0 hours of one core, by those that are finished.'
  )
  method_runs.work(plan, table)
  assert methods.forecast(plan, table, runs) == (
    '0 runs are left, 0.0 hours of one core.'
  )


def test_a_row_that_cannot_work_is_told_before_the_first_is_trained(
  trained, table, monkeypatch
):
  rows = {'semppl': _ROWS['semppl'], 'paws': method_rows.ROWS['paws']}
  monkeypatch.setattr(method_runs, 'ROWS', rows)
  with pytest.raises(UserError, match='^paws: .*images_per_class is 2'):
    methods.check(['semppl', 'paws'], table._replace(labels='1'))
  assert not trained


def test_a_work_directory_has_one_table(table):
  methods.agree(table)
  methods.agree(table)
  for other in ({'labels': '10%'}, {'data': '/x'}, {'steps': 5}):
    with pytest.raises(UserError, match=f'^--{next(iter(other))} is '):
      methods.agree(table._replace(**other))


def test_the_table_by_hand(trained, table):
  names = ['semppl', 'swav', 'suave']
  _train(names, 2, table)
  found = method_table.collect(names, 2, table)
  # Seed 1 is one point above seed 0, in all rows.
  assert found['swav'][1]['knn_top1'] == pytest.approx(0.61)
  heads, rows = method_table.rows_of(found)
  assert heads[-2:] == ['images seen', 'seconds']
  semppl, swav, suave = rows
  assert semppl[:3] == ['semppl', '2', '70.5 ± 0.5']
  assert swav[:3] == ['swav', '2', '60.5 ± 0.5']
  # 9 steps of 128 images; Suave's with SwAV's.
  assert semppl[-4:] == ['', '', '1,152', '3,600']
  assert swav[-4:] == ['-10.0 ± 0.0', '-10.0 ± 0.0', '1,152', '3,600']
  assert suave[-2:] == ['2,304', '7,200']
  _, decided = method_table.choices(names, table)
  assert decided[:2] == [
    ['swav', f'{_RATE}=0.1', '60.0', ''],
    ['swav', f'{_RATE}=0.2', '70.0', 'yes'],
  ]


def test_the_page_has_scores_choices_and_mean_curves(trained, table, tmp_path):
  names = ['semppl', 'swav']
  _train(names, 2, table)
  for seed, loss in ((0, 1.0), (1, 3.0)):
    rows = [{'step': step, 'loss': loss + step} for step in (10, 20)]
    path = tmp_path / f'swav-{seed}-1' / 'metrics.jsonl'
    path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  found = method_table.collect(names, 2, table)
  text = method_page.write(names, found, table).read_text()
  assert '<td>60.5 ± 0.5</td>' in text and '2 labels per class' in text
  assert f'<td>{_RATE}=0.2</td><td>70.0</td><td>yes</td>' in text
  assert 'swav: 12 at step 10, 22 at step 20.' in text  # of 11 and 13
  assert text.count('semppl: ') == 0  # it has no curve, and is in the legend


def test_mean_curves_are_of_the_seeds_that_have_a_value():
  rows = method_page.mean_rows([
    [{'step': 10, 'loss': 1.0, 'acc': None}, {'step': 20, 'loss': 2.0}],
    [{'step': 10, 'loss': 3.0, 'acc': 0.5}],
  ])  # fmt: skip
  assert rows == [
    {'step': 10, 'loss': 2.0, 'acc': 0.5},
    {'step': 20, 'loss': 2.0},
  ]


def test_a_trial_that_collapses_is_none_to_take(trained, table, monkeypatch):
  usual = method_runs.pretraining.pretrain

  def pretrain(cfg, workdir):
    if cfg.optimizer.learning_rate == 0.2:
      os.makedirs(workdir)
      raise watchdog.AlarmError(9, 6, 'one prototype takes all')
    usual(cfg, workdir)

  monkeypatch.setattr(method_runs.pretraining, 'pretrain', pretrain)
  _train(['swav'], 1, table)
  _, decided = method_table.choices(['swav'], table)
  assert [row[2:] for row in decided] == [['60.0', 'yes'], ['stopped', '']]
  assert [cfg.optimizer.learning_rate for cfg in trained] == [0.1, 0.1]


def test_a_run_that_was_stopped_has_its_row(trained, table, monkeypatch):
  def pretrain(cfg, workdir):
    os.makedirs(workdir)
    metrics.write_json(f'{workdir}/config.json', cfg.to_dict())
    raise watchdog.AlarmError(9, 6, 'one pseudo-label takes all')

  monkeypatch.setattr(method_runs.pretraining, 'pretrain', pretrain)
  _train(['semppl'], 1, table)
  _, rows = method_table.rows_of(method_table.collect(['semppl'], 1, table))
  assert rows == [['semppl', '1, 1 stopped', *[''] * 9]]


def test_what_another_process_trains_is_left_to_it(table, monkeypatch):
  def pretrain(cfg, workdir):
    raise UserError('Another job works in --workdir x: stop it.')

  monkeypatch.setattr(method_runs.pretraining, 'pretrain', pretrain)
  assert not method_runs.train(Cell('semppl', 0, 0), table)

  def other(cfg, workdir):
    raise UserError('The disk is full.')

  monkeypatch.setattr(method_runs.pretraining, 'pretrain', other)
  with pytest.raises(UserError, match='disk'):
    method_runs.train(Cell('semppl', 0, 0), table)


def test_a_share_of_labels(table):
  table = table._replace(labels='10%')
  cfg = method_runs.settings(Cell('semppl', 0, 3), table)
  assert (cfg.labels.per_class, cfg.labels.fraction) == (0, 0.1)
  assert cfg.queue.capacity == 256
  table = table._replace(labels='5')
  cfg = method_runs.settings(Cell('swav', 0, 3), table)
  assert (cfg.labels.per_class, cfg.labels.fraction) == (5, 0.0)


@pytest.mark.parametrize(
  'argument, line',
  [
    ('--methods=semppl,sawv', '--methods: sawv; known: semppl, swav, suave'),
    ('--labels=few', '--labels: few; so many a class, or e.g. 10%'),
    ('--seeds=11', '--seeds: 11; from 1 to 10, for seed 10 chooses'),
    ('--data=/nowhere', "dataset.path '/nowhere' is not a folder."),
  ],
)
def test_what_is_wrong_is_one_line(argument, line, monkeypatch, capsys):
  monkeypatch.setattr('sys.argv', ['methods', argument])
  with pytest.raises(SystemExit):
    methods.main()
  assert line in capsys.readouterr().err.splitlines()[-1]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  path = tmp_path_factory.mktemp('data') / 'textures'
  drawn_folders.make('textures', path, labelled=10, unlabelled=0, test=2)
  return str(path)


def test_all_rows_are_alike_on_a_folder(table, folder):
  table = table._replace(data=folder, steps=20)
  seen = []
  for name, row in method_rows.ROWS.items():
    last = len(method_settings.trials(row, table)) - 1
    cfg = method_settings.config_of(row, last, 3, table, test=False)
    run = run_lib.prepare(cfg)
    assert run.setup.total_steps == 20, name
    assert len(run.data.train) == 64 and len(run.data.test) == 16
    assert np.sum(run.labels >= 0) == 2 * 8
    assert cfg.seed == cfg.labels.seed == 3
    # Clocks keep their shares.
    shares = [
      float(cfg.optimizer.warmup_epochs / cfg.num_epochs),
      row.experiment().optimizer.warmup_epochs / row.experiment().num_epochs,
    ]
    assert shares[0] == pytest.approx(shares[1], rel=1e-6)
    voting = (
      'semppl', 'relicv2', 'semppl_after_relicv2', 'mean_shift',
      'mean_shift_head', 'similar_out', 'similar_in', 'nearest', 'true_labels',
    )  # fmt: skip
    share = 1 if name == 'supervised' else 0.25 * (name in voting)
    assert cfg.labels.share == share, name
    small = cfg.views.num_small
    assert small == (0 if name in ('simclr', 'supervised') else 2)
    views = cfg.views.to_dict()
    own = ('num_small', 'one_pass', 'heads_joint', 'saliency', 'background')
    seen.append([
      {key: views[key] for key in views if key not in own},
      cfg.encoder.name, cfg.encoder.stem, cfg.batch_size,
    ])  # fmt: skip
  assert all(one == seen[0] for one in seen)
  views, *rest = seen[0]
  assert rest == ['digits', 'imagenet', 128]
  assert (views['large_size'], views['small_size']) == (32, 16)
  assert views['hue'] == 0.1 and views['flip'] == 0.0
  assert 'All rows: batch_size=128, encoder.name=digits' in (
    method_settings.told(table)
  )


def test_a_folder_has_four_trials_of_each_row(table):
  elsewhere = table._replace(data='/x')
  for row in method_rows.ROWS.values():
    assert len(method_settings.trials(row, elsewhere)) == 4
    assert len(method_settings.trials(row, table)) in (1, 4)
