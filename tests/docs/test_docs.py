"""What code makes for docs/ is up to date, and leaves nothing out."""

import ast
import pathlib
import re
from xml.etree import ElementTree

import pytest

from docs import architecture_picture, pictures, settings
from semppl_jax import config, methods
from semppl_jax.config import defaults, eval_config
from tests.test_architecture import ENTRY, LAYERS

_PARTS = {
  'pretraining': (settings.pretraining, defaults.default, config.COSMETIC),
  'evaluation': (
    settings.evaluation, eval_config.default, eval_config.COSMETIC
  ),
}  # fmt: skip

_ROOT = pathlib.Path(__file__).parents[2]


def test_settings_page_is_what_the_program_makes():
  assert settings.PAGE.read_text() == settings.page(), (
    'docs/settings.md is not up to date: run python -m docs.settings'
  )


@pytest.mark.parametrize('part', _PARTS)
def test_every_setting_has_a_row_with_its_default_and_a_description(part):
  rows, default, _ = _PARTS[part]
  found = {row.key: row for row in rows()}
  values = dict(config.flat(default()))
  assert set(found) == set(values) and len(rows()) == len(values)
  for key, value in values.items():
    # Fractions such as 3 / 4 are no literals.
    assert eval(found[key].default, {}) == value, key
    assert re.search('[A-Za-z]', found[key].what), f'{key} has no description'


@pytest.mark.parametrize('name', methods.METHODS)
def test_every_setting_of_an_objective_has_a_row(name):
  rows = {row.key: row for row in settings.of_method(name)}
  assert settings.methods() == list(methods.METHODS)
  own = dict(config.flat(methods.METHODS[name].default()))
  assert set(rows) == set(own)
  for key, value in own.items():
    assert eval(rows[key].default, {}) == value, key
    assert re.search('[A-Za-z]', rows[key].what), f'{key} has no description'
  assert f'## Method: {name}\n' in settings.PAGE.read_text()


@pytest.mark.parametrize('part', _PARTS)
def test_starred_settings_are_those_that_may_change(part):
  _, default, cosmetic = _PARTS[part]
  names = ('Pre-training: the engine', 'Evaluation')
  page = settings.page().split(f'## {names[part == "evaluation"]}\n')[1]
  page = re.split('\n## ', page)[0]
  starred = re.findall(r'^\| `([^`]+)` \* \|', page, flags=re.M)
  keys = dict(config.flat(default()))
  assert set(starred) == set(cosmetic) & set(keys)


def test_marks_become_sources():
  of = {row.key: row for row in settings.pretraining()}
  assert of['encoder.bn_decay'].source == 'paper'
  assert of['batch_size'].source == 'ours'
  assert of['labels.seed'].source == ''
  # The mark in the middle of a comment of two lines above a key.
  size = of['dataset.image_size']
  assert size.source == 'ours' and 'shrunk. Of synthetic' in size.what


@pytest.mark.parametrize('path', pictures.PICTURES, ids=lambda p: p.stem)
def test_pictures_are_what_the_program_draws(path):
  assert path.read_text() == pictures.PICTURES[path](), (
    f'docs/{path.name} is not up to date: run python -m docs.pictures'
  )
  root = ElementTree.fromstring(path.read_text())
  assert root.tag == '{http://www.w3.org/2000/svg}svg'


def test_every_package_stands_in_the_picture():
  layers = LAYERS | {len(LAYERS): ENTRY}
  assert architecture_picture.layers() == layers
  root = ElementTree.fromstring(architecture_picture.draw())
  words = [e.text for e in root.iter('{http://www.w3.org/2000/svg}text')]
  for number, names in layers.items():
    assert str(number) in words
    for name in names:
      assert words.count(name) == 1, name


def test_documents_need_no_package():
  """They are made where only Python is."""
  for path in settings.PAGE.parent.glob('*.py'):
    assert 'semppl_jax' not in {
      name.split('.')[0]
      for node in ast.walk(ast.parse(path.read_text()))
      if isinstance(node, ast.Import | ast.ImportFrom)
      for name in [getattr(node, 'module', None) or node.names[0].name]
    }


_PAGES = sorted(
  path
  for pattern in ('*.md', 'docs/*.md', 'checkpoints/*.md', 'benchmarks/*.md')
  for path in _ROOT.glob(pattern)
)


@pytest.mark.parametrize('page', _PAGES, ids=lambda p: p.parent.name + p.stem)
def test_links_between_files_lead_somewhere(page):
  for target in re.findall(r'\]\(([^)#\s]+)', page.read_text()):
    if '://' not in target:
      assert (page.parent / target).exists(), target
