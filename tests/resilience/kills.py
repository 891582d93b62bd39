"""Training runs that are killed again and again, and must end as if never.

  python -m tests.resilience.kills --kills=50 --seed=0
  python -m tests.resilience.kills --kills=3 --command     # new processes

Lives of a run of `kills_config` get SIGKILL at random moments, and the same
command goes on; the last life is let finish. After each kill checkpoints,
metrics and lock are looked at, in the end everything is compared with a run
that was let alone, bit for bit. Prints where the kills fell: what the run was
doing (see `kills_marks`) and what lay on the disk when it was dead. A moment is
drawn from the seed: a place, the how many-th time that it is entered in this
life, and a delay from then on.

A life is a fork that runs `main` (see `forks`), or with --command a
process of its own; --light: with a step that compiles at once.
"""

import argparse
import collections
import concurrent.futures
import contextlib
import pathlib
import tempfile
import time

import numpy as np

from tests.resilience import kills_check, kills_lives
from tests.resilience.kills_marks import Marks

KILLS_OF_A_RUN = 5
# Of a place: times that it may be entered before, and seconds from then on.
AIMS = {
  'start-up': (0, 3.0),
  'input': (12, 0.002),
  'step': (10, 0.02),
  'checkpoint': (3, 0.5),
  'metrics': (10, 0.002),
  'evaluation': (1, 2.0),
}


def aims_of_a_run(random, count):
  """[(place, number, delay)]; a life that evaluates has nothing to train."""
  others = [place for place in AIMS if place != 'evaluation']
  # A checkpoint has the most to break.
  places = list(random.choice([*others, 'checkpoint', 'checkpoint'], count))
  if count > 1:
    places[-1] = 'evaluation'
  return [
    (str(p), int(random.integers(1, AIMS[p][0] + 1)) if AIMS[p][0] else 0,
     float(random.uniform(0, AIMS[p][1])))
    for p in places
  ]  # fmt: skip


def wait_for(aim, marks, life):
  """Until the moment, or the evaluation: a kill is not lost."""
  place, number, delay = aim
  while number and life.is_alive():
    if marks.entered(place) >= number or marks.entered('evaluation'):
      break
    time.sleep(2e-4)
  time.sleep(delay)


def killed_run(starter, folder, aims, options):
  """Kills and resumes one run; where each kill fell, and the time it took.

  A life that ends before its moment comes ends the run, too.
  """
  workdir, fell = folder / 'run', []
  for i, aim in enumerate(aims):
    path = folder / f'marks{i}'
    marks = Marks(path, new=True)
    before = kills_check.unfinished(workdir)
    life = starter.start(workdir, options, {'KILLS_MARKS': str(path)})
    wait_for(aim, marks, life)
    if not life.kill():
      break
    nothing = 'between them' if marks.entered('input') else 'start-up'
    left = {kind for kind, _ in kills_check.unfinished(workdir) - before}
    fell.append((aim, (marks.inside() or [nothing]) + sorted(left)))
    kills_check.after_a_kill(workdir, life)
  starter.start(workdir, options, {}).finish()
  return fell


def some_runs(starter, folder, seed, kills, numbers):
  """Several runs, one after another, and where the kills fell."""
  found = []
  for run in numbers:
    count = min(KILLS_OF_A_RUN, kills - run * KILLS_OF_A_RUN)
    aims = aims_of_a_run(np.random.default_rng((seed, run)), count)
    # Not in the first: workers take long to start.
    options = ['--config.dataset.workers=1'] if run % 4 == 3 else []
    place = folder / str(run)
    place.mkdir()
    begun = time.monotonic()
    try:
      fell = killed_run(starter, place, aims, options)
      kills_check.assert_same(place / 'run', folder / 'alone')
    except BaseException:
      print(f'FAILED: seed {seed}, run {run}, {options}, {aims}', flush=True)
      raise
    for (aimed, number, delay), places in fell:
      print(
        f'run {run} {" ".join(options)}: aimed at {aimed} {number} + '
        f'{delay:.3f} s, fell in {", ".join(places)}', flush=True,
      )  # fmt: skip
    seconds = time.monotonic() - begun
    print(f'run {run}: the same, bit for bit ({seconds:.0f} s)', flush=True)
    found += fell
  return found


def kill(kills, seed, folder, *, command=False, light=False, at_once=2):
  """Does it all; returns the places of each kill.

  Raises:
    AssertionError: something is not as it should be; a line says of which run.
  """
  print(f'{kills} kills, seed {seed}, {command=}, {light=}', flush=True)
  environment = {'KILLS_LIGHT': '1'} if light else {}
  kind = kills_lives.Commands if command else kills_lives.Forks
  runs = -(-kills // KILLS_OF_A_RUN)
  with contextlib.ExitStack() as stack:
    starters = [
      stack.enter_context(kind(environment)) for _ in range(min(at_once, runs))
    ]
    starters[0].start(folder / 'alone', [], {}).finish()
    pool = stack.enter_context(
      concurrent.futures.ThreadPoolExecutor(len(starters))
    )
    jobs = [
      pool.submit(
        some_runs, starter, folder, seed, kills, range(i, runs, len(starters))
      )
      for i, starter in enumerate(starters)
    ]
    return [places for job in jobs for _, places in job.result()]


def summary(fell):
  """How many kills fell where; one may be in several places at once."""
  counts = collections.Counter(place for places in fell for place in places)
  lines = [f'{len(fell)} kills; of them in'] + [
    f'  {place}: {count}' for place, count in sorted(counts.items())
  ]
  return '\n'.join(lines)


def main():
  """Prints what is found; a traceback if something is not right."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument('--kills', type=int, default=50)
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--command', action='store_true', help='see above')
  parser.add_argument('--light', action='store_true', help='see above')
  parser.add_argument('--at_once', type=int, default=2, help='runs')
  args = vars(parser.parse_args())
  with tempfile.TemporaryDirectory(prefix='kills') as place:
    fell = kill(folder=pathlib.Path(place), **args)
  print(summary(fell))


if __name__ == '__main__':
  main()
