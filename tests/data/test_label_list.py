"""Lists of names and classes, as people and programs write them."""

import pytest

from semppl_jax.data import label_list
from semppl_jax.errors import UserError

_NAMES = {'cat/1.png', 'a,b.png', 'x.png'}


def parse(text):
  lines = [line.strip() for line in text.splitlines() if line.strip()]
  return list(map(tuple, label_list.parse(lines, _NAMES.__contains__, 'LIST')))


@pytest.mark.parametrize(
  'text, entries',
  [
    ('cat/1.png\nx.png', [('cat/1.png', None), ('x.png', None)]),
    ('cat/1.png,dog\nx.png', [('cat/1.png', 'dog'), ('x.png', None)]),
    ('a,b.png', [('a,b.png', None)]),  # a comma in a name, as before
    ('"a,b.png",dog', [('a,b.png', 'dog')]),
    ('name,class\ncat/1.png, big dog', [('cat/1.png', 'big dog')]),
    ('File;Label\nx.png;dog', [('x.png', 'dog')]),
    ('name\tshare\tclass\nx.png\t0.5\tdog', [('x.png', 'dog')]),
    # As `semppl-jax label` writes them: what nobody filled in does not count.
    (
      'name,class,pseudo_label\nx.png,,dog\ncat/1.png,cow,dog\n',
      [('cat/1.png', 'cow')],
    ),
    ('x.png,dog\nx.png,dog', [('x.png', 'dog')]),
    ('nobody,a,b', [('nobody,a,b', None)]),  # for who looks it up to refuse
    ('nobody,', [('nobody,', None)]),
  ],
)
def test_entries(text, entries):
  assert parse(text) == entries


@pytest.mark.parametrize(
  'text, words',
  [
    ('x.png,dog\nx.png,cat', "LIST: 'x.png' stands there with two classes"),
    ('name,class\nx.png', 'LIST: row 2 has 1 columns'),
    ('name,class\nx.png,', 'LIST: no row has a class'),
  ],
)
def test_mistakes(text, words):
  with pytest.raises(UserError) as error:
    parse(text)
  assert words in str(error.value) and '\n' not in str(error.value)
