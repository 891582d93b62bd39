"""The command line: one config, one folder, one task.

  python -m semppl_jax.main --config=experiments/digits.py --workdir=runs/digits

Settings are overridden with --config.KEY=VALUE. The exit status is 0 when the
run is finished, 2 for a mistake in settings or input (one line says which), 3
for an alarm of the watchdog, 128 + N after signal N (the state is saved; the
same command goes on).

On several hosts the same command runs on each. JAX finds the others by itself
on TPU pods (with --distributed=on), under SLURM, GKE and Open MPI; elsewhere
--coordinator, --num_processes and --process_id say it.
"""

import functools
import os
import pathlib
import re
import shlex
import sys
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

from absl import app, flags, logging
from ml_collections import config_flags

from semppl_jax import config, storage
from semppl_jax.config import upgrade
from semppl_jax.errors import UserError
from semppl_jax.storage import objects
from semppl_jax.train import stop as stop_lib
from semppl_jax.utils.text import first_line, nearest_name

_CONFIG = config_flags.DEFINE_config_file(
    'config', None, 'Experiment config, e.g. experiments/digits.py.',
    lock_config=True,
)  # fmt: skip
_WORKDIR = flags.DEFINE_string(
  'workdir', None, 'Folder of this run, or s3://BUCKET/PATH, gs://BUCKET/PATH.'
)
_DISTRIBUTED = flags.DEFINE_enum(
  'distributed', 'auto', ('auto', 'on', 'off'),
  'Whether this is one process of several; auto: as flags or environment say.',
)  # fmt: skip
_COORDINATOR = flags.DEFINE_string(
  'coordinator', None, 'HOST:PORT where process 0 waits for the others.'
)
_NUM_PROCESSES = flags.DEFINE_integer('num_processes', None, 'Of this job.')
_PROCESS_ID = flags.DEFINE_integer('process_id', None, 'This one, from 0.')
_CONNECT_SECONDS = flags.DEFINE_integer(
  'connect_seconds', 300, 'How long the processes wait for each other.'
)

# Of an installed package, and of a clone.
_HERE = pathlib.Path(__file__).parent
_EXPERIMENTS = (_HERE / 'experiments', _HERE.parent / 'experiments')

# Of the config and the work directory.
Task = Callable[[Any, str], Any]


def _run(argv: Sequence[str], task: Task, needed: Sequence[str]) -> None:
  """Joins the job's processes, if there are several, and does the task."""
  if len(argv) > 1:
    raise UserError(f'Unexpected argument {argv[1]!r}; see --help.')
  for name, flag in (('config', _CONFIG), ('workdir', _WORKDIR)):
    if name in needed and flag.value is None:
      raise UserError(f'--{name} is missing; see --help.')
  if _WORKDIR.value:
    storage.check_address(_WORKDIR.value)
    if storage.is_remote(_WORKDIR.value):
      objects.check(storage.path(_WORKDIR.value))
  # Imported late: a wrong flag is refused before JAX starts.
  from semppl_jax.distributed import processes
  from semppl_jax.utils import allocator

  allocator.keep_freed_memory()
  told = processes.Address(
    _COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value
  )
  processes.connect(told, _DISTRIBUTED.value, _CONNECT_SECONDS.value)
  task(_CONFIG.value, _WORKDIR.value)


def train_or_evaluate(cfg: Any, workdir: str) -> None:
  """Does what the config asks for, and prints the results as a table."""
  from semppl_jax import tasks
  from semppl_jax.distributed import processes

  results = tasks.of(cfg)(cfg, workdir)
  if processes.is_first():
    # Later still: it takes seconds, and a mistake is told without it.
    from semppl_jax.evaluation import verdict
    from semppl_jax.workdir import plots

    print(plots.table(results))
    if judged := verdict.line(results):
      print(judged)
    print(f'Results, plots and checkpoints: {workdir}')
    page = f'python -m semppl_jax.report {shlex.quote(workdir)}'
    print(f'A page about it: {page}')


def _parse(argv: list[str]) -> list[str]:
  """absl's parser, with one line for what is wrong with the flags."""
  argv = list(argv)
  for i, argument in enumerate(argv):
    if argument.startswith('--config='):
      name, colon, variant = argument.removeprefix('--config=').partition(':')
      file = _experiment(name)
      argv[i] = f'--config={file}{colon}{variant}'
      # Experiments build on their neighbours, wherever this is called from.
      sys.path.append(str(file.parent.parent))
  try:
    return flags.FLAGS(argv)
  except Exception as e:  # whatever a config file raises is its user's to mend
    newer = [_renamed(argument) for argument in argv]
    if newer == argv:
      raise UserError(_explain(argv, e)) from e
  # An old name that the config does not have any more; config_flags looks here.
  sys.argv = [_renamed(argument) for argument in sys.argv]
  return _parse(newer)


def _renamed(argument: str) -> str:
  """A flag in today's words, if it sets what had another name."""
  found = re.fullmatch(r'--?(no)?config\.([^=]+)(?:=(.*))?', argument)
  if not found or found[2] not in upgrade.STILL_TAKEN:
    return argument
  no, key, text = found.groups()
  flag = f'--config.{config.RENAMED[key][0]}'
  if key == 'loss.exclude_same_label':  # a flag that needs no value
    is_on = not no and (text or 'true').lower() in ('true', 't', '1')
    text = upgrade.translated(key, is_on)
  return flag if text is None else f'{flag}={text}'


_HELP = ('--help', '-help', '-h', '--helpshort', '-helpshort', '--helpfull')


def _help(task: Task) -> str:
  """What the flags are, where the config's keys are listed, what is there."""
  module = sys.modules[task.__module__]
  described = flags.FLAGS.module_help(sys.modules[__name__]).strip()
  known = ', '.join(sorted(_known_experiments()))
  return (
    f'{(module.__doc__ or "").strip()}\n\nFlags:\n'
    f'{described.partition(chr(10))[2]}\n\n'  # below the module's name
    '--config takes a file, or the name of an experiment that comes along:\n'
    f'{textwrap.fill(known, 78)}\n'
    'Any setting: --config.KEY=VALUE. All keys, with their defaults and what '
    'they do:\ndocs/settings.md, semppl_jax/config/defaults.py and, of '
    'evaluation,\nsemppl_jax/config/eval_config.py.\n'
  )


def _known_experiments() -> dict[str, pathlib.Path]:
  folder = next((f for f in _EXPERIMENTS if f.is_dir()), None)
  return {f.stem: f for f in folder.glob('[!_]*.py')} if folder else {}


def _experiment(name: str) -> pathlib.Path:
  """A config file, or by its bare name one of those that come along."""
  file = pathlib.Path(name)
  if file.is_file():
    return file.absolute()
  known = _known_experiments()
  if not known or file.name != name:
    raise UserError(f'--config: there is no file {name!r}.')
  if file.stem not in known:
    hint = nearest_name(name, known)
    raise UserError(
      f'--config: there is no file {name!r}, nor an experiment{hint}; known: '
      f'{", ".join(sorted(known))}'
    )
  return known[file.stem]


def _missing_part(error: BaseException | None) -> str | None:
  """The part of a dotted key that the config does not have, if that is it."""
  part = None
  while error:
    if isinstance(error, KeyError) and error.args:
      part = first_line(str(error.args[0]).strip('\'"')).strip('\'"')
    error = error.__cause__ or error.__context__
  return part


def _explain(argv: list[str], error: BaseException) -> str:
  """One line for what went wrong with the flags."""
  keys = [
    found.group(1)
    for argument in argv[1:]
    if (found := re.match(r'--config\.([^=]+)', argument))
  ]
  missing = _missing_part(error)
  for key in keys:
    if missing in key.split('.'):
      return config.why_unknown(key)
  top = first_line(error)
  while inner := error.__cause__ or error.__context__:
    error = inner
  reason = str(error) and first_line(error)
  return top if reason in top else f'{top} {type(error).__name__}: {reason}'


def _guarded(argv: Sequence[str], task: Task, needed: Sequence[str]) -> None:
  try:
    _run(argv, task, needed)
  except RuntimeError as e:
    from semppl_jax.distributed import processes

    if processes.count() == 1:
      raise
    # The collective that broke says what it saw; the cause is elsewhere.
    reason = first_line(e)[:200]
    _exit(
      'another process of this job has ended, so this one ends, too; the same '
      f'command on all hosts goes on from the last checkpoint ({reason})'
    )
  except UserError as e:
    _exit(str(e), e.status)
  except BrokenPipeError:
    raise
  except OSError as e:  # a folder that cannot be written, a full disk
    if e.strerror is None:
      raise
    _exit(f'{e.strerror}: {e.filename or _WORKDIR.value}')
  except KeyboardInterrupt:  # a second signal: the last checkpoint counts
    _leave(130)


def _exit(message: str, status: int = UserError.status) -> None:
  print(f'error: {message}', file=sys.stderr)
  _leave(status)


def _leave(status: int) -> None:
  """Ends; in a job of several processes without waiting for the others."""
  name = 'semppl_jax.distributed.processes'
  processes = sys.modules.get(name)  # None: no JAX yet
  if processes and processes.is_connected():
    # At the usual exit JAX waits for them, maybe for minutes.
    sys.stderr.flush()
    os._exit(status)
  sys.exit(status)


def launch(task: Task, needed: Sequence[str] = ('config', 'workdir')) -> None:
  """Reads the flags and does a task; a mistake is one line and its status.

  Args:
    task: called with the config and the work directory.
    needed: flags that must be given.
  """
  logging.set_verbosity(logging.WARNING)  # orbax and JAX say much below it
  with stop_lib.reader_may_leave():
    if any(argument in _HELP for argument in sys.argv[1:]):
      print(_help(task))
      return
    try:
      argv = _parse(sys.argv)
    except UserError as e:
      _exit(str(e))
    guarded = functools.partial(_guarded, task=task, needed=needed)
    app.run(guarded, argv=argv, flags_parser=lambda args: args)


def main() -> None:
  """Entry point of `python -m semppl_jax.main`."""
  launch(train_or_evaluate)


if __name__ == '__main__':
  main()
