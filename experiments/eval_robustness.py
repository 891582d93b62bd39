"""The trained classifier, zero-shot, on new, corrupted and drawn images.

Paper: SemPPL evaluates robustness (ImageNetV2, ImageNet-C) and generalisation
out of distribution (ImageNet-R, ImageNet-Sketch, ObjectNet) with its linear
classifier, without further training. Its numbers were not available to us; not
run here on the real sets, only in the tests on small ones of the same form. How
each set is judged: semppl_jax/evaluation/robustness.py. Variants: all, or one
set:

  imagenet         the official validation images
  imagenet_v2      matched-frequency, threshold-0.7, topimages
  imagenet_c       15 corruptions x 5 severities: mean error, and mCE relative
                   to AlexNet's errors
  imagenet_r       200 classes
  imagenet_sketch
  objectnet        113 classes, 125 of ImageNet's

Run: python -m semppl_jax.main --config=experiments/eval_robustness.py:all \
  --config.checkpoint=CHECKPOINT --config.dataset.path=DIR \
  --config.robustness.objectnet=OBJECTNET --workdir=runs/robustness

CHECKPOINT has a classifier of ImageNet's 1000 classes: a linear evaluation of
DeepMind's, or the work directory of eval_linear.py:imagenet. Stopped, the same
command goes on after the last finished set; --config.robustness.missing=skip
goes on without sets that are not there.

DIR is tfds's data_dir. These need TensorFlow (docs/data.md); the first two also
ILSVRC2012_img_val.tar in DIR/downloads/manual; the second OpenCV, scikit-image,
an executable named imagemagick, and room for 95 x 50,000 images of 224 pixels,
of which 75 x 50,000 are read:

  for NAME in imagenet2012 imagenet2012_corrupted imagenet_v2 imagenet_r \
      imagenet_sketch; do
    tfds build $NAME --data_dir=DIR --file_format=array_record
  done

OBJECTNET is the unpacked archive of https://objectnet.dev (objectnet-1.0), with
images/ and mappings/. Its licence forbids to train on it.
"""

from semppl_jax.config import eval_config


def get_config(variant='all'):
  """A checkpoint's own classifier on one test set, or on all of them."""
  cfg = eval_config.default()
  cfg.task = 'robustness'
  if variant == 'all':
    return cfg
  if variant not in cfg.robustness.sets:
    raise ValueError(
      f'Unknown variant {variant!r}; known: all, '
      f'{", ".join(cfg.robustness.sets)}'
    )
  cfg.robustness.sets = (variant,)
  return cfg
