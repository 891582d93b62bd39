"""The command line, with the tests' smallest encoder."""

from semppl_jax import main
from tests.helpers import tiny  # noqa: F401, it registers the encoder

if __name__ == '__main__':
  main.main()
