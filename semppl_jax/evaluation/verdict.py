"""What a run's scores are worth: beside chance, pixels and colours."""

import math
from collections.abc import Mapping
from typing import Any

# Key of results.json -> what a sentence calls it. All are test top-1.
SCORES = {
  'knn_top1': 'kNN',
  'linear_labelled_top1': 'linear',
  'classifier_top1': 'classifier',
  'prediction_top1': 'own prediction',
}
BASELINES = {
  'chance_top1': 'the most frequent class',
  'baseline_pixels_top1': 'pixels and logistic regression',
  'baseline_histogram_top1': 'a colour histogram and logistic regression',
}
# What to try, with experiments/folder.py and others.
ADVICE = (
  'more labels; longer training (--config.minutes, or --config.num_epochs); '
  'views that fit the images (look at them: python -m semppl_jax.report '
  'WORKDIR): --config.views.flip, .hue, .saturation, .large_area; foreground '
  'masks for objects on busy backgrounds (python -m semppl_jax.saliency)'
)


def line(results: Mapping[str, Any]) -> str | None:
  """A sentence: the best score beside the best baseline, and what to try.

  A lead counts if it is more than two standard errors of a share of so many
  test images.

  Args:
    results: of results.json.

  Returns:
    None where there are no test images or no baselines.
  """
  scores, baselines = _known(results, SCORES), _known(results, BASELINES)
  images = results.get('test_images')
  if not scores or len(baselines) < 2 or not images:
    return None
  best, strongest = (max(found, key=found.get) for found in (scores, baselines))
  lead = scores[best] - baselines[strongest]
  mean = (scores[best] + baselines[strongest]) / 2
  noise = 2 * math.sqrt(2 * mean * (1 - mean) / images)
  if lead > noise:
    how = 'ahead of'
  elif lead > 0:
    how = f'not ahead by more than noise ({100 * noise:.0f} points) of'
  else:
    how = 'no better than'
  said = (
    f'Verdict: {how} what needs no network: {SCORES[best]} {scores[best]:.1%}, '
    f'{BASELINES[strongest]} {baselines[strongest]:.1%}, on {images:,} test '
    'images.'
  )
  return said if lead > noise else f'{said} To try: {ADVICE}.'


def _known(
  results: Mapping[str, Any], names: Mapping[str, str]
) -> dict[str, float]:
  return {
    name: results[name] for name in names if results.get(name) is not None
  }
