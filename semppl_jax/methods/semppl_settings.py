"""SemPPL's settings: defaults, what they may be, and what they cannot.

Shapes: as in `semppl`.
"""

from collections.abc import Iterator

import ml_collections
from ml_collections import config_dict

from semppl_jax.config import defaults
from semppl_jax.errors import UserError
from semppl_jax.losses import contrastive
from semppl_jax.methods import base


def default() -> ml_collections.ConfigDict:
  """SemPPL's own sections; the paper's numbers are those of ImageNet."""
  cfg = ml_collections.ConfigDict()
  cfg.loss = {
    'contrastive_weight': 0.3,  # c, of both contrastive terms [ours]
    'alpha': 0.2,  # weight of the semantic positives [ours]
    'invariance_weight': 5.0,  # lambda, of views of one image [ours]
    'temperature': 0.2,  # tau, divides the similarities [ours]
    # Other images of the batch, for each; 0: all, see negatives.block_size
    # [ours]
    'num_negatives': 10,
    'num_semantic_positives': 3,  # drawn for each image [ours]
    # Which labelled images of the class: uniform, drawn at random; or nearest,
    # those most similar to the image
    'semantic_positives': 'uniform',
    # Form of the invariance: entropy (ReLICv2's), or teacher [ours]
    'stop_gradient': 'entropy',
  }
  # lambda_s, of semantic positives; None: as invariance_weight [ours]
  cfg.loss.semantic_invariance_weight = config_dict.placeholder(float)
  cfg.negatives = base.negatives_section()
  # So many epochs true labels alone cancel, and none do by similarity, for
  # pseudo-labels and embeddings are wrong at first [ours]
  cfg.negatives.cancel_after_epochs = 0.0
  # Images whose logits with all others are there at once, if all are negatives:
  # bounds the temporary memory
  cfg.negatives.block_size = 64
  cfg.queue = {
    'capacity': 81_920,  # C = 20 B, labelled images that it holds [ours]
    'k': 1,  # neighbours that vote, for each pair of views [ours]
    'block_size': 1024,  # keys per product: bounds the temporary memory
    'min_share': 0.0,  # of the votes, to get a pseudo-label [ours]
    # So many epochs target projections look up the neighbours: the predictor
    # is untrained, and what it predicts lies anywhere [ours]
    'target_query_epochs': 0.0,
    # How strongly the votes of a batch are scaled until each class has its
    # share of the labels: 0, not at all, to 1; see pseudo_labels.balance
    # [ours]
    'balance': 0.0,
  }
  cfg.projector = base.projector_section()
  cfg.predictor = base.predictor_section()
  return cfg


RANGES = (
  base.PROJECTOR_RANGES
  | base.NEGATIVES_RANGES
  | {
    'loss.contrastive_weight': (0, None),
    'loss.alpha': (0, None),
    'loss.invariance_weight': (0, None),
    'loss.num_negatives': (0, None),
    'loss.num_semantic_positives': (1, None),
    'negatives.cancel_after_epochs': (0, None),
    'negatives.block_size': (1, None),
    'queue.capacity': (1, None),
    'queue.k': (1, None),
    'queue.block_size': (1, None),
    'queue.min_share': (0, 1),
    'queue.target_query_epochs': (0, None),
    'queue.balance': (0, 1),
  }
)
CHOICES = {
  'loss.stop_gradient': contrastive.STOP_GRADIENTS,
  'loss.semantic_positives': ('uniform', 'nearest'),
  'negatives.cancel': ('none', 'label', 'similarity'),
}


def semantic_invariance_weight(cfg: ml_collections.ConfigDict) -> float:
  """lambda_s: its own value, or lambda where it is None."""
  own = cfg.loss.semantic_invariance_weight
  return cfg.loss.invariance_weight if own is None else own


def uses_semantic_positives(cfg: ml_collections.ConfigDict) -> bool:
  """Whether a semantic term is on."""
  alpha = cfg.loss.contrastive_weight * cfg.loss.alpha
  return alpha > 0 or semantic_invariance_weight(cfg) > 0


def needs_labels(cfg: ml_collections.ConfigDict) -> bool:
  """Whether labels choose the semantic positives of a term that is on."""
  return uses_semantic_positives(cfg) and not cfg.negatives.attract


def num_negatives(cfg: ml_collections.FrozenConfigDict) -> int:
  """n: in a small batch, and if it is 0, all other images are negatives."""
  others = cfg.batch_size - 1
  return min(cfg.loss.num_negatives or others, others)


def scratch(cfg: ml_collections.FrozenConfigDict) -> base.Scratch | None:
  """A block's logits with all images, about four such arrays."""
  if cfg.loss.num_negatives:
    return None
  views = cfg.views.num_large + cfg.views.num_small
  logits = views * cfg.views.num_large * cfg.batch_size
  images = min(cfg.negatives.block_size, cfg.batch_size)
  return base.Scratch('negatives.block_size', images, 4 * 4 * logits)


def validate(cfg: ml_collections.ConfigDict, num_devices: int) -> None:
  """Refuses settings of SemPPL that cannot work, alone or together."""
  base.check_above_zero(cfg, 'loss.temperature')
  if not semantic_invariance_weight(cfg) >= 0:
    raise UserError(
      'loss.semantic_invariance_weight is '
      f'{cfg.loss.semantic_invariance_weight}; it must be at least 0.'
    )
  if needs_labels(cfg) and not defaults.uses_labels(cfg):
    raise UserError(
      'labels.per_class, .fraction, .file and .subset are not set, but a '
      'semantic term is on: set one of them, or loss.alpha=0 and '
      'loss.semantic_invariance_weight=0 (ReLICv2, which needs no labels; '
      'semppl-jax select then names images to label).'
    )
  base.check_negatives(cfg)
  nearest = cfg.loss.semantic_positives == 'nearest'
  if nearest and cfg.negatives.attract:
    raise UserError(
      "loss.semantic_positives is 'nearest', but with negatives.attract=True "
      'semantic positives are the false negatives: set one of them back.'
    )
  if cfg.queue.capacity % num_devices:
    raise UserError(
      f'queue.capacity {cfg.queue.capacity} is not a multiple of the '
      f'{num_devices} devices that share it.'
    )
  if cfg.accumulate > 1:
    _check_parts(cfg)


def _check_parts(cfg: ml_collections.ConfigDict) -> None:
  """Refuses what needs the whole batch at once, of a batch taken in parts."""
  mean = 'in the whole batch for the mean of the semantic terms'
  cancel, nearest = cfg.negatives.cancel, cfg.loss.semantic_positives
  for is_on, key, needs in (
    (
      cancel == 'label',
      'negatives.cancel=label',
      'the pseudo-labels of the whole batch at once',
    ),
    (
      cancel == 'similarity' and cfg.negatives.quantile,
      'negatives.quantile',
      'the similarities of the whole batch at once',
    ),
    (
      cfg.negatives.attract,
      'negatives.attract',
      f'the number of images with a false negative {mean}',
    ),
    (
      nearest == 'nearest',
      'loss.semantic_positives=nearest',
      f'the number of images with a semantic positive {mean}',
    ),
    (
      cfg.queue.balance,
      'queue.balance',
      'the votes of the whole batch at once',
    ),
    (
      cfg.queue.min_share,
      'queue.min_share',
      f'the number of pseudo-labels {mean}',
    ),
  ):
    if is_on:
      raise UserError(
        f'accumulate is {cfg.accumulate}, but {key} needs {needs}: set one of '
        'them back.'
      )


def validate_with_data(
  cfg: ml_collections.ConfigDict, facts: base.RunFacts
) -> None:
  """Refuses what cannot work with these labels."""
  natural = min(cfg.batch_size, facts.num_labels)
  most = round(cfg.labels.share * cfg.batch_size) or natural
  too_many = cfg.accumulate > 1 and most > cfg.queue.capacity
  if too_many and needs_labels(cfg):
    raise UserError(
      f'accumulate is {cfg.accumulate}, but of up to {most} labelled images in '
      f'a batch only queue.capacity {cfg.queue.capacity} find a place, and the '
      'semantic terms are means over the whole batch: set one of them back.'
    )


def doubts(
  cfg: ml_collections.ConfigDict, facts: base.RunFacts
) -> Iterator[str]:
  """What can run but can hardly be meant, with these images and labels."""
  others = cfg.batch_size - 1
  if cfg.loss.num_negatives > others:
    yield (
      f'batch_size {cfg.batch_size} has {others} negatives for an image, not '
      f'loss.num_negatives {cfg.loss.num_negatives}: all of them are taken'
    )
  if needs_labels(cfg) and facts.num_labels:
    yield from base.queue_doubts(cfg, facts)


def advice(cfg: ml_collections.ConfigDict) -> tuple[str, ...]:
  """Settings that keep one pseudo-label from taking over, and are not on.

  docs/trials.md says which of them were tried, and where.
  """
  whole = cfg.accumulate == 1  # what needs all votes of a batch
  ways = {
    'queue.balance=1': whole and cfg.queue.balance == 0,
    'labels.share=0.25': cfg.labels.share == 0,
    'queue.target_query_epochs=6': cfg.queue.target_query_epochs == 0,
    'loss.alpha=0.2': cfg.loss.alpha > 0.2,
    'queue.k=5': cfg.queue.k == 1,
    'queue.min_share=0.5': whole and cfg.queue.min_share == 0,
  }
  return tuple(way for way, is_off in ways.items() if is_off)
