"""Makes docs/settings.md: every setting, its default, what it is, its source.

Nothing stands twice: descriptions are the comments beside a setting, or right
above it, in the files that define them. Run: python -m docs.settings
"""

import ast
import io
import pathlib
import re
import tokenize
from collections.abc import Iterator
from typing import NamedTuple

_ROOT = pathlib.Path(__file__).parent.parent
PAGE = _ROOT / 'docs/settings.md'
_PRETRAINING = 'semppl_jax/config/defaults.py'
_EVALUATION = 'semppl_jax/config/eval_config.py'
_METHOD = 'semppl_jax/methods/{}.py'
_SOURCE = re.compile(r'\s*\[(P|ours)\]')
# At the beginning of a sentence; not of a value.
_CAPITAL = re.compile(r'^(?!True|False|None)[A-Z](?=[a-z])')
_HEAD = """# Settings

Made by `python -m docs.settings` from the comments in
[defaults.py](../{pretraining}), the objectives' files in
[methods](../semppl_jax/methods) and
[eval_config.py](../{evaluation}): change them there.

Each is set by an experiment file, or on the command line as
`--config.KEY=VALUE`. Source: **paper** is the paper or a public release of its
authors, **ours** our setting where no public source states one; the rest is
of this program alone. Settings with a `*` do not change what a run computes
(but for rounding, or until there is an alarm): a run that has begun goes on
with another value of these, and of no other.
"""


class Setting(NamedTuple):
  """A row of the page."""

  key: str  # dotted
  default: str  # as it stands in the source
  what: str
  source: str  # paper, ours, or nothing


class _File:
  """A source file's `default` function and its comments."""

  def __init__(self, path: str):
    text = (_ROOT / path).read_text()
    self.tree = ast.parse(text)
    self._lines = text.splitlines()
    # Comments that stand alone in a line; comments after code.
    self.alone: dict[int, str] = {}
    self.behind: dict[int, str] = {}
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
      if token.type == tokenize.COMMENT:
        stands_alone = not token.line[: token.start[1]].strip()
        found = self.alone if stands_alone else self.behind
        found[token.start[0]] = token.string.lstrip('# ')

  def assignments(self) -> Iterator[tuple[str, ast.Assign]]:
    """(dotted name, node) of what `default` sets in `cfg`."""
    (function,) = (
      node
      for node in self.tree.body
      if isinstance(node, ast.FunctionDef) and node.name == 'default'
    )
    for node in function.body:
      if isinstance(node, ast.Assign):
        name = ast.unparse(node.targets[0])
        if name.startswith('cfg.'):
          yield name.removeprefix('cfg.'), node

  def section(self, call: ast.Call) -> tuple['_File', ast.Dict]:
    """Where a function stands that makes a section, and what it returns."""
    *module, name = ast.unparse(call.func).split('.')
    file = self if not module else _File(self._imported(*module))
    (function,) = (
      node
      for node in file.tree.body
      if isinstance(node, ast.FunctionDef) and node.name == name
    )
    return file, function.body[-1].value

  def home(self, name: str) -> '_File':
    """The file that a name of this one is from: this one, or a module's."""
    modules = self._modules(name)
    return _File(f'{modules[0]}.py') if modules else self

  def _imported(self, name: str) -> str:
    """The path of a module, by its name in this one."""
    (package,) = self._modules(name)
    return f'{package}/{name}.py'

  def _modules(self, name: str) -> list[str]:
    """Where a name is imported from, as a path without an ending."""
    return [
      node.module.replace('.', '/')
      for node in self.tree.body
      if isinstance(node, ast.ImportFrom)
      and name in {alias.name for alias in node.names}
    ]

  def constants(self, name: str) -> list[str]:
    """The texts in what a name of the module is set to, if it is."""
    values = [
      node.value
      for node in self.tree.body
      if isinstance(node, ast.Assign | ast.AnnAssign)
      and ast.unparse(getattr(node, 'target', None) or node.targets[0]) == name
    ]
    return [
      node.value
      for value in values
      for node in ast.walk(value)
      if isinstance(node, ast.Constant)
    ]

  def setting(self, key: str, first: ast.AST, value: ast.AST) -> Setting:
    """What stands in the lines of a setting, and in the comments above."""
    remarks = []
    line = first.lineno - 1
    while line in self.alone:
      remarks.insert(0, self.alone[line])
      line -= 1
    # Of a value of several lines, comments in it are not about the setting.
    remarks += [self.behind.get(value.end_lineno, '')]
    what = ' '.join(filter(None, remarks))
    found = _SOURCE.search(what)
    source = {'P': 'paper', 'ours': 'ours'}[found[1]] if found else ''
    what = _CAPITAL.sub(lambda match: match[0].lower(), _SOURCE.sub('', what))
    return Setting(key, self._default(value), what, source)

  def _default(self, value: ast.AST) -> str:
    if isinstance(value, ast.Call):  # a placeholder
      return 'None'
    lines = self._lines[value.lineno - 1 : value.end_lineno]
    lines[-1] = lines[-1][: value.end_col_offset]
    lines[0] = lines[0][value.col_offset :]
    text = ' '.join(' '.join(lines).split())
    return text.replace('( ', '(').replace(', )', ')')


def pretraining() -> list[Setting]:
  """All settings of pre-training, in the order of the source."""
  return _settings(_PRETRAINING)


def methods() -> list[str]:
  """The objectives, in the order of methods.METHODS."""
  return _File(_METHOD.format('__init__')).constants('METHODS')


def of_method(name: str) -> list[Setting]:
  """Settings of an objective's own, and what it sets of the engine's."""
  return _settings(_METHOD.format(name))


def evaluation() -> list[Setting]:
  """All settings of evaluation."""
  return _settings(_EVALUATION)


def _settings(path: str) -> list[Setting]:
  """In the order of the source; of what is set twice, its last value."""
  found = []
  this = _File(path).home('default')
  for name, node in this.assignments():
    file, value = this, node.value
    if isinstance(value, ast.Call) and not value.args:
      file, value = this.section(value)
    if isinstance(value, ast.Dict):
      pairs = zip(value.keys, value.values, strict=True)
      found += [file.setting(f'{name}.{k.value}', k, v) for k, v in pairs]
    else:
      found.append(file.setting(name, node, value))
  return list({setting.key: setting for setting in found}.values())


def page() -> str:
  """The text of docs/settings.md."""
  cosmetic = set(_File(_PRETRAINING).constants('COSMETIC'))
  parts = [_HEAD.format(pretraining=_PRETRAINING, evaluation=_EVALUATION)]
  parts.append('## Pre-training: the engine\n')
  parts += _tables(pretraining(), cosmetic)
  for name in methods():
    parts.append(f'## Method: {name}\n')
    if without := _File(_METHOD.format(name)).constants('WITHOUT'):
      sections = ' and '.join(f'`{section}`' for section in without)
      parts.append(f'Without the sections {sections}.\n')
    parts += _tables(of_method(name), cosmetic)
  parts.append('## Evaluation\n')
  parts += _tables(
    evaluation(), cosmetic | set(_File(_EVALUATION).constants('COSMETIC'))
  )
  return '\n'.join(parts)


def _tables(settings: list[Setting], cosmetic: set[str]) -> Iterator[str]:
  """A table for each section; settings outside of sections come first."""
  sections = {'': []}
  for setting in settings:
    name = setting.key.rpartition('.')[0]
    sections.setdefault(name, []).append(setting)
  for name, rows in sections.items():
    if not rows:
      continue
    heading = f'### {name}\n\n' if name else ''
    lines = ['| key | default | what | source |', '| --- | --- | --- | --- |']
    for key, default, what, source in rows:
      star = ' *' if key in cosmetic else ''
      what = what.replace('|', '\\|').replace('*', '\\*')
      cells = f'`{key}`{star}', f'`{default}`', what, source
      lines.append(f'| {" | ".join(cells)} |')
    yield heading + '\n'.join(lines) + '\n'


def main() -> None:
  """Writes the page."""
  PAGE.write_text(page())


if __name__ == '__main__':
  main()
