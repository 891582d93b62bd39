"""kNN evaluation: votes of the nearest labelled images, nothing is trained.

Cosine similarity of encoder embeddings; k = 1, as the method itself votes.
--config.knn.of=projection or prediction compares those instead. Variants: as in
eval_linear.py.

DINO weighs votes by exp(similarity / 0.07) and reports k = 10, 20, 100, 200;
one search for all:
--config.knn.vote=weighted --config.knn.k=20 \
  --config.knn.more_k="(10,100,200)"

Run: python -m semppl_jax.main --config=experiments/eval_knn.py:digits_20 \
  --config.checkpoint=runs/digits --workdir=runs/digits_knn
"""

from experiments import _eval_data
from semppl_jax.config import eval_config


def get_config(variant='imagenet_1pct'):
  """kNN among a data set's labelled images."""
  cfg = eval_config.default()
  cfg.task = 'knn'
  _eval_data.use(cfg, variant)
  return cfg
