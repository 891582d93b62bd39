"""The tests at the corners of what is supported: Python and JAX, old and new.

  python -m tests.versions                    # all of them, one after another
  python -m tests.versions --corner=colab --workdir=runs/versions

Makes a virtual environment for each in WORKDIR, installs there, and runs the
tests that are not marked long. The interpreters must be there. Prints what was
installed and how the tests ended; the exit status is 1 if any failed. docs/
versions.md has the last counts.
"""

import argparse
import pathlib
import re
import subprocess
import sys
from typing import NamedTuple

_ROOT = pathlib.Path(__file__).parent.parent


class Corner(NamedTuple):
  """Which interpreter, and what pip is told."""

  python: str
  install: tuple[str, ...]


_NEWEST = ('--upgrade', '--upgrade-strategy=eager', '.[test,saliency]')
CORNERS = {
  'pinned': Corner('python3.11', ('-r', 'requirements.txt')),
  'newest': Corner('python3.12', _NEWEST),
  'colab': Corner('python3.13', ('-c', 'tests/colab.txt', '.[test,saliency]')),
}


def environment(corner: Corner, folder: pathlib.Path) -> str:
  """Makes it, or brings it up to date; its interpreter."""
  python = str(folder / 'bin' / 'python')
  if not pathlib.Path(python).exists():
    subprocess.run([corner.python, '-m', 'venv', str(folder)], check=True)
  pip = [python, '-m', 'pip', 'install', '--quiet']
  subprocess.run([*pip, *corner.install], check=True, cwd=_ROOT)
  return python


def versions(python: str) -> str:
  """'Python 3.13.0, jax 0.7.2, numpy 2.1.3'."""
  told = subprocess.run(
    [python, '-c', 'import platform, jax, numpy; print("Python", '
     'platform.python_version() + ", jax", jax.__version__ + ", numpy", '
     'numpy.__version__)'],
    check=True, capture_output=True, text=True,
  )  # fmt: skip
  return told.stdout.strip()


def outcome(python: str) -> tuple[str, bool]:
  """pytest's last line, and whether all passed; its output is passed on."""
  command = [
    python,
    '-m',
    'pytest',
    '-n',
    '2',
    '--dist',
    'loadfile',
    '-q',
    '-m',
    'not long',
  ]
  running = subprocess.Popen(
    command, cwd=_ROOT, stdout=subprocess.PIPE, text=True
  )
  last = ''
  for line in running.stdout:
    print(line, end='', flush=True)
    if re.search(r'\d+ (passed|failed|error)', line):
      last = line.strip(' =\n')
  return last, running.wait() == 0


def main() -> int:
  """Tries the corners; 0 if all tests passed in all of them."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--corner', choices=CORNERS, help='default: all')
  parser.add_argument('--workdir', default='runs/versions')
  options = parser.parse_args()
  found, fine = [], True
  for name in [options.corner] if options.corner else CORNERS:
    folder = pathlib.Path(options.workdir, name).absolute()
    python = environment(CORNERS[name], folder)
    said, passed = outcome(python)
    found.append(f'{name}: {versions(python)}: {said}')
    fine &= passed
  print('\n'.join(found))
  return 0 if fine else 1


if __name__ == '__main__':
  sys.exit(main())
