"""benchmarks/on_gpu.sh, with tiny sizes on this machine."""

import os
import pathlib
import subprocess
import sys

import pytest

_ROOT = pathlib.Path(__file__).parents[2]


def _run(out, **environment):
  environment = {'TINY': '1', 'TORCH': '', 'PYTHON': sys.executable} | (
    environment
  )
  done = subprocess.run(
    ['bash', 'benchmarks/on_gpu.sh', str(out)], cwd=_ROOT, check=True,
    env=os.environ | environment, capture_output=True, text=True,
  )  # fmt: skip
  return done.stdout, (out / 'summary.txt').read_text().splitlines()


@pytest.mark.long  # six programs are compiled
def test_every_part_ends_well(tmp_path):
  text, summary = _run(tmp_path)
  assert [line.split(':')[0] for line in summary] == [
    'device', 'bfloat16_4', 'kernels', 'float32', 'regression', 'knn',
    'tests', 'digits', 'cifar_images', 'cifar', 'bfloat16_8',
  ]  # fmt: skip
  assert all('status 0 ' in line for line in summary), text
  assert (tmp_path / 'bfloat16_8.json').exists()


def test_without_time_everything_is_skipped(tmp_path):
  _, summary = _run(tmp_path, MINUTES='0')
  assert len(summary) == 11
  assert all(line.endswith('skipped, no time left') for line in summary)


def test_parts_are_taken_by_name(tmp_path):
  _, summary = _run(tmp_path, PYTHON='true', PARTS='knn digits', MINUTES='1')
  assert [line.split(':')[0] for line in summary] == ['knn', 'digits']


def test_a_part_that_fails_does_not_end_it(tmp_path):
  _, summary = _run(tmp_path, PYTHON='false', MINUTES='1')
  assert len(summary) == 11
  assert all('status 1 ' in line for line in summary)
