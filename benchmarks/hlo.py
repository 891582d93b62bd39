"""A compiled program's text: instructions, and what travels between devices."""

import collections
import re
from collections.abc import Iterator
from typing import NamedTuple

import jax
import numpy as np

_KINDS = (
  'all-gather|all-reduce|all-to-all|reduce-scatter|collective-permute|'
  'collective-broadcast|ragged-all-to-all'
)
_INSTRUCTION = re.compile(r'^\s*(?:ROOT )?(%[\w.-]+) = (.*)$')
_COLLECTIVE = re.compile(rf'^(.*?) ({_KINDS})(-start)?\(([^)]*)\)')
_SHAPE = re.compile(r'\b(pred|[a-z]+\d+\w*)\[([\d,]*)\]')


# What an instruction runs: calls=%x, body=%y, branch_computations={%a, %b}, ..
_CALLED = re.compile(r'\b[a-z_]+=(%[\w.-]+|\{%[^}]*\})')


class Collective(NamedTuple):
  """One collective, as one device sees it."""

  kind: str  # all-gather, all-reduce, ...
  operands: tuple[str, ...]  # shapes, like f32[8,256]
  results: tuple[str, ...]
  bytes: int  # of the operands or of the results, the larger

  @property
  def dimensions(self) -> set[int]:
    """Of all operands and results."""
    shapes = ','.join(
      shape[shape.index('[') + 1 : -1] for shape in self.operands + self.results
    )
    return {int(n) for n in shapes.split(',') if n}


def collectives(compiled: jax.stages.Compiled) -> list[Collective]:
  """All collectives of a compiled program."""
  return read(compiled.as_text())


def read(text: str) -> list[Collective]:
  """All collectives of an HLO module.

  Raises:
    ValueError: one of them is in a loop: how often would it run?
  """
  shapes: dict[str, list[str]] = {}  # of every instruction's result
  found, repeated = [], _repeated(text)
  for computation, line in _lines(text):
    named = _INSTRUCTION.match(line)
    if not named:
      continue
    name, rest = named.groups()
    shapes[name] = result_shapes(rest)
    match = _COLLECTIVE.match(rest)
    if match is None:
      continue
    if computation in repeated:
      raise ValueError(f'A collective in a loop: {line.strip()}')
    results = _shapes(match[1])
    operands = [
      shape
      for operand in re.findall(r'%[\w.-]+', match[4])
      for shape in shapes[operand]
    ]
    if match[3] and match[1].startswith('('):  # (operands, results, ..)
      results = results[len(operands) :]
    size = max(sum(map(num_bytes, operands)), sum(map(num_bytes, results)))
    found.append(Collective(match[2], tuple(operands), tuple(results), size))
  return found


def computations(text: str) -> dict[str, list[tuple[str, str]]]:
  """{name of a computation: its instructions, (name, what follows =)}."""
  found = collections.defaultdict(list)
  for computation, line in _lines(text):
    if named := _INSTRUCTION.match(line):
      found[computation].append(named.groups())
  return found


def entry(text: str) -> str:
  """The name of the computation that the program begins with."""
  return re.search(r'^ENTRY (%[\w.-]+)', text, re.MULTILINE)[1]


def result_shapes(instruction: str) -> list[str]:
  """Shapes of an instruction's results, given what follows its =."""
  first = instruction.split('(')[0]
  return _shapes(instruction if instruction.startswith('(') else first)


def called(instruction: str) -> set[str]:
  """Names of the computations that an instruction runs."""
  lists = ' '.join(_CALLED.findall(instruction))
  return set(re.findall(r'%[\w.-]+', lists))


def _lines(text: str) -> Iterator[tuple[str, str]]:
  """(name of the computation, line) for every line of a module."""
  computation = ''
  for line in text.splitlines():
    if line.endswith('{') and not line.startswith(' '):
      computation = line.removeprefix('ENTRY ').split(' ')[0]
    yield computation, line


def _repeated(text: str) -> set[str]:
  """Loops' bodies and conditions, and all that they call."""
  calls: dict[str, set[str]] = {}
  waiting = set()
  for computation, line in _lines(text):
    named = called(line)
    calls.setdefault(computation, set()).update(named)
    if ' while(' in line:
      waiting |= named
  found: set[str] = set()
  while waiting:
    found |= waiting
    waiting = set().union(*(calls.get(name, ()) for name in waiting)) - found
  return found


def _shapes(text: str) -> list[str]:
  """Shapes in the type at the start of an instruction: 'f32[8]{0} add(..'."""
  if text.startswith('('):
    depth = np.cumsum([(c == '(') - (c == ')') for c in text])
    text = text[: int(np.argmin(depth > 0))]
  return [f'{kind}[{dims}]' for kind, dims in _SHAPE.findall(text)]


def num_bytes(shape: str) -> int:
  """Of an array of a shape like f32[8,256]."""
  kind, dims = shape[:-1].split('[')
  bits = 8 if kind == 'pred' else int(re.search(r'\d+', kind)[0])
  elements = int(np.prod([int(n) for n in dims.split(',') if n], dtype=int))
  return elements * max(bits // 8, 1)
