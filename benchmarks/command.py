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


def finish_table(
  args: argparse.Namespace, text: str, found: dict[str, Any]
) -> None:
  """Writes table.md and table.json into args.workdir, and prints the table."""
  from semppl_jax.workdir import metrics  # late: not all that prints needs it

  folder = pathlib.Path(args.workdir)
  (folder / 'table.md').write_text(text)
  metrics.write_json(str(folder / 'table.json'), found)
  print(text)
  finish(args, found)


def finish(args: argparse.Namespace, found: dict[str, Any]) -> None:
  """Writes the numbers, if they are asked for."""
  if args.json:
    args.json.write_text(json.dumps(found, indent=2) + '\n')
