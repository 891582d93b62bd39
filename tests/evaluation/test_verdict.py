"""The sentence about a run's scores, by hand."""

import pytest

from semppl_jax.evaluation import verdict

_BASELINES = {
  'chance_top1': 0.2,
  'baseline_pixels_top1': 0.25,
  'baseline_histogram_top1': 0.3,
}


def said(images=400, **scores):
  return verdict.line(_BASELINES | {'test_images': images} | scores)


def test_a_lead_is_one():
  line = said(knn_top1=0.6, classifier_top1=0.5, linear_labelled_top1=None)
  assert line == (
    'Verdict: ahead of what needs no network: kNN 60.0%, a colour histogram '
    'and logistic regression 30.0%, on 400 test images.'
  )


def test_a_small_lead_is_noise():
  # 2 sqrt(2 x 0.32 x 0.68 / 400) = 0.066
  line = said(classifier_top1=0.34)
  assert 'not ahead by more than noise (7 points)' in line
  assert 'classifier 34.0%' in line and 'To try: more labels' in line
  assert 'ahead of' in said(images=40_000, classifier_top1=0.34)[:20]


@pytest.mark.parametrize('best', (0.3, 0.1))
def test_no_lead_at_all(best):
  line = said(linear_labelled_top1=best)
  assert line.startswith('Verdict: no better than what needs no network: lin')


def test_chance_can_be_the_strongest():
  line = verdict.line(_BASELINES | {'chance_top1': 0.9, 'test_images': 10,
                                    'knn_top1': 0.8})  # fmt: skip
  assert 'the most frequent class 90.0%' in line


@pytest.mark.parametrize(
  'results',
  (
    {},
    {'knn_top1': 0.5},
    _BASELINES,
    _BASELINES | {'test_images': 0, 'knn_top1': 0.5},
    {'chance_top1': 0.1, 'test_images': 9, 'knn_top1': 0.5},
    dict.fromkeys([*_BASELINES, *verdict.SCORES]) | {'test_images': 9},
  ),
)
def test_nothing_to_compare(results):
  assert verdict.line(results) is None
