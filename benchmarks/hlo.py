"""What travels between devices, read from a compiled program's text."""

import re
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
    ValueError: one of them is in a loop's body: how often would it run?
  """
  shapes: dict[str, list[str]] = {}  # of every instruction's result
  found, computation = [], ''
  bodies = set(re.findall(r'\bbody=(%[\w.-]+)', text))
  for line in text.splitlines():
    if line.endswith('{') and not line.startswith(' '):
      computation = line.removeprefix('ENTRY ').split(' ')[0]
    named = _INSTRUCTION.match(line)
    if not named:
      continue
    name, rest = named.groups()
    shapes[name] = _shapes(rest.split('(')[0] if rest[0] != '(' else rest)
    match = _COLLECTIVE.match(rest)
    if match is None:
      continue
    if computation in bodies:
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
