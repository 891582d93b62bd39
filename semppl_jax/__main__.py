"""`python -m semppl_jax TASK ...`: the same as `semppl-jax TASK ...`."""

import sys

from semppl_jax import cli

if __name__ == '__main__':
  sys.exit(cli.main())
