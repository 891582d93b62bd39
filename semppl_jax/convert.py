"""Entry point of `python -m semppl_jax.convert`, see tools/convert.py."""

import sys

from semppl_jax.tools.convert import main

if __name__ == '__main__':
  sys.exit(main())
