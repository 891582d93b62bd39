"""The command line of a benchmark, and its JSON."""

import argparse
import json
import logging
import pathlib
import sys
from typing import Any


def parser(module_doc: str) -> argparse.ArgumentParser:
  """A parser that knows --json; warnings are silenced."""
  logging.getLogger('absl').setLevel(logging.ERROR)
  made = argparse.ArgumentParser(
    description=module_doc, formatter_class=argparse.RawTextHelpFormatter
  )
  made.add_argument('--json', type=pathlib.Path, help='file for the numbers')
  return made


def say(text: str) -> None:
  """What goes on, beside the tables."""
  print(text, file=sys.stderr, flush=True)


def finish(args: argparse.Namespace, found: dict[str, Any]) -> None:
  """Writes the numbers, if they are asked for."""
  if args.json:
    args.json.write_text(json.dumps(found, indent=2) + '\n')
