"""Whether a long run stays as it began: memory, open files, threads, speed.

  python -m benchmarks.soak                  # 2,000 steps of the digits
  python -m benchmarks.soak --steps=10000 --workdir=runs/soak

Trains experiments/digits.py in a process of its own, every step logged and
checkpoints as the config says, and looks at it through /proc until its last
step. Prints a row for each tenth of the run, and a verdict: the last fifth
against the second (the first has the compilation in it), and the slope of a
line through the medians of the tenths from the second fifth on.

Memory, files and threads are judged by their medians, a step's time by its
lower quartile: what disturbs a shared machine only ever makes it slower.
--json=FILE writes the numbers.
"""

import argparse
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import Any, NamedTuple

import numpy as np

from benchmarks import command
from semppl_jax.workdir import metrics, tables

ROOT = pathlib.Path(__file__).parent.parent
PARTS = 10
IMAGES, BATCH = 1500, 128  # of experiments/digits.py


class Sample(NamedTuple):
  """What a process holds at one moment; `step` is the last one logged."""

  step: int
  megabytes: float  # resident
  files: int  # open handles
  threads: int


class Measure(NamedTuple):
  """How one quantity is judged."""

  name: str
  quantile: float
  allowed: float  # growth that is still called flat, a share


MEASURES = {
  'megabytes': Measure('memory, MB', 0.5, 0.02),
  'files': Measure('open files', 0.5, 0.0),
  'threads': Measure('threads', 0.5, 0.0),
  'milliseconds': Measure('step, ms', 0.25, 0.05),
}


def look(pid: int, step: int) -> Sample:
  """One sample of a process.

  Raises:
    OSError: it has ended.
    KeyError: it is ending.
  """
  folder = pathlib.Path('/proc', str(pid))
  lines = (folder / 'status').read_text().splitlines()
  said = dict(line.split(':\t', 1) for line in lines if ':\t' in line)
  return Sample(
    step,
    int(said['VmRSS'].split()[0]) / 1024,
    len(os.listdir(folder / 'fd')),
    int(said['Threads']),
  )


class Lines:
  """Counts the lines of a file that grows."""

  def __init__(self, path: pathlib.Path):
    self._path, self._read, self.count = path, 0, 0

  def update(self) -> int:
    """Reads what is new; the number of lines so far."""
    if self._path.exists():
      with self._path.open('rb') as file:
        file.seek(self._read)
        new = file.read()
      self._read += len(new)
      self.count += new.count(b'\n')
    return self.count


def watch(workdir: pathlib.Path, steps: int, every: float) -> list[Sample]:
  """Trains, and samples from the first logged step to the last but one."""
  process = subprocess.Popen(
    [
      sys.executable, '-m', 'semppl_jax.main', f'--workdir={workdir}',
      f'--config={ROOT / "experiments" / "digits.py"}',
      f'--config.num_epochs={steps * BATCH / IMAGES}',
      '--config.log_every_steps=1', '--config.progress=False',
    ],
    cwd=ROOT,
    stdout=sys.stderr,
  )  # fmt: skip
  logged, samples = Lines(workdir / 'metrics.jsonl'), []
  try:
    while process.poll() is None:
      time.sleep(every)
      step = logged.update()
      if 0 < step < steps:
        samples.append(look(process.pid, step))
  finally:
    process.kill()
  if process.wait():
    raise RuntimeError(f'The run ended with status {process.returncode}.')
  return samples


def by_tenths(
  samples: list[Sample], rows: list[dict[str, Any]]
) -> dict[str, list[np.ndarray]]:
  """The values of each measure in each tenth of the run.

  Args:
    samples: in the order of time.
    rows: of metrics.jsonl, one for each step.
  """
  steps = len(rows)
  milliseconds = 1000 * np.diff([row['seconds'] for row in rows])
  found = {'milliseconds': np.array_split(milliseconds, PARTS)}
  place = np.array([sample.step * PARTS // steps for sample in samples])
  for name in Sample._fields[1:]:
    values = np.array([getattr(sample, name) for sample in samples], float)
    found[name] = [values[place == part] for part in range(PARTS)]
  return found


def judge(tenths: list[np.ndarray], measure: Measure) -> dict[str, Any]:
  """The last fifth against the second, and the slope from there on."""
  fifth = PARTS // 5
  second, last = (
    float(np.quantile(np.concatenate(part), measure.quantile))
    for part in (tenths[fifth : 2 * fifth], tenths[-fifth:])
  )
  later = [np.quantile(x, measure.quantile) for x in tenths[fifth:]]
  slope = float(np.polyfit(np.arange(len(later)), later, 1)[0])
  return {
    'second_fifth': second,
    'last_fifth': last,
    'growth': last / second - 1,
    'slope_of_a_tenth': slope,
    'flat': last <= second * (1 + measure.allowed),
  }


def show(found: dict[str, list[np.ndarray]], verdicts: dict[str, Any]) -> str:
  """A row for each tenth: median and largest, of steps quartile and 90%."""
  heads = ['tenth', 'memory, MB', 'largest', 'open files', 'most']
  heads += ['threads', 'most', 'step, ms (lower quartile)', 'median', '90%']
  rows = []
  for part in range(PARTS):
    cells = [
      f'{value:.0f}'
      for name in Sample._fields[1:]
      for value in (np.median(found[name][part]), found[name][part].max())
    ]
    times = np.quantile(found['milliseconds'][part], (0.25, 0.5, 0.9))
    rows.append([part + 1, *cells, *(f'{value:.0f}' for value in times)])
  lines = [
    f'{MEASURES[name].name}: {"flat" if v["flat"] else "GROWS"}, '
    f'{v["second_fifth"]:.1f} in the second fifth, {v["last_fifth"]:.1f} in '
    f'the last ({100 * v["growth"]:+.1f}%, allowed '
    f'{100 * MEASURES[name].allowed:.0f}%); slope '
    f'{v["slope_of_a_tenth"]:+.2f} a tenth'
    for name, v in verdicts.items()
  ]
  return tables.markdown(heads, rows) + '\n' + '\n'.join(lines)


def _arguments() -> argparse.Namespace:
  parser = command.parser(__doc__)
  parser.add_argument('--steps', type=int, default=2000)
  parser.add_argument(
    '--every', type=float, default=0.5, help='seconds between two samples'
  )
  parser.add_argument(
    '--workdir', type=pathlib.Path, help='a new folder; none: a temporary one'
  )
  return parser.parse_args()


def main() -> None:
  """Measures and prints; status 1 if anything grows."""
  args = _arguments()
  with tempfile.TemporaryDirectory() as place:
    workdir = args.workdir or pathlib.Path(place, 'run')
    samples = watch(workdir, args.steps, args.every)
    rows = metrics.read(str(workdir))
  if [row['step'] for row in rows] != list(range(1, args.steps + 1)):
    raise RuntimeError(f'{len(rows)} lines of metrics for {args.steps} steps.')
  found = by_tenths(samples, rows)
  verdicts = {name: judge(found[name], MEASURES[name]) for name in MEASURES}
  print(show(found, verdicts))
  medians = {k: [float(np.median(x)) for x in v] for k, v in found.items()}
  command.finish(args, {'tenths': medians, 'verdicts': verdicts})
  sys.exit(not all(v['flat'] for v in verdicts.values()))


if __name__ == '__main__':
  main()
