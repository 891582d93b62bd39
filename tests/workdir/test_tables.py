"""A table for people and one for programs, of the same cells."""

import json

from semppl_jax.workdir import tables


def test_a_table_by_hand(tmp_path):
  rows = [['a', 71.256, 3], ['b', None, 0]]
  tables.write(tmp_path, ['set', 'top-1', 'images'], rows, 'A note.')
  assert (tmp_path / 'table.md').read_text() == (
    '| set | top-1 | images |\n| --- | --- | --- |\n'
    '| a | 71.26 | 3 |\n| b | – | 0 |\n\nA note.\n'
  )
  assert json.loads((tmp_path / 'table.json').read_text()) == [
    {'set': 'a', 'top-1': 71.256, 'images': 3},
    {'set': 'b', 'top-1': None, 'images': 0},
  ]
