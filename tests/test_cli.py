"""The semppl-jax command: what it hands on, and to whom."""

import importlib
import os
import pathlib
import re
import signal
import subprocess
import sys

import pytest

import semppl_jax
from semppl_jax import cli, main
from semppl_jax.errors import UserError

_ROOT = pathlib.Path(__file__).parent.parent


def _call(monkeypatch, *arguments):
  monkeypatch.setattr(sys, 'argv', ['semppl-jax', *arguments])
  return cli.main()


@pytest.mark.parametrize('arguments', [[], ['--help'], ['help']])
def test_help_names_every_task(monkeypatch, capsys, arguments):
  assert _call(monkeypatch, *arguments) == 0
  shown = capsys.readouterr().out
  assert all(f'\n  {name} ' in shown for name in cli.TASKS)


def test_an_unknown_task_is_refused(monkeypatch, capsys):
  assert _call(monkeypatch, 'trian') == 2
  shown = capsys.readouterr().err
  assert "error: There is no task 'trian'; did you mean 'train'?" in shown


def test_version(monkeypatch, capsys):
  assert _call(monkeypatch, '--version') == 0
  assert capsys.readouterr().out == f'semppl-jax {semppl_jax.__version__}\n'
  setup = (_ROOT / 'setup.py').read_text()
  assert f"version='{semppl_jax.__version__}'" in setup


@pytest.mark.parametrize('task', ['train', 'evaluate', 'check'])
@pytest.mark.parametrize('flag', ['--help', '-h', '--helpshort'])
def test_help_of_a_task_names_its_flags(task, flag, monkeypatch, capsys):
  _call(monkeypatch, task, flag)
  shown = capsys.readouterr().out
  for wanted in ('--config:', '--workdir:', 'docs/settings.md', 'digits'):
    assert wanted in shown, wanted
  assert ('looked at' in shown or 'Looks' in shown) == (task == 'check')
  named = re.findall(r'\b(?:semppl_jax|docs)/[\w/]+\.\w+', shown)
  assert len(named) >= 3
  assert all((_ROOT / path).exists() for path in named), named


@pytest.mark.parametrize('arguments', [['--help'], ['train', '--help']])
def test_a_reader_that_leaves_sees_no_traceback(arguments):
  reader, writer = os.pipe()
  os.close(reader)
  done = subprocess.run(
    [sys.executable, '-m', 'semppl_jax', *arguments], cwd=_ROOT, stdout=writer,
    stderr=subprocess.PIPE, text=True, timeout=120, check=False,
  )  # fmt: skip
  os.close(writer)
  assert done.stderr == '' and done.returncode == 128 + signal.SIGPIPE


def _python(*arguments):
  return subprocess.run(
    [sys.executable, *arguments],
    cwd=_ROOT, capture_output=True, text=True, timeout=120, check=False,
  )  # fmt: skip


def test_the_package_is_the_command():
  done = _python('-m', 'semppl_jax', '--version')
  assert (done.returncode, done.stderr) == (0, '')
  assert done.stdout.startswith('semppl-jax ')


@pytest.mark.parametrize('module', ['semppl_jax', 'semppl_jax.main'])
def test_python_without_assertions_is_refused(module):
  """Haiku would name modules wrongly, and a good checkpoint be blamed."""
  done = _python('-O', '-m', module, '--config=digits')
  assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
  assert done.stderr.startswith(
    'error: semppl_jax does not run under python -O'
  )
  done = _python('-O', '-c', 'import semppl_jax')
  last = done.stderr.splitlines()[-1]
  assert last.startswith('ImportError: ') and 'PYTHONOPTIMIZE' in last


def test_every_task_has_a_main():
  for module, _ in cli.TASKS.values():
    assert callable(importlib.import_module(f'semppl_jax.{module}').main)


def test_a_task_gets_the_rest_and_gives_its_status(monkeypatch, capsys):
  assert _call(monkeypatch, 'convert', 'nope.pkl', 'x.safetensors') == 2
  assert "There is no checkpoint 'nope.pkl'" in capsys.readouterr().err


def test_a_flag_of_training_reaches_it():
  done = subprocess.run(
    [sys.executable, '-m', 'semppl_jax.cli', 'train', '--config=digits'],
    cwd=_ROOT, capture_output=True, text=True, timeout=120,
  )  # fmt: skip
  assert done.returncode == 2
  assert done.stderr == 'error: --workdir is missing; see --help.\n'


def test_experiments_by_their_names(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  wanted = _ROOT / 'experiments' / 'eval_knn.py'
  assert main._experiment('eval_knn') == main._experiment('eval_knn.py')
  assert main._experiment('eval_knn') == wanted
  (tmp_path / 'digits').write_text('')  # a file of that name comes first
  assert main._experiment('digits') == tmp_path / 'digits'
  with pytest.raises(UserError, match="did you mean 'digits'.*known: cifar10"):
    main._experiment('digit')
  with pytest.raises(UserError, match="no file 'there/digits.py'.$"):
    main._experiment('there/digits.py')
