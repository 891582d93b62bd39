"""The notebooks run from top to bottom, and what is committed is clean.

In full by a kernel, as readers run them: that is long. In `make test` the cells
are run in one namespace, with fewer points and a step that learns nothing.
"""

import sys

import jax
import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest

from semppl_jax.distributed import parallel
from semppl_jax.evaluation import logistic
from semppl_jax.train import step as step_lib
from semppl_jax.workdir import plots
from tests import run_notebooks
from tests.helpers import tiny

_MOST_BYTES = 400_000


def _committed(name):
  path = run_notebooks.FOLDER / f'{name}.ipynb'
  return nbformat.read(path, as_version=4)


def _code(notebook):
  return [cell for cell in notebook.cells if cell.cell_type == 'code']


def _pictures(notebook):
  outputs = [output for cell in _code(notebook) for output in cell.outputs]
  return sum('image/png' in output.get('data', {}) for output in outputs)


@pytest.fixture
def light(monkeypatch):
  """A training that takes little but its steps, and one device for it."""
  monkeypatch.setattr(step_lib, 'train_step', tiny.light_step)
  monkeypatch.setattr(parallel, 'some_devices', lambda _: jax.devices()[:1])
  monkeypatch.setattr(plots, 'plots', lambda *_, **__: None)
  monkeypatch.setattr(
    logistic,
    'linear_probe',
    lambda train, labels, test, c: np.full(len(test), labels[0]),
  )


@pytest.mark.parametrize('name', run_notebooks.NAMES)
def test_cells_run(name, light, monkeypatch):
  monkeypatch.setenv('SEMPPL_FAST', '1')
  monkeypatch.chdir(run_notebooks.FOLDER)
  monkeypatch.setattr(sys, 'path', list(sys.path))
  shown = []
  monkeypatch.setattr(plt, 'show', lambda: shown.append(plt.gcf().axes))
  monkeypatch.setattr(plt, 'rcParams', plt.rcParams.copy())
  cache, names = jax.config.jax_compilation_cache_dir, {}
  try:
    for cell in _code(_committed(name)):
      exec(compile(cell.source, f'{name}.ipynb', 'exec'), names)
  finally:
    plt.close('all')
    jax.config.update('jax_compilation_cache_dir', cache)
  assert names['FAST'] and len(shown) >= 2 and all(shown)


@pytest.mark.long
@pytest.mark.parametrize('name', run_notebooks.NAMES)
def test_notebooks_run_in_full(name, monkeypatch):
  monkeypatch.delenv('SEMPPL_FAST', raising=False)
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
