"""The rows of the table of benchmarks.methods, and what is tried of each.

A row's config is the digits' experiment. Four settings of each are tried on a
validation seed, but for rows whose settings on the digits were found before, in
more runs than four (docs/trials.md): there they have one, on other data four.
Names of rows and places of trials are names of folders of finished runs: new
trials go to the end.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from benchmarks import oracle
from experiments import digits, digits_relicv2

Trial = dict[str, Any]


class Row(NamedTuple):
  """A row of the table.

  Attributes:
    experiment: () -> its config.
    trials: settings that are tried on the validation seed, on the digits.
    begins_with: another row, whose checkpoint of the same seed is its init.
    elsewhere: settings that are tried on other data; none: the same.
  """

  experiment: Callable[[], Any]
  trials: Sequence[Trial]
  begins_with: str = ''
  elsewhere: Sequence[Trial] = ()


def product(*choices: Sequence[Trial]) -> list[Trial]:
  """Each option of the first with each of the second, and so on."""
  found: list[Trial] = [{}]
  for options in choices:
    found = [one | option for one in found for option in options]
  return found


def each(key: str, *values: Any) -> list[Trial]:
  """A setting with each of its values."""
  return [{key: value} for value in values]


def _digits(method: str) -> Callable[[], Any]:
  return lambda: digits.get_config(method)


def _rates(*values: float) -> list[Trial]:
  return each('optimizer.learning_rate', *values)


def _msf() -> Any:
  """Without labels."""
  cfg = digits.get_config('mean_shift')
  cfg.loss.update(same_label=False, pseudo_labels='none')
  return cfg


def _mean_shift_head() -> Any:
  """Pseudo-labels by the head that learns beside, as in CMSF's release."""
  cfg = digits.get_config('mean_shift')
  cfg.loss.pseudo_labels = 'head'
  cfg.queue.balance = 0.0  # of votes
  return cfg


def _similar(attract: bool) -> Callable[[], Any]:
  """SemPPL whose false negatives and positives are found without labels."""

  def experiment():
    cfg = digits.get_config('semppl')
    cfg.negatives.update(cancel='similarity', top_k=16, attract=attract)
    if not attract:
      cfg.loss.alpha = 0.0
    return cfg

  return experiment


def _nearest() -> Any:
  cfg = digits.get_config('semppl')
  cfg.loss.semantic_positives = 'nearest'
  return cfg


def _true_labels() -> Any:
  oracle.register()
  cfg = digits.get_config('semppl')
  cfg.method = oracle.NAME
  return cfg


_FOUND_BEFORE: list[Trial] = [{}]
_NEIGHBOURS = each('memory.k', 2, 5)
# One neighbour of an untrained encoder votes right on 41% of the digits, and
# what has the same wrong label is drawn together. Or two of three must agree.
_VOTES = [{}, {'queue.k': 3, 'queue.min_share': 0.6}]
_SIMILAR = product(
  each('negatives.quantile', 0.9, 0.95),
  each('negatives.cancel_after_epochs', 5.0, 15.0),
)
_SEMPPL_ELSEWHERE = product(
  _rates(8e-3, 4e-3), each('labels.share', 0.125, 0.25)
)

ROWS = {
  'semppl': Row(
    _digits('semppl'),
    _FOUND_BEFORE,
    elsewhere=_SEMPPL_ELSEWHERE,
  ),
  'relicv2': Row(
    digits_relicv2.get_config,
    _FOUND_BEFORE,
    elsewhere=product(_rates(8e-3, 4e-3), each('labels.share', 0.0, 0.25)),
  ),
  'byol': Row(
    _digits('byol'),
    _FOUND_BEFORE,
    elsewhere=product(_rates(8e-3, 4e-3), each('ema.base', 0.97, 0.99)),
  ),
  'simclr': Row(
    _digits('simclr'),
    _FOUND_BEFORE,
    elsewhere=product(_rates(8e-3, 4e-3), each('loss.temperature', 0.5, 0.2)),
  ),
  'swav': Row(
    _digits('swav'),
    product(_rates(8e-3, 4e-3), each('prototypes.number', 32, 64)),
    elsewhere=product(_rates(8e-3, 4e-3), each('prototypes.number', 64, 128)),
  ),
  'dino': Row(
    _digits('dino'),
    product(
      _rates(4e-3, 2e-3),
      each('loss.target_temperature', (0.02, 0.02), (0.03, 0.03)),
    ),
  ),
  'mira': Row(
    _digits('mira'),
    product(_rates(4e-3, 2e-3), each('prototypes.number', 32, 64)),
    elsewhere=product(_rates(4e-3, 2e-3), each('prototypes.number', 64, 128)),
  ),
  'suave': Row(
    _digits('suave'),
    product(_rates(8e-3, 2e-3), each('support.views', 8, 24)),
    'swav',
    product(_rates(8e-3, 2e-3), each('support.views', 1, 3)),
  ),
  'daino': Row(
    _digits('daino'),
    product(_rates(8e-3, 2e-3), each('support.views', 8, 24)),
    'dino',
    product(_rates(8e-3, 2e-3), each('support.views', 1, 3)),
  ),
  'semppl_after_relicv2': Row(
    _digits('semppl'), _rates(8e-3, 4e-3, 2e-3, 5e-4), 'relicv2'
  ),
  'paws': Row(
    _digits('paws'),
    product(_rates(8e-3, 4e-3), each('support.views', 4, 12)),
    elsewhere=product(_rates(8e-3, 4e-3), each('support.views', 1, 2)),
  ),
  'mean_shift': Row(_digits('mean_shift'), product(_NEIGHBOURS, _VOTES)),
  'mean_shift_head': Row(
    _mean_shift_head,
    product(_NEIGHBOURS, each('loss.min_confidence', 0.85, 0.6)),
  ),
  'msf': Row(_msf, product(_rates(8e-3, 4e-3), _NEIGHBOURS)),
  # The ladder of positives, see docs/methods/semppl.md. Of 127 others 12 are of
  # an image's class.
  'similar_out': Row(_similar(attract=False), _SIMILAR),
  'similar_in': Row(_similar(attract=True), _SIMILAR),
  'nearest': Row(_nearest, [{}], elsewhere=_SEMPPL_ELSEWHERE),
  'true_labels': Row(_true_labels, [{}], elsewhere=_SEMPPL_ELSEWHERE),
  'supervised': Row(
    _digits('supervised'),
    _FOUND_BEFORE,
    elsewhere=product(
      _rates(8e-3, 2e-3), each('optimizer.weight_decay', 1e-4, 1e-2)
    ),
  ),
}
BASELINE = 'semppl'  # whose scores the others' are compared with
