"""Sphinx: `make docs` builds the site into build/docs; warnings are errors."""

import pathlib
import shutil
import sys

_HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(_HERE.parent))

# Notebooks are pages, too; Sphinx reads what is below this folder.
shutil.copytree(
  _HERE.parent / 'notebooks', _HERE / 'notebooks', dirs_exist_ok=True
)

project = 'semppl_jax'
author = 'the semppl_jax authors'
copyright = f'2026, {author}'
extensions = [
  'myst_nb',
  'sphinx.ext.autodoc',
  'sphinx.ext.napoleon',
  'sphinx.ext.viewcode',
]
exclude_patterns = ['**/.ipynb_checkpoints']
html_theme = 'sphinx_book_theme'
html_title = 'semppl_jax'
# The pages link to files of the repository, which are not part of the site;
# tests/docs/test_docs.py looks at where these links lead.
suppress_warnings = ['myst.xref_missing', 'mystnb.unknown_mime_type']
myst_enable_extensions = ['dollarmath']
myst_heading_anchors = 3
nb_execution_mode = 'off'
autodoc_member_order = 'bysource'
autodoc_typehints = 'description'
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
# Names stay as they are written: `-O` is no dash.
smartquotes = False
