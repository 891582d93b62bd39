"""Looks at a run before it starts: settings, data, devices, memory, time, disk.

  python -m semppl_jax.check --config=experiments/digits.py --workdir=runs/x

Takes the flags of `semppl_jax.main`, and in a job of several processes runs on
all of them; --workdir may be left out. The step is not compiled, so that it
takes seconds, and what would need it is estimated. The exit status is 0, or 2
with a line that says what is wrong.
"""

from typing import Any

from semppl_jax import main as main_lib


def _check(cfg: Any, workdir: str | None) -> None:
  from semppl_jax import preflight
  from semppl_jax.distributed import consistency, processes

  consistency.check(cfg.to_dict() | {'workdir': workdir})
  lines = processes.run_on_all(lambda: preflight.check_run(cfg, workdir))
  if processes.is_first():
    print('\n'.join(lines))


def main() -> None:
  """Entry point of `python -m semppl_jax.check`."""
  main_lib.launch(_check, needed=('config',))


if __name__ == '__main__':
  main()
