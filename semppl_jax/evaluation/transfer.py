"""What an encoder is worth on other data sets: the 11 of BYOL's appendix D.

linear: logistic regression on features of the frozen encoder, its L2 penalty
chosen on validation images. fine_tune: all weights are trained, the learning
rates chosen likewise. What is chosen is trained anew, on training and
validation images together, and judged on test images. WORKDIR/sets/NAME.json
has what came out for a data set, table.md and table.json the whole.
"""

import math
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import ml_collections
import numpy as np

from semppl_jax import config, storage
from semppl_jax.data import transfer_sets
from semppl_jax.data.transfer_sets import SETS, TransferSet
from semppl_jax.errors import UserError
from semppl_jax.evaluation import classifier as classifier_lib
from semppl_jax.evaluation import grid_search, logistic, measures
from semppl_jax.evaluation import setup as setup_lib
from semppl_jax.evaluation.setup import EvalRun
from semppl_jax.workdir import metrics, run_log, tables
from semppl_jax.workdir.names import RESULTS

_HEADS = (
  'data set', 'measure', 'score', 'chosen', 'validation score',
  'train images', 'validation images', 'test images',
)  # fmt: skip

Results = dict[str, Any]


class _Outcome(NamedTuple):
  """What a mode of transfer makes of a data set."""

  predicted: np.ndarray  # [N] int, classes of the test images
  readable: np.ndarray  # [N] bool, whether they could be decoded
  chosen: Results  # settings, and 'validation_score'


def run(cfg: ml_collections.ConfigDict, workdir: str) -> Results:
  """Transfers a checkpoint's encoder to the data sets of cfg.transfer.sets.

  Goes on where it was stopped: what is in WORKDIR/sets is not computed again.

  Args:
    cfg: the resolved config; dataset.path says where the data sets are.
    workdir: a folder of this evaluation's own.

  Returns:
    What results.json holds: the score of each data set, in [0, 1], and their
    mean.

  Raises:
    UserError: a setting or a checkpoint that cannot work, or a data set that
      is not there.
    Interrupted: SIGINT or SIGTERM while fine-tuning; its last step is saved.
  """
  run = setup_lib.prepare_without_data(cfg)
  _check(cfg)
  names = list(cfg.transfer.sets)
  folder = storage.path(workdir) / 'sets'
  done = {name: metrics.read_json(folder / f'{name}.json') for name in names}
  done = {name: results for name, results in done.items() if results}
  found, missing = _open(cfg, names, done)
  run_log.info(f'{cfg.checkpoint}: {run.checkpoint}')
  middle = f'the middle {cfg.crops.center:.1%} at {cfg.crops.size} px'
  run_log.info(f'Transfer, {cfg.transfer.mode}; images: {middle}.')
  with setup_lib.claimed_workdir(run, workdir):
    for name, opened in found.items():
      folder.mkdir(exist_ok=True)
      done[name] = _evaluate(run, name, opened, storage.path(workdir))
      metrics.write_json(folder / f'{name}.json', done[name])
    done = {n: done[n] for n in names if n in done}
    return _report(run, workdir, done, missing)


def _check(cfg: ml_collections.ConfigDict) -> None:
  names, l2 = cfg.transfer.sets, cfg.transfer.l2
  for name in names:
    if name not in SETS:
      raise UserError(
        f'transfer.sets has {name!r}; known: {", ".join(SETS)}'
        f'{config.nearest_name(name, SETS)}'
      )
  if not names or len(set(names)) < len(names):
    raise UserError(
      f'transfer.sets is {names}; it must be one data set or more, each once.'
    )
  if not (len(l2) == 2 and 0 < l2[0] <= l2[1] < math.inf):
    raise UserError(f'transfer.l2 is {l2}; it must be two rising numbers > 0.')
  if config.uses_labels(cfg):
    raise UserError(
      'labels.* chooses labelled images, but transfer takes all of each data '
      'set: leave it as it is.'
    )


def _open(
  cfg: ml_collections.ConfigDict, names: Sequence[str], done: Mapping[str, Any]
) -> tuple[dict[str, TransferSet], dict[str, str]]:
  """Opens all data sets that are not done, before anything is computed.

  Returns:
    Those that are there, and the reasons for those that are not.
  """
  found, missing = {}, {}
  for name in names:
    if name in done:
      continue
    try:
      found[name] = transfer_sets.load(name, cfg.dataset)
    except transfer_sets.NotThereError as e:
      missing[name] = str(e)
  skips = cfg.transfer.missing == 'skip' and (found or done)
  if missing and not skips:
    advice = ' (transfer.missing=skip goes on without.)' if found else ''
    raise UserError(
      f'{len(missing)} of {len(names)} data sets not found: '
      f'{", ".join(missing)}. {next(iter(missing.values()))}{advice}'
    )
  return found, missing


def _evaluate(
  run: EvalRun, name: str, opened: TransferSet, workdir: pathlib.Path
) -> Results:
  """What the encoder is worth on a data set."""
  begun = time.monotonic()
  data, measure = opened.data, SETS[name].measure
  run_log.info(
    f'{name}: {len(data.train):,} images to train on, of which '
    f'{len(opened.validation):,} choose settings; {len(data.test):,} to test.'
  )
  told = run_log.Unreadable(workdir / 'sets' / f'{name}.unreadable.jsonl')
  run = run._replace(data=data, labels=data.train.labels, unreadable=told)
  mode = _MODES[run.cfg.transfer.mode]
  outcome = mode(run, name, opened.validation, workdir / name)
  if not outcome.readable.any():
    raise UserError(f'{name}: no test image can be decoded.')
  truth = data.test.labels[outcome.readable]
  predicted = outcome.predicted[outcome.readable]
  results = {
    'measure': measure,
    'score': measures.MEASURES[measure](predicted, truth),
    **outcome.chosen,
    'train_images': len(data.train) - len(opened.validation),
    'validation_images': len(opened.validation),
    'test_images': len(truth),
    'unreadable_images': len(run.unreadable),
    'top1': measures.top1(predicted, truth),
    'seconds': time.monotonic() - begun,
  }
  run_log.info(
    f'{name}: {results["score"]:.1%} {measure} with {_settings(results)}.'
  )
  return results


def _linear(
  run: EvalRun, name: str, validation: np.ndarray, unused_folder: pathlib.Path
) -> _Outcome:
  """Logistic regression on the frozen encoder's features."""
  cfg = run.cfg.transfer
  params, bn_state = (
    setup_lib.replicated(run, tree)
    for tree in (run.checkpoint.params, run.checkpoint.state)
  )
  features, known = setup_lib.embed(run, run.data.train, params, bn_state)
  queries, readable = setup_lib.embed(run, run.data.test, params, bn_state)
  if not (np.isfinite(features).all() and np.isfinite(queries).all()):
    raise UserError(f"{name}: the encoder's features are not finite.")
  held_out = np.isin(np.arange(len(known)), validation)[known]
  if not held_out.any():
    raise UserError(f'{name}: no validation image can be decoded.')
  chosen = logistic.regression(
    features[known],
    run.labels[known],
    held_out,
    queries,
    strengths=np.geomspace(cfg.l2[1], cfg.l2[0], cfg.num_l2),
    measure=measures.MEASURES[SETS[name].measure],
    max_iterations=cfg.max_iterations,
  )
  _warn(name, chosen, cfg)
  return _Outcome(
    chosen.predicted,
    readable,
    {'l2': chosen.l2, 'validation_score': float(chosen.scores.max())},
  )


def _warn(
  name: str, chosen: logistic.Chosen, cfg: ml_collections.FrozenConfigDict
) -> None:
  """Tells of penalties out of range, and of fits that were not finished."""
  place = int(np.argmax(chosen.scores))
  if cfg.num_l2 > 1 and place in (0, cfg.num_l2 - 1):
    which = 'strongest' if place == 0 else 'weakest'
    run_log.info(
      f'{name}: the {which} penalty, {chosen.l2:g}, is the best: set another '
      'transfer.l2.'
    )
  if chosen.unfinished:
    run_log.info(
      f'{name}: {chosen.unfinished} of {cfg.num_l2 + 1} fits stopped before '
      f'they converged (transfer.max_iterations {cfg.max_iterations}).'
    )


def _fine_tune(
  run: EvalRun, name: str, validation: np.ndarray, folder: pathlib.Path
) -> _Outcome:
  """All weights trained, with the learning rates that did best."""
  folder.mkdir(exist_ok=True)
  measure, steps = measures.MEASURES[SETS[name].measure], run.cfg.transfer.steps
  # BYOL's, of BatchNorm's running averages: at least ten steps of an epoch.
  decay = max(1 - 10 * run.cfg.batch_size / len(run.labels), 0.9)
  checkpoint = run.checkpoint._replace(bn_decay=decay)
  nets = setup_lib.networks_of(run.cfg, checkpoint)
  run = run._replace(nets=nets)
  rates, score = grid_search.search(
    run, str(folder / 'grid'), rows=validation, steps=steps, measure=measure
  )
  hparams = classifier_lib.hyperparameters(
    run, run.labels, nets.features, *rates
  )
  hparams = hparams._replace(total_steps=steps)
  state, _ = classifier_lib.fit(
    run, hparams, run.data.train, run.labels, str(folder)
  )
  logits, readable = classifier_lib.predict(run, state, run.data.test)
  if not np.isfinite(logits).all():
    raise UserError(f'{name}: the classifier has become NaN or infinite.')
  chosen = {'learning_rate': rates[0], 'encoder_learning_rate': rates[1]}
  return _Outcome(
    logits.argmax(axis=1), readable, chosen | {'validation_score': score}
  )


_MODES = {'linear': _linear, 'fine_tune': _fine_tune}


def _report(
  run: EvalRun,
  workdir: str,
  done: Mapping[str, Results],
  missing: Mapping[str, str],
) -> Results:
  """Writes the table and results.json; returns what the latter holds."""
  percent = lambda score: None if score is None else 100 * score
  rows = [
    (
      name, results['measure'], percent(results['score']), _settings(results),
      percent(results['validation_score']), results['train_images'],
      results['validation_images'], results['test_images'],
    )
    for name, results in done.items()
  ]  # fmt: skip
  notes = ['Scores in percent, on test images.']
  notes += [f'Left out: {reason}' for reason in missing.values()]
  notes += [
    f'{name}: {count} images cannot be decoded, and do not count.'
    for name, results in done.items()
    if (count := results['unreadable_images'])
  ]
  tables.write(workdir, _HEADS, rows, '\n'.join(notes))
  scores = {name: results['score'] for name, results in done.items()}
  summary: Results = scores | {
    'mean': float(np.mean(list(scores.values()))),
    'network': run.checkpoint.weights_of,
  }
  if missing:
    summary['left_out'] = ', '.join(missing)
  metrics.write_json(storage.path(workdir) / RESULTS, summary)
  return summary


def _settings(results: Results) -> str:
  """What was chosen on validation images, in a few words."""
  if 'l2' in results:
    return f'L2 {results["l2"]:.3g}'
  rates = results['learning_rate'], results['encoder_learning_rate']
  return 'learning rates {:g}, encoder {:g}'.format(*rates)
