"""Duplicates: copies within the training images, and of test images among them.

  semppl-jax duplicates --dataset=folder --path=DIR --out=duplicates.csv
  semppl-jax duplicates --dataset=folder --path=DIR --checkpoint=RUN --out=d.csv

Finds the same bytes, recompressed, resized, cropped and mirrored images (see
`data.duplicates`), and with --checkpoint those whose embeddings are alike.
Pairs with a test image come first. To train without these images:
--config.dataset.drop_duplicates=True.
"""

import argparse
import collections
import csv
import io
import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import tqdm

from semppl_jax import model as model_lib
from semppl_jax import storage
from semppl_jax.config import defaults
from semppl_jax.data import datasets, duplicates, sources, thumbnails
from semppl_jax.data.duplicates import Pair
from semppl_jax.errors import UserError
from semppl_jax.tools import command
from semppl_jax.utils import files
from semppl_jax.weights import files as weight_files

EMBEDDING = 'embedding'
COSINE = 0.98  # of embeddings that are alike [ours]
COLUMNS = ('name', 'split', 'other', 'other_split', 'kind', 'score')
_BLOCK = 512  # images that are embedded at once
_SHOWN = 10  # pairs, or images, on the terminal


class Found(NamedTuple):
  """Pairs of a data set, those with a test image first."""

  pairs: list[Pair]
  unreadable: dict[str, str]  # name -> reason, of images left out


def find(
  data: sources.Dataset,
  model: model_lib.Model | None = None,
  *,
  least: float = duplicates.LEAST,
  cosine: float = COSINE,
) -> Found:
  """Duplicates within the training images, and between these and test images.

  Args:
    data: N training images and perhaps M test images, rows N ... of pairs.
    model: whose embeddings are compared, too; None: pixels alone.
    least: correlation of details, see `duplicates.find`.
    cosine: of two embeddings less the mean of all.

  Raises:
    UserError: fewer than two images, or fewer that can be read.
  """
  parts = [part for part in (data.train, data.test) if part is not None]
  total = sum(map(len, parts))
  if total < 2:
    raise UserError(
      f'{total} image in all: there is nothing to compare it with.'
    )
  seen = [thumbnails.make(part, progress=True) for part in parts]
  unreadable = {
    sources.name(part, row): reason
    for part, one in zip(parts, seen, strict=True)
    for row, reason in one.unreadable.items()
  }
  readable = np.concatenate([one.sides > 0 for one in seen])
  if readable.sum() < 2:
    name, reason = next(iter(unreadable.items()))
    raise UserError(
      f'Of {total:,} images {readable.sum()} can be read, so there is nothing '
      f'to compare: {name} ({reason}).'
    )
  test = seen[1] if len(seen) > 1 else None
  pairs = duplicates.find(seen[0], test, least=least, progress=True)
  if model is not None:
    known = {(pair.first, pair.second) for pair in pairs}
    pairs += [
      pair
      for pair in _alike(model, parts, readable, cosine)
      if (pair.first, pair.second) not in known
    ]
  number = len(data.train)
  key = lambda pair: (pair.second < number, -pair.score, pair)
  return Found(sorted(pairs, key=key), unreadable)


def _alike(
  model: model_lib.Model,
  parts: Sequence[sources.Source],
  readable: np.ndarray,
  least: float,
) -> Iterator[Pair]:
  """Pairs of embeddings that are alike, at least one of them of training."""
  number = len(parts[0])
  embedded = np.concatenate([_embed(model, part) for part in parts])
  embedded -= embedded[readable].mean(axis=0)
  lengths = np.linalg.norm(embedded, axis=1, keepdims=True)
  embedded /= np.maximum(lengths, 1e-6)
  train = np.flatnonzero(readable[:number])
  test = number + np.flatnonzero(readable[number:])
  for others in (train, test):
    for i, j, cosine, _ in duplicates.similar(
      embedded[train], embedded[others], least, rising=others is train
    ):
      for a, b, score in zip(train[i], others[j], cosine, strict=True):
        yield Pair(int(a), int(b), EMBEDDING, float(score))


def _embed(model: model_lib.Model, source: sources.Source) -> np.ndarray:
  rows = np.zeros((len(source), model.embedding_size), np.float32)
  with tqdm.tqdm(
    total=len(source), desc='embeddings', unit='image', disable=None
  ) as bar:
    for i in range(0, len(source), _BLOCK):
      block = np.arange(i, min(i + _BLOCK, len(source)))
      # Thumbnails have told of what cannot be read.
      rows[block], _ = model.features(sources.Rows(source, block))
      bar.update(len(block))
  return rows


def rows(data: sources.Dataset, pairs: Sequence[Pair]) -> list[list[str]]:
  """The table's rows, see `COLUMNS`."""
  return [
    [
      *_called(data, p.first),
      *_called(data, p.second),
      p.kind,
      f'{p.score:.4f}',
    ]
    for p in pairs
  ]


def _called(data: sources.Dataset, row: int) -> tuple[str, str]:
  """Name and split: train (with a label), unlabelled, test or held-out."""
  number = len(data.train)
  if row >= number:
    split = 'held-out' if data.held_out else 'test'
    return sources.name(data.test, row - number), split
  split = 'train' if data.train.labels[row] >= 0 else 'unlabelled'
  return sources.name(data.train, row), split


def _load(options: argparse.Namespace) -> sources.Dataset:
  cfg = defaults.default().dataset
  cfg.name, cfg.path = options.dataset, options.path
  for key in ('train_split', 'test_split', 'unlabelled_split'):
    cfg[key] = getattr(options, key)
  return datasets.load(cfg)


def lines(data: sources.Dataset, found: Found) -> list[str]:
  """What a user is told: how many of which kind, and where."""
  number = len(data.train)
  leaks = [pair for pair in found.pairs if pair.second >= number]
  images = len({pair.first for pair in leaks})
  inside = [pair for pair in found.pairs if pair.second < number]
  test = 'no' if data.test is None else f'{len(data.test):,}'
  said = [f'{number:,} training images, {test} test images.']
  if data.test is not None:
    said.append(
      f'Pairs of a training and a test image: {_kinds(leaks)}; of '
      f'{images:,} training images.'
    )
  said.append(f'Pairs of training images: {_kinds(inside)}.')
  bad = list(found.unreadable.items())
  said += [f'Left out: {name} ({reason}).' for name, reason in bad[:_SHOWN]]
  if len(bad) > _SHOWN:
    said.append(f'Left out: {len(bad):,} images in all.')
  return said


def _kinds(pairs: Sequence[Pair]) -> str:
  if not pairs:
    return 'none'
  counts = collections.Counter(pair.kind for pair in pairs)
  kinds = ', '.join(f'{n:,} {kind}' for kind, n in counts.most_common())
  return f'{len(pairs):,} ({kinds})'


def _work(options: argparse.Namespace) -> None:
  for flag in ('least', 'cosine'):
    value = getattr(options, flag)
    if not 0 < value <= 1:
      raise UserError(f'--{flag}={value}: it must be above 0, and at most 1.')
  out = (
    storage.on_disk(options.out, '--out').expanduser() if options.out else None
  )
  if out and (out.suffix != '.csv' or out.is_dir()):
    raise UserError(f'--out={out}: it must be a file that ends in .csv.')
  data = _load(options)
  model = None
  if options.checkpoint:
    model = model_lib.load_pretrained(
      options.checkpoint, network=options.network
    )
  found = find(data, model, least=options.least, cosine=options.cosine)
  table = rows(data, found.pairs)
  print('\n'.join(lines(data, found)))
  if out:
    text = io.StringIO()
    csv.writer(text, lineterminator='\n').writerows([COLUMNS, *table])
    out.parent.mkdir(parents=True, exist_ok=True)
    files.write_text(out, text.getvalue())
    print(f'{out}: {len(table):,} pairs.')
    return
  for name, split, other, other_split, kind, score in table[:_SHOWN]:
    print(f'{name} ({split}), {other} ({other_split}): {kind}, {score}')
  if len(table) > _SHOWN:
    print(f'... {len(table):,} pairs in all; --out=FILE.csv has them.')


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog='semppl-jax duplicates',
    description='Copies within the training images, and of test images among '
    'them. Training leaves the latter out with '
    '--config.dataset.drop_duplicates=True.',
  )
  add = parser.add_argument
  add('--dataset', required=True, help="training's dataset.name: folder, ...")
  add('--path', default='', help="training's dataset.path")
  add(
    '--split',
    dest='train_split',
    default='',
    help="training's dataset.train_split",
  )
  add('--test_split', default='', help='and dataset.test_split')
  add('--unlabelled_split', default='', help='and dataset.unlabelled_split')
  add('--out', default='', help='table of all pairs, ends in .csv')
  add('--checkpoint', default='', help='compares its embeddings, too')
  add('--network', choices=weight_files.NETWORKS, help='of what has both')
  add(
    '--least',
    type=float,
    default=duplicates.LEAST,
    help='correlation of details from which pixels are a copy '
    '(default: %(default)s)',
  )
  add(
    '--cosine',
    type=float,
    default=COSINE,
    help='of embeddings, likewise (default: %(default)s)',
  )
  return parser


def main(arguments: list[str] | None = None) -> int:
  """The command line; returns the exit status."""
  options = _parser().parse_args(arguments)
  return command.status(lambda: _work(options))


if __name__ == '__main__':
  sys.exit(main())
