"""Any value of any setting: a line that names it, or a run that can begin."""

import hypothesis
from hypothesis import strategies as st

from semppl_jax import config
from semppl_jax.config import eval_config
from semppl_jax.errors import UserError
from semppl_jax.train import run as run_lib
from tests.helpers import tiny

_NUMBERS = (0, 1, 2, 7, 16, -1, 2**31, 2**62, 10**30, None, True, 0.5, 1.5)
_FLOATS = (
  0.0, 0.5, 1.0, 2.0, -1.0, 1e-300, 1e300, float('nan'),
  float('inf'), -float('inf'), None, False,
)  # fmt: skip
_TUPLES = (
  (), (0.5,), (0.2, 0.7), (0.7, 0.2), (0, 0), (-1, 2), (1, 2), (3, 4),
  (float('nan'), 1.0), (0.5, float('inf')), ('a', 'b'), (0.1, 0.2, 0.3), None,
  (None, 1), (True, True),
)  # fmt: skip
_TEXTS = ('', 'x', 'a\nb', 'small', 'smal', 'digits', 'digit', 'adam', 'sgd')
_VALUES = {
  bool: (True, False, None), int: _NUMBERS, float: _FLOATS, tuple: _TUPLES,
  str: (*_TEXTS, 'folder', 'tfds:', 'tfds:x/y', '~nobody/x', None, 3),
  type(None): _FLOATS,
}  # fmt: skip
# Whoever asks for so many numbers gets them, or has no memory for them.
_LARGE = ('dataset.num_examples', 'dataset.num_classes')


def values_of(cfg):
  """A strategy of {one or two settings: values}."""
  keys = sorted(key for key, _ in config.flat(cfg))
  value = lambda key: _VALUES[type(config.look_up(cfg, key))]
  one = st.sampled_from(keys).flatmap(
    lambda key: st.tuples(st.just(key), st.sampled_from(value(key)))
  )
  return st.lists(one, min_size=1, max_size=2).map(dict)


def changed(cfg, changes):
  cfg = cfg.copy_and_resolve_references()
  for key, value in changes.items():
    small = isinstance(value, (int, type(None))) and (value or 0) < 2**16
    hypothesis.assume(key not in _LARGE or small)
    try:
      cfg.update_from_flattened_dict({key: value})
    except (TypeError, OverflowError):  # ml_collections' own refusal
      hypothesis.reject()
  return cfg


def refused(error, changes):
  """In one line that names what was changed."""
  text = str(error)
  assert len(text.splitlines()) == 1, repr(text)
  names = {part for key in changes for part in key.split('.')}
  assert any(name in text for name in names), (text, changes)


def attempt(cfg, changes):
  """The run, or None for one that is refused as it should be."""
  try:
    return run_lib.prepare(cfg)
  except UserError as error:
    refused(error, changes)
    return None


def settings(examples):
  return hypothesis.settings(
    max_examples=examples,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(hypothesis.HealthCheck),
  )


_TINY = tiny.make_config(num_devices=1)


@settings(40)
@hypothesis.given(values_of(_TINY))
def test_a_run_can_be_prepared_or_is_refused(changes):
  attempt(changed(_TINY, changes), changes)


@settings(40)
@hypothesis.given(values_of(eval_config.default()))
def test_evaluation_is_checked_or_refused(changes):
  cfg = changed(eval_config.default(), {'checkpoint': 'x'} | changes)
  try:
    eval_config.validate(cfg, 1)
  except UserError as error:
    refused(error, changes)
