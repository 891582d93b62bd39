"""Entry point: see tools/to_array_record.py."""

import sys

from semppl_jax.tools.to_array_record import main

if __name__ == '__main__':
  sys.exit(main())
