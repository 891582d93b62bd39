"""Changed files for every reader of bytes from outside, and what must hold.

  python -m tests.resilience.fuzz_readers --seconds=60 --seed=0 [--reader=NAME]

Whatever a file holds, it is read or refused in one line, in bounded time and
memory, and the interpreter lives on. Another process tries the cases, and
writes each to the disk before: what kills it is kept, and it starts again
behind. DeepMind's pickles have tests/resilience/fuzz_pickles.py.
"""

import argparse
import collections
import faulthandler
import json
import pathlib
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

_ROOT = pathlib.Path(__file__).parents[2]
_SECONDS = 5  # of the processor, for one case
_HANGS = 120  # by the clock, whoever else uses the machine
_ADDRESSES = 8 * 2**30  # bytes that may be mapped beyond what is at the start
_MOST_FAILURES = 5  # of one reader
Plan = dict[str, int]  # of readers, each with its first case's number


def write(files: dict[str, bytes], folder: pathlib.Path) -> None:
  """Makes the folder anew."""
  shutil.rmtree(folder, ignore_errors=True)
  for name, data in files.items():
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def mutated(target, seeds, key: str) -> tuple[dict[str, bytes], list[str]]:
  """Files, and the names of those that are changed; the same for a key."""
  from tests.resilience import fuzz_mutations

  rng = random.Random(key)
  seed = rng.choice(seeds)
  files = dict(seed)
  for _ in range(rng.choice((1, 1, 1, 2))):
    name = rng.choice(list(files))
    others = [seed[name] for seed in seeds if name in seed]
    aware = [way for end, way in target.aware.items() if name.endswith(end)]
    way = rng.choice([fuzz_mutations.blind, *aware])
    try:
      files[name] = way(rng, files[name], others)
    except Exception:  # of a file that is broken already
      files[name] = fuzz_mutations.blind(rng, files[name], others)
  return files, [name for name in files if files[name] != seed[name]]


# -- The process that tries --


def _peak() -> float:
  """Megabytes that this process has ever had resident."""
  unit = 1 if sys.platform == 'darwin' else 1024
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def _limit_addresses() -> None:
  """Who asks for far too much gets a MemoryError, not the machine."""
  if sys.platform != 'linux':
    return
  pages = int(pathlib.Path('/proc/self/statm').read_text().split()[0])
  most = pages * resource.getpagesize() + _ADDRESSES
  _, hard = resource.getrlimit(resource.RLIMIT_AS)
  if hard == resource.RLIM_INFINITY or most < hard:
    resource.setrlimit(resource.RLIMIT_AS, (most, hard))


def _try(target, folder: pathlib.Path) -> tuple[str, float]:
  """Reads a folder; returns '' or why it was refused, and the seconds."""
  from semppl_jax.data import images
  from semppl_jax.errors import UserError

  start, text = time.process_time(), ''
  faulthandler.dump_traceback_later(_HANGS, exit=True)
  try:
    target.read(folder)
  except (UserError, images.Unreadable) as error:
    text = str(error)
    assert len(text.splitlines()) == 1, repr(text)
  finally:
    faulthandler.cancel_dump_traceback_later()
  seconds = time.process_time() - start
  assert seconds < _SECONDS, f'{seconds:.1f} seconds'
  return text, seconds


def _try_many(options, reader: str, start: int) -> None:
  """Tries a reader's cases; writes a line for each that went well."""
  from tests.resilience import fuzz_targets

  work, target = pathlib.Path(options.folder), fuzz_targets.TARGETS[reader]
  (work / 'seeds').mkdir()
  seeds = target.seeds(work / 'seeds')
  shutil.rmtree(work / 'seeds')
  for files in seeds:
    write(files, work / 'case')
    target.read(work / 'case')
  _limit_addresses()
  before, end = _peak(), time.monotonic() + options.seconds
  with (work / f'{reader}.jsonl').open('a', encoding='utf-8') as told:
    for number in range(start, options.count):
      if time.monotonic() > end:
        break
      key = f'{reader} {options.seed} {number}'
      files, changed = mutated(target, seeds, key)
      write(files, work / 'case')
      write({name: files[name] for name in changed}, work / 'kept')
      (work / 'current').write_text(f'{reader} {number}')
      text, seconds = _try(target, work / 'case')
      more = _peak() - before
      assert more < target.megabytes, f'{more:.0f} MB'
      print(json.dumps([text, seconds, more]), file=told, flush=True)


# -- The process that watches --


def run(
  readers: Sequence[str],
  *,
  seed: int,
  count: int,
  seconds: float,
  keep: pathlib.Path,
) -> tuple[dict[str, list[Any]], list[str]]:
  """Tries many cases.

  Args:
    readers: names in fuzz_targets.TARGETS.
    seed: of the cases.
    count: cases for each reader, at most.
    seconds: for each reader, about.
    keep: where cases go that went wrong.

  Returns:
    [answer ('': read), seconds, megabytes] of all cases that went well, by
    reader, and a text for each other one.
  """
  failures, left = [], dict.fromkeys(readers, 0)
  with tempfile.TemporaryDirectory() as folder:
    work = pathlib.Path(folder)
    while left:
      status, said = _start(left, seed, count, seconds, work)
      if not status:
        break
      current = work / 'current'
      if not current.exists():
        raise RuntimeError(f'The readers refuse good files: {said}')
      reader, number = current.read_text().split()
      place = keep / f'{reader}-{seed}-{number}'
      (work / 'kept').mkdir(exist_ok=True)
      shutil.copytree(work / 'kept', place, dirs_exist_ok=True)
      failures.append(f'{place}, exit status {status}: {said}')
      left = _rest(left, reader, int(number), failures)
    found = {path.stem: path.read_text() for path in work.glob('*.jsonl')}
  return {
    reader: [json.loads(line) for line in found.get(reader, '').splitlines()]
    for reader in readers
  }, failures


def _rest(left: Plan, reader: str, number: int, failures: list[str]) -> Plan:
  """What comes after a case of a reader."""
  names = list(left)
  later = {name: left[name] for name in names[names.index(reader) + 1 :]}
  many = sum(f'/{reader}-' in text for text in failures) >= _MOST_FAILURES
  return later if many else {reader: number + 1} | later


def _start(
  left: Plan, seed: int, count: int, seconds: float, work: pathlib.Path
) -> tuple[int, str]:
  """Runs the other process; its exit status and the end of what it said."""
  shutil.rmtree(work / 'seeds', ignore_errors=True)
  done = subprocess.run(
    [
      *(sys.executable, '-m', 'tests.resilience.fuzz_readers'),
      f'--folder={work}',
      *(f'--plan={json.dumps(left)}', f'--seed={seed}', f'--count={count}'),
      f'--seconds={seconds}',
    ],
    cwd=_ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
  )  # fmt: skip
  return done.returncode, done.stderr.decode(errors='replace')[-3000:]


def _report(reader: str, cases: list[Any]) -> str:
  refused = sum(bool(text) for text, *_ in cases)
  seconds = [own for _, own, _ in cases] or [0.0]
  megabytes = max((own for *_, own in cases), default=0.0)
  return (
    f'{reader:16} {len(cases):7,} cases in {sum(seconds):6.1f} s: '
    f'{len(cases) - refused:6,} read, {refused:7,} refused; the slowest '
    f'{max(seconds):.2f} s; {megabytes:+.0f} MB'
  )


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--reader', help='one of them; all by default')
  parser.add_argument('--seconds', type=float, default=60, help='for each')
  parser.add_argument('--count', type=int, default=10**9, help='for each')
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--keep', type=pathlib.Path, default='fuzz_failures')
  parser.add_argument('--plan', type=json.loads, help=argparse.SUPPRESS)
  parser.add_argument('--folder', help=argparse.SUPPRESS)
  options = parser.parse_args()
  if options.plan:
    for reader, start in options.plan.items():
      _try_many(options, reader, start)
    return 0
  from tests.resilience import fuzz_targets

  names = [options.reader] if options.reader else list(fuzz_targets.TARGETS)
  answers, failed = collections.Counter(), 0
  for reader in names:  # each in a process of its own, for its memory
    found, failures = run(
      [reader], seed=options.seed, count=options.count,
      seconds=options.seconds, keep=options.keep,
    )  # fmt: skip
    print(_report(reader, found[reader]), flush=True)
    print(*failures, sep='\n', end='\n' * bool(failures), flush=True)
    failed += len(failures)
    answers.update(bool(text) for text, *_ in found[reader])
  print(f'{answers[False]} read, {answers[True]} refused, {failed} failed')
  return int(failed > 0)


if __name__ == '__main__':
  sys.exit(main())
