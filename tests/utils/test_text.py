"""Texts of others in a line, and values by their dotted names."""

import ml_collections
import pytest

from semppl_jax.utils import diff, text


@pytest.mark.parametrize(
  'error, line',
  [
    (ValueError('one\ntwo'), 'one'),
    (ValueError('\n  one \ntwo'), 'one '),
    (ValueError(), 'ValueError'),
    (OSError(' \n'), 'OSError'),
  ],
)
def test_the_first_line_of_an_error(error, line):
  assert text.first_line(error) == line


def test_a_text_of_others_is_one_short_line():
  assert text.printable('a\nb\x1b[2J ä') == 'a?b?[2J ä'
  assert text.printable('x' * 201) == 'x' * 200 + '...'


def test_the_nearest_name():
  assert text.nearest_name('semp', ('byol', 'semppl')).endswith("'semppl'?")
  assert text.nearest_name('xyz', ('byol', 'semppl')) == ''


@pytest.mark.parametrize(
  'kind', [dict, ml_collections.ConfigDict, ml_collections.FrozenConfigDict]
)
def test_nested_values_by_dotted_names(kind):
  tree = kind({'a': 1, 'b': {'c': {'d': 2}, 'e': (3,)}})
  assert dict(diff.flat(tree)) == {'a': 1, 'b.c.d': 2, 'b.e': (3,)}
