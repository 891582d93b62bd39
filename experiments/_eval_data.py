"""Data sets and labelled subsets that the evaluations share."""

import ml_collections

from semppl_jax import config

# Which training images have labels; none set: all of them.
_LABELS = {
  'imagenet': {},
  'imagenet_1pct': {'subset': 'imagenet2012_subset/1pct'},
  'imagenet_10pct': {'subset': 'imagenet2012_subset/10pct'},
  'digits': {},
  'digits_20': {'per_class': 2},
  'digits_10pct': {'fraction': 0.1},
}


# Variant run: those of the run whose folder --config.checkpoint names.
_OF_THE_RUN = (
  'batch_size',
  *(
    f'dataset.{name}'
    for name in (
      'name', 'path', 'image_size', 'train_split', 'test_split',
      'unlabelled_split', 'num_examples', 'num_classes', 'validation',
      'validation_rule', 'seed', 'drop_duplicates',
    )
  ),
  *(
    f'labels.{name}'
    for name in (
      'per_class', 'fraction', 'file', 'subset', 'rule', 'seed', 'calibration',
    )
  ),
  *(f'crops.{name}' for name in ('size', 'area', 'aspect', 'flip', 'center')),
)  # fmt: skip


def use(cfg: ml_collections.ConfigDict, variant: str) -> None:
  """Sets data set, labels and crops of an evaluation."""
  if variant == 'run':
    config.leave_open(cfg, *_OF_THE_RUN)
    return
  if variant not in _LABELS:
    raise ValueError(
      f'Unknown variant {variant!r}; known: {", ".join(_LABELS)}, run'
    )
  cfg.labels.update(_LABELS[variant])
  if variant.startswith('imagenet'):
    # The release holds out the first 10,000: --config.dataset.validation=10000.
    cfg.dataset.update(name='imagenet2012', validation_rule='first')
    return
  cfg.dataset.name = 'digits'
  cfg.batch_size = 128
  # Digits fill their 8 x 8 pixels, and a mirrored one is another sign.
  cfg.crops.update(size=8, center=1.0, area=(0.4, 1.0), flip=0.0)
