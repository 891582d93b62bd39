"""The trained head, zero-shot, on test sets other than ImageNet's.

The checkpoint's own classifier of ImageNet's 1000 classes, without further
training, on ImageNet's official validation images, new photos (ImageNetV2),
corrupted ones (ImageNet-C), renditions (ImageNet-R), sketches, and ObjectNet.
What counts as right, where there is a choice (SemPPL's own is not known):

- ImageNet-R: the most likely one of its 200 classes, as its authors judge.
- ObjectNet: the most likely one of the ImageNet classes that ObjectNet has, as
  wise-ft, after CLIP, judges [ours].
- For both, the most likely one of all 1000 besides ("unrestricted"): that is
  what the code of ObjectNet's authors asks for.
- ImageNet-C is tfds's, whose images are not quite the published ones.
"""

import functools
import itertools
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np

from semppl_jax import storage
from semppl_jax.data import label_maps, robustness_sets
from semppl_jax.data.robustness_sets import ALL_CLASSES
from semppl_jax.errors import CheckpointError, UserError
from semppl_jax.evaluation import classifier as classifier_lib
from semppl_jax.evaluation import classifier_step
from semppl_jax.evaluation import setup as setup_lib
from semppl_jax.evaluation.setup import EvalRun
from semppl_jax.workdir import metrics, run_log, tables
from semppl_jax.workdir.names import RESULTS

_HEADS = ('test set', 'variant', 'top-1', 'top-5', 'images', 'measure')
_NOTE_C = (
  'imagenet_c: mean corruption error {:.2%}; relative to AlexNet, mCE {:.2f}. '
  "The images are tfds's; AlexNet's errors are those on the published ones."
)

Scores = dict[str, Any]  # of a part of a test set, as in WORKDIR/sets


def run(cfg: ml_collections.ConfigDict, workdir: str) -> dict[str, Any]:
  """Evaluates a checkpoint's classifier on all test sets.

  Goes on where it was stopped: WORKDIR/sets has a file for each finished one.

  Args:
    cfg: the resolved config; `robustness` says which sets, `dataset.path` where
      tfds keeps them.
    workdir: a folder of this evaluation's own; gets table.md, table.json and
      results.json.

  Returns:
    What results.json holds: NAME/top1 .. as shares, imagenet_c/mce in percent.

  Raises:
    UserError: an unknown set; one that is missing (unless these are skipped) or
      cannot be read; a checkpoint without a classifier of 1000 classes.
  """
  parts = robustness_sets.parts(cfg.robustness.sets)
  run = setup_lib.prepare_without_data(cfg)
  _check_classifier(run)
  files = {
    name: storage.path(workdir) / 'sets' / f'{name}.json' for name in parts
  }
  scores = {name: metrics.read_json(file) for name, file in files.items()}
  scores = {name: found for name, found in scores.items() if found}
  openers, missing = robustness_sets.find(
    {name: part for name, part in parts.items() if name not in scores},
    cfg.dataset.path,
    cfg.robustness.objectnet,
  )
  absent = _check_missing(cfg, missing, [n for n in parts if n not in missing])
  run_log.info(f'{cfg.checkpoint}: {run.checkpoint}')
  with setup_lib.claimed_workdir(run, workdir):
    if scores:
      ready = f'{len(scores)} of {len(parts)} sets are finished'
      run_log.info(f'{workdir}: {ready}.')
    state = classifier_lib.state_of(run) if openers else None
    for name, open_set in openers.items():
      scores[name] = _evaluate(run, state, name, open_set())
      files[name].parent.mkdir(parents=True, exist_ok=True)
      metrics.write_json(files[name], scores[name])
    scores = {name: scores[name] for name in parts if name in scores}
    return _report(run, workdir, scores, absent)


def top(
  logits: np.ndarray,
  labels: np.ndarray,
  meanings: np.ndarray,
  among: np.ndarray,
) -> dict[str, float]:
  """Shares of images for which the best, or one of the best five, is right.

  Of equal logits the smaller class stands first, as in `metrics`.

  Args:
    logits: [n, K] finite floats.
    labels: [n] int, numbers of rows of `meanings`.
    meanings: [C, K] bool, which answers are right for a label.
    among: [m] int, rising: the answers to choose from.
  """
  places = jax.lax.top_k(logits[:, among], min(5, len(among)))[1]
  best = among[np.asarray(places)]  # [n, 5]
  right = meanings[labels[:, None], best]  # [n, 5]
  return {
    'top1': float(right[:, 0].mean()),
    'top5': float(right.any(axis=1).mean()),
  }


def _check_classifier(run: EvalRun) -> None:
  classes = run.checkpoint.num_classes
  if not classes:
    raise setup_lib.no_classifier(run)
  if classes != label_maps.NUM_CLASSES:
    raise CheckpointError(
      f'the classifier in {run.cfg.checkpoint} has {classes} classes; these '
      f'test sets need one of the {label_maps.NUM_CLASSES} of ImageNet.'
    )


def _check_missing(
  cfg: ml_collections.ConfigDict,
  missing: Mapping[str, str],
  there: Sequence[str],
) -> str:
  """Refuses to begin without all sets, or, if they are skipped, without any.

  Returns:
    What is missing, in a few words.
  """
  names = _names(missing, there)
  if not missing or (cfg.robustness.missing == 'skip' and there):
    return names
  reason = next(iter(missing.values()))
  if len(missing) > 1:
    reason = f'{len(missing)} data sets are missing: {names}. First: {reason}'
  if there:
    reason += ' (robustness.missing=skip goes on without.)'
  raise UserError(reason)


def _evaluate(
  run: EvalRun,
  state: classifier_step.ClassifierState,
  name: str,
  data: robustness_sets.TestSet,
) -> Scores:
  begun = time.monotonic()
  # Not ConfigDict(run.cfg): what is set in that is set in later ones, too.
  settings = run.cfg.to_dict()
  if data.share is not None:
    settings['crops']['center'] = data.share
  run = run._replace(
    cfg=ml_collections.FrozenConfigDict(settings),
    unreadable=run_log.Unreadable(),  # other sets have images of these names
  )
  logits, readable = classifier_lib.predict_own(run, state, data.source)
  if not np.isfinite(logits).all():
    raise CheckpointError(
      f'{name}: the classifier in {run.cfg.checkpoint} gives NaN or infinity.'
    )
  counted = readable & (data.source.labels >= 0)
  if not counted.any():
    raise UserError(f'{name} has no labelled image that can be decoded.')
  score = functools.partial(
    top, logits[counted], data.source.labels[counted], data.meanings
  )
  scores = score(data.among)
  if len(data.among) < len(ALL_CLASSES):
    scores['unrestricted'] = score(ALL_CLASSES)
  count = int(counted.sum())
  run_log.info(f'{name}: top-1 {scores["top1"]:.1%} of {count:,} images.')
  return scores | {
    'classes': len(data.among),
    'images': count,
    'unreadable_images': int(np.sum(~readable)),
    'seconds': time.monotonic() - begun,
  }


def _lines(scores: Mapping[str, Scores]) -> dict[str, Scores]:
  """What is reported: a line of the table each."""
  lines = {}
  for name, own in scores.items():
    if _set_of(name) == 'imagenet_c':
      continue
    lines[name] = own | {'measure': f'best of {own["classes"]} classes'}
    if 'unrestricted' in own:
      measure = {'measure': f'best of {len(ALL_CLASSES)} classes'}
      lines[f'{name}/unrestricted'] = own | own['unrestricted'] | measure
  for corruption in robustness_sets.CORRUPTIONS:
    names = [
      robustness_sets.corrupted(corruption, severity)
      for severity in robustness_sets.SEVERITIES
    ]
    if set(names) <= set(scores):
      lines[f'imagenet_c/{corruption}'] = _mean([scores[n] for n in names])
  return lines


def _mean(parts: Sequence[Scores]) -> Scores:
  mean = lambda key: float(np.mean([x[key] for x in parts]))
  return {
    'top1': mean('top1'),
    'top5': mean('top5'),
    'images': sum(x['images'] for x in parts),
    'measure': f'mean of {len(parts)} severities',
  }


def _corruption_errors(lines: Mapping[str, Scores]) -> dict[str, float]:
  """Unnormalised, as a share; and mCE, in percent. Empty: not all are there."""
  name = 'imagenet_c/{}'.format
  if not all(name(c) in lines for c in robustness_sets.CORRUPTIONS):
    return {}
  errors = {c: 1 - lines[name(c)]['top1'] for c in robustness_sets.CORRUPTIONS}
  return {
    name('mean_corruption_error'): float(np.mean(list(errors.values()))),
    name('mce'): robustness_sets.mean_corruption_error(errors),
  }


def _report(
  run: EvalRun, workdir: str, scores: Mapping[str, Scores], missing: str
) -> dict[str, Any]:
  """Writes table.md and table.json, shares in percent, and results.json."""
  lines = _lines(scores)
  errors = _corruption_errors(lines)
  rows = [
    [
      _set_of(name), name.partition('/')[2] or None, 100 * x['top1'],
      100 * x['top5'], x['images'], x['measure'],
    ]
    for name, x in lines.items()
  ]  # fmt: skip
  unreadable = {n: x['unreadable_images'] for n, x in scores.items()}
  notes = [f'Missing: {missing}'] if missing else []
  if errors:
    notes.append(_NOTE_C.format(*errors.values()))
  if any(unreadable.values()):
    texts = [f'{name} {count}' for name, count in unreadable.items() if count]
    notes.append(f'Left out, for they cannot be decoded: {", ".join(texts)}')
  tables.write(workdir, _HEADS, rows, '\n'.join(notes))
  shares = ('top1', 'top5')
  results = {f'{n}/{key}': x[key] for n, x in lines.items() for key in shares}
  results |= errors | {
    'unreadable_images': sum(unreadable.values()),
    'checkpoint': str(run.checkpoint),
    'checkpoint_step': run.checkpoint.step,
    'network': run.checkpoint.weights_of,
    'classifier': run.checkpoint.classifier,
    'seconds': sum(x['seconds'] for x in scores.values()),
    'devices': f'{len(run.devices)} x {run.devices[0].device_kind}',
  }
  metrics.write_json(storage.path(workdir) / RESULTS, results)
  return results


def _names(missing: Iterable[str], there: Iterable[str]) -> str:
  """What is missing; for a whole set or corruption, its name."""
  begun = {part for name in there for part in _prefixes(name)}
  short = (next(x for x in _prefixes(n) if x not in begun) for n in missing)
  return ', '.join(dict.fromkeys(short))


def _prefixes(name: str) -> Iterable[str]:
  """'a/b/c': a, a/b, a/b/c."""
  return itertools.accumulate(name.split('/'), '{}/{}'.format)


def _set_of(name: str) -> str:
  return name.partition('/')[0]
