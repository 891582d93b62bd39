"""The command line of the report.

  python -m semppl_jax.report DIR [DIR ...] [--out FILE.html]

The exit status is 0, or 2 with a line that says what is wrong.
"""

import argparse
import sys

from absl import logging

from semppl_jax.errors import UserError


def main(arguments: list[str] | None = None) -> int:
  """The command line; returns the exit status."""
  parser = argparse.ArgumentParser(
    prog='python -m semppl_jax.report',
    description='A report on a run, or on several: one HTML page.',
  )
  parser.add_argument('DIR', nargs='+', help='--workdir of a run')
  parser.add_argument(
    '--out',
    help='default: DIR/report.html; of several runs, report.html here',
  )
  parser.add_argument(
    '--images', type=int, default=2000, metavar='N',
    help='so many images of each kind are looked at (default: %(default)s)',
  )  # fmt: skip
  options = parser.parse_args(arguments)
  logging.set_verbosity(logging.WARNING)  # orbax says much below it
  from semppl_jax.report import page  # late: --help needs no JAX

  try:
    if options.images < 1:
      raise UserError(f'--images is {options.images}; it must be at least 1.')
    path = page.write(
      options.DIR, options.out, most=options.images,
      tell=lambda line: print(line, file=sys.stderr),
    )  # fmt: skip
  except UserError as error:
    print(f'error: {error}', file=sys.stderr)
    return UserError.status
  print(f'Written: {path}')
  return 0


if __name__ == '__main__':
  sys.exit(main())
