"""Settings of runs that began under an older version, in today's names.

`upgrade` is applied wherever a run's config.json is read, so that the run goes
on, is reported and evaluated. It changes nothing of what today's version wrote.
"""

from collections.abc import Mapping
from typing import Any

import ml_collections

from semppl_jax.config import checks, defaults

# Their name -> ours.
RENAMED = {
  'encoder.projector_hidden': ('projector.hidden', 'predictor.hidden'),
  'encoder.embedding_size': ('projector.size',),
  'loss.exclude_same_label': ('negatives.cancel',),
  'loss.exclude_after_epochs': ('negatives.cancel_after_epochs',),
}
# Of these, what a config or a command line may go on to say, by its old name.
STILL_TAKEN = ('loss.exclude_same_label', 'loss.exclude_after_epochs')
# Their values -> ours, where these have changed, too.
_VALUES = {'loss.exclude_same_label': {True: 'label', False: 'none'}}
# Settings that came later, at the values at which they change nothing. A method
# without the section does not get them.
_ADDED = {
  'views.background': 'grey',
  'evaluation.baseline_images': 10_000,
  'evaluation.labels_csv': True,
  'evaluation.every_epochs': 0.0,
  'evaluation.keep_best': False,
  'evaluation.rank_images': 25_600,
  'evaluation.network': 'online',
  'labels.calibration': 0,
  'minutes': 10.0,
  'init': '',
  'init_modules': 'all',
  'optimizer.scaling': 'linear',
  'optimizer.rate_in_momentum': False,
  'views.brightness_mode': 'add',
  'views.heads_joint': False,
  'encoder.zero_init_residual': True,
  'optimizer.warmup_kind': 'byol',
  'optimizer.start_learning_rate': 0.0,
  'optimizer.final_learning_rate': 0.0,
  'optimizer.clip': 0.0,
  'views.small_blur': None,
  'views.small_solarize': None,
  'watchdog.min_marginal_entropy': 0.1,
  'watchdog.max_assignment_entropy': 0.99,
  'labels.rule': 'stratified',
  'dataset.drop_duplicates': False,
}
# Likewise, of SemPPL's own.
_ADDED_TO_SEMPPL = {
  'loss.semantic_positives': 'uniform',
  'negatives.cancel_after_epochs': 0.0,
  'negatives.block_size': 64,
  'queue.target_query_epochs': 0.0,
  'queue.balance': 0.0,
}
# Likewise, of mean shift's.
_ADDED_TO_MEAN_SHIFT = {
  'loss.min_confidence': 0.85,
  'head.steps': 2,
  'head.batch_size': 256,
  'head.learning_rate': 0.01,
  'head.momentum': 0.9,
  'head.weight_decay': 1e-4,
}
# Likewise, of all that have negatives.
_ADDED_TO_NEGATIVES = {
  'negatives.cancel': 'none',
  'negatives.top_k': 10,
  'negatives.threshold': 0.7,
  'negatives.quantile': 0.0,
  'negatives.attract': False,
}
# Likewise, of evaluations.
_ADDED_TO_EVALUATIONS = {
  'classifier.on': 'encoder',
  'classifier.init': 'truncated_normal',
  'classifier.freeze_projector': False,
  'optimizer.name': 'sgd',
  'optimizer.scaling': 'linear',
  'optimizer.trust_coefficient': 1e-3,
  'weights.classifier_on': 'encoder',
  'weights.network': 'online',
  'weights.prototype_temperature': None,
  'evaluation.network': '',
  'labels.calibration': 0,
  'knn.vote': 'majority',
  'knn.temperature': 0.07,
  'knn.more_k': [],
  'labels.rule': 'stratified',
  'dataset.drop_duplicates': False,
}
# What `supervised` has no use for.
_NOT_SUPERVISED = (
  'loss',
  'negatives',
  'queue',
  'ema',
  'classifier',
  'projector',
  'predictor',
)


def upgrade(settings: Any) -> Any:
  """A run's settings as today's version would have written them.

  Args:
    settings: of config.json, nested dicts; whatever else a file may hold is
      left alone.

  Returns:
    A copy.
  """
  if not isinstance(settings, dict):
    return settings
  is_evaluation = 'checkpoint' in settings
  if not is_evaluation and settings.get('task') != 'pretrain':
    return settings
  new = {
    key: dict(x) if isinstance(x, dict) else x for key, x in settings.items()
  }
  if is_evaluation:
    new.setdefault('classifier', {})
    _add(new, _ADDED_TO_EVALUATIONS)
    return new
  _rename(new)
  if 'method' not in new:
    new = _name_method(new)
  if new['method'] == 'simclr':
    new.setdefault('negatives', {})
  added = _ADDED_TO_SEMPPL if new['method'] == 'semppl' else {}
  if new['method'] == 'mean_shift':
    new.setdefault('head', {})
    added = _ADDED_TO_MEAN_SHIFT
  _add(new, _ADDED | _ADDED_TO_NEGATIVES | added)
  return new


def renamed(cfg: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """A config that may use an old name, in today's; the same one if it does not.

  Args:
    cfg: of an experiment that was written for an older version.
  """
  known = dict(checks.flat(cfg))
  old = [key for key in STILL_TAKEN if key in known]
  if not old or 'negatives' not in cfg:
    return cfg
  new = cfg.copy_and_resolve_references()
  with new.unlocked(), new.ignore_type():  # for the checks to refuse
    for key in old:
      section, _, name = key.rpartition('.')
      del new[section][name]
      for ours in RENAMED[key]:
        if known[key] is None:
          defaults.leave_open(new, ours)
        else:
          value = translated(key, known[key])
          new.update_from_flattened_dict({ours: value})
  return new


def translated(key: str, value: Any) -> Any:
  """Today's value of a setting that had another name, by its old one."""
  values = _VALUES.get(key, {})
  return values.get(value, value) if isinstance(value, bool) else value


def _add(new: dict[str, Any], added: Mapping[str, Any]) -> None:
  for key, value in added.items():
    section, _, name = key.rpartition('.')
    inside = new.get(section) if section else new
    if isinstance(inside, dict):
      inside.setdefault(name, value)


def _rename(new: dict[str, Any]) -> None:
  for theirs, ours in RENAMED.items():
    value = checks.find(new, theirs)
    sections = [key.rpartition('.')[0] for key in ours]
    odd = [x for x in sections if not isinstance(new.get(x, {}), dict)]
    if value is None or odd:
      continue  # for the checks to refuse
    section, _, name = theirs.rpartition('.')
    del new[section][name]
    for section, key in zip(sections, ours, strict=True):
      inside = new.setdefault(section, {})
      inside[key.rpartition('.')[2]] = translated(theirs, value)


def _name_method(new: dict[str, Any]) -> dict[str, Any]:
  """From before there were methods: SemPPL, or the supervised baseline."""
  if _was_supervised(new):
    kept = {key: x for key, x in new.items() if key not in _NOT_SUPERVISED}
    return {'method': 'supervised', **kept}
  return {'method': 'semppl', **new}


def _was_supervised(settings: Mapping[str, Any]) -> bool:
  """Whether the classifier's loss, with weight 1, was all that there was."""
  find = lambda key: checks.find(settings, key)
  weights = ('contrastive_weight', 'invariance_weight')
  off = all(find(f'loss.{name}') == 0 for name in weights)
  semantic = find('loss.semantic_invariance_weight') in (None, 0)
  attached = find('classifier.detached') is False
  return off and semantic and attached and find('classifier.weight') == 1
