"""Weights from one format to another.

  python -m semppl_jax.convert IN OUT

IN is whatever `load_checkpoint` reads: a pickle of DeepMind's release, a
safetensors file, the folder of a run. OUT ends in .safetensors, or in .pkl:
DeepMind's pretrain.pkl, which its own evaluation code reads. A folder of a run
cannot be made of weights: it holds an optimiser and a queue too.
"""

import argparse
import sys

from semppl_jax import storage
from semppl_jax.errors import UserError
from semppl_jax.models import encoders
from semppl_jax.tools import command
from semppl_jax.weights import files as files_lib
from semppl_jax.weights import load as load_lib

_WRITERS = {
  '.safetensors': load_lib.save_safetensors,
  '.pkl': load_lib.save_release,
}


def convert(
  source: str,
  target: str,
  *,
  step: int | None = None,
  padding: str | None = None,
  mapping: str | None = None,
  network: str | None = None,
  overwrite: bool = False,
) -> load_lib.Checkpoint:
  """Reads `source`, checks it, and writes `target`.

  Args:
    source: see `load_lib.load_checkpoint`, like the others of these.
    target: a path that ends in .safetensors or .pkl.
    step: which checkpoint of a run.
    padding: what is not said by the source.
    mapping: a JSON file for unpublished names.
    network: 'online' or 'target'; None: as `load_checkpoint` chooses.
    overwrite: whether a file that is there may be replaced.

  Returns:
    What was read.

  Raises:
    UserError: a source that cannot be read, or a target that cannot be written.
  """
  ending = storage.path(target).suffix
  if ending not in _WRITERS:
    raise UserError(
      f'{target}: OUT must end in {" or ".join(_WRITERS)}. (A run cannot be '
      'made of weights: it holds an optimiser and a queue too.)'
    )
  if storage.path(target).exists() and not overwrite:
    raise UserError(f'{target} is there already; --overwrite replaces it.')
  found = load_lib.load_checkpoint(
    source, step=step, padding=padding, mapping=mapping, network=network
  )
  _WRITERS[ending](target, found)
  return found


def lacking(found: load_lib.Checkpoint) -> str | None:
  """Why DeepMind's code cannot use the encoder; None: it can."""
  name, _, stem, selective_kernels, padding = found.architecture
  reasons = []
  if selective_kernels or name == 'digits':
    reasons.append('its public code has no such network')
  if stem != 'imagenet':
    reasons.append(f'its networks have no {stem} stem')
  if padding != 'same':
    reasons.append(f'it has no {padding} padding')
  if found.bn_eps != 1e-5:
    reasons.append(
      f'its BatchNorm has an epsilon of 1e-5, not {found.bn_eps:g}'
    )
  return '; '.join(reasons) or None


def main(arguments: list[str] | None = None) -> int:
  """The command line; returns the exit status."""
  parser = argparse.ArgumentParser(
    prog='python -m semppl_jax.convert',
    description='Weights from one format to another.',
  )
  parser.add_argument('IN', help='pickle, safetensors file or run folder')
  parser.add_argument('OUT', help='ends in .safetensors or .pkl')
  parser.add_argument('--step', type=int, help='which checkpoint of a run')
  parser.add_argument('--padding', choices=encoders.PADDINGS)
  parser.add_argument(
    '--network',
    choices=files_lib.NETWORKS,
    help='of what has both; else the one that a run reports',
  )
  parser.add_argument('--mapping', help='JSON {their module: ours}')
  parser.add_argument('--overwrite', action='store_true')
  options = parser.parse_args(arguments)
  settings = dict(vars(options))
  source, target = settings.pop('IN'), settings.pop('OUT')

  def work():
    found = convert(source, target, **settings)
    print(f'{source}: {found}')
    reason = lacking(found)
    if target.endswith('.pkl') and reason:
      print(f"DeepMind's evaluation code cannot use it: {reason}.")
    print(f'Written: {target}')

  return command.status(work)


if __name__ == '__main__':
  sys.exit(main())
