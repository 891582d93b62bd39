"""Three trainings, one table: what each is told, and what becomes of it."""

import json
import pathlib
import subprocess
import types

import pytest

from experiments import folder
from semppl_jax import compare

_SCORES = {
  'knn_top1': 0.5, 'linear_labelled_top1': 0.25, 'classifier_top1': None,
  'chance_top1': 0.125, 'baseline_pixels_top1': 0.2,
  'baseline_histogram_top1': 0.3, 'step': 812, 'test_images': 160,
}  # fmt: skip


@pytest.fixture
def trained(monkeypatch):
  """Trainings that end at once, with the status that is set for them."""
  seen, status = [], {}

  def run(command):
    options = dict(
      word.removeprefix('--').split('=', 1) for word in command[3:]
    )
    seen.append(options)
    method = options['config'].partition(':')[2]
    workdir = pathlib.Path(options['workdir'])
    workdir.mkdir(parents=True, exist_ok=True)
    settings = {'num_epochs': 42.5, 'batch_size': 64}
    (workdir / 'config.json').write_text(json.dumps(settings))
    if method not in status:
      (workdir / 'results.json').write_text(json.dumps(_SCORES))
    return types.SimpleNamespace(returncode=status.get(method, 0))

  monkeypatch.setattr(subprocess, 'run', run)
  return seen, status


def test_all_methods_of_the_experiment():
  assert tuple(compare.METHODS) == folder.METHODS


def test_trains_all_and_writes_a_table(trained, tmp_path, capsys):
  arguments = ['--config.dataset.path=DIR', '--config.minutes=3']
  assert compare.run(str(tmp_path), arguments) == 0
  ours, relicv2, supervised = trained[0]
  assert ours['config'] == 'folder:semppl'
  assert ours['workdir'] == str(tmp_path / 'semppl')
  for options in trained[0]:
    assert options['config.dataset.path'] == 'DIR'
    assert options['config.minutes'] == '3'
  # As many steps as SemPPL's; a supervised step is another thing.
  assert relicv2['config.num_epochs'] == '42.5'
  assert 'config.num_epochs' not in ours.keys() | supervised.keys()
  table = (tmp_path / 'table.md').read_text()
  assert '| SemPPL | 50.00 | 25.00 | – | – | 812 |' in table
  assert 'a colour histogram and logistic regression | – | 30.00 | –' in table
  assert (tmp_path / 'compared.html').exists()
  assert 'compared.html' in capsys.readouterr().out


def test_an_alarm_leaves_a_method_out(trained, tmp_path, capsys):
  trained[1]['relicv2'] = 3
  assert compare.run(str(tmp_path), []) == 0
  assert len(trained[0]) == 3
  assert 'ReLICv2 and labels |' not in (tmp_path / 'table.md').read_text()


@pytest.mark.parametrize('status, left', [(2, 2), (143, 143), (-9, 137)])
def test_a_failure_ends_it(trained, tmp_path, status, left):
  trained[1]['semppl'] = status
  assert compare.run(str(tmp_path), []) == left
  assert len(trained[0]) == 1 and not (tmp_path / 'table.md').exists()


@pytest.mark.parametrize(
  'arguments, words',
  [
    (['--workdir=x'], 'dataset.path=DIR is missing'),
    (['--config.dataset.path=x'], '--workdir'),
    (['--workdir=x', '--config.dataset.path=x', '--config=digits'], 'leave it'),
  ],
)
def test_bad_flags(arguments, words, monkeypatch, capsys):
  monkeypatch.setattr('sys.argv', ['semppl-jax compare', *arguments])
  with pytest.raises(SystemExit) as ended:
    compare.main()
  assert ended.value.code == 2 and words in capsys.readouterr().err
