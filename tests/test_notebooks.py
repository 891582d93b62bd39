"""The notebooks run from top to bottom, and what is committed is clean."""

import nbformat
import pytest

from tests import run_notebooks

_MOST_BYTES = 400_000


def _code(notebook):
  return [cell for cell in notebook.cells if cell.cell_type == 'code']


def _pictures(notebook):
  outputs = [output for cell in _code(notebook) for output in cell.outputs]
  return sum('image/png' in output.get('data', {}) for output in outputs)


def _committed(name):
  path = run_notebooks.FOLDER / f'{name}.ipynb'
  return nbformat.read(path, as_version=4)


@pytest.mark.parametrize('name', run_notebooks.NAMES)
def test_notebooks_run(name, monkeypatch):
  monkeypatch.setenv('SEMPPL_FAST', '1')
  _check_run(name)


@pytest.mark.long
@pytest.mark.parametrize('name', run_notebooks.NAMES)
def test_notebooks_run_in_full(name, monkeypatch):
  monkeypatch.delenv('SEMPPL_FAST', raising=False)
  _check_run(name)


def _check_run(name):
  notebook = run_notebooks.execute(name)
  assert not run_notebooks.problems(notebook)
  assert _pictures(notebook) == _pictures(_committed(name))


@pytest.mark.parametrize('name', run_notebooks.NAMES)
def test_committed_outputs(name):
  path = run_notebooks.FOLDER / f'{name}.ipynb'
  assert path.stat().st_size < _MOST_BYTES
  notebook = _committed(name)
  nbformat.validate(notebook)
  counts = [cell.execution_count for cell in _code(notebook)]
  assert counts == list(range(1, len(counts) + 1)), 'run it from the top'
  assert not run_notebooks.problems(notebook)
  assert _pictures(notebook) >= 4


def test_both_install_alike():
  assert set(run_notebooks.NAMES) == {'explore', 'train'}
  first = {_code(_committed(name))[0].source for name in run_notebooks.NAMES}
  assert len(first) == 1
