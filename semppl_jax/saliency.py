"""Entry point of `python -m semppl_jax.saliency`, see tools/saliency.py."""

import sys

from semppl_jax.tools.saliency import main

if __name__ == '__main__':
  sys.exit(main())
