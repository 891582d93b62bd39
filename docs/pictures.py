"""Draws docs/method.svg and docs/architecture.svg: python -m docs.pictures."""

import pathlib

from docs import architecture_picture, method_picture

_FOLDER = pathlib.Path(__file__).parent
PICTURES = {
  _FOLDER / 'method.svg': method_picture.draw,
  _FOLDER / 'architecture.svg': architecture_picture.draw,
}


def main() -> None:
  """Writes them."""
  for path, draw in PICTURES.items():
    path.write_text(draw())


if __name__ == '__main__':
  main()
