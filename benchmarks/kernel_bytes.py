"""What the kernels of a compiled step read and write: no device is needed.

  python -m benchmarks.kernel_bytes                        # for an H100
  python -m benchmarks.kernel_bytes --target=here:1 --encoder=digits \
    --sizes=16,8,6 --batch_size=8

Of every kernel (an instruction of the compiled program, outside fusions) the
bytes of its operands and results, each once: what it must move if nothing is in
a cache. Prints totals by kind and the shapes that move most; see targets.py for
what is compiled without a GPU, and NOTES.md for the floor. --json=FILE.
"""

import collections
import re
from collections.abc import Iterator
from typing import NamedTuple

from benchmarks import command, hlo, programs, targets
from semppl_jax.workdir import tables

# Of no kernel, or only others' names for what there is.
_FREE = {
  'after-all', 'bitcast', 'constant', 'get-tuple-element', 'opt-barrier',
  'parameter', 'partition-id', 'replica-id', 'tuple',
}  # fmt: skip
_CALLS = {'while', 'call', 'conditional'}
_OPERATION = re.compile(r'(?:^|\s)([a-z][\w-]*)\(')
_KIND = re.compile(r'kind=(\w+)|custom_call_target="([^"]+)"')


class Kernel(NamedTuple):
  """One instruction that moves bytes."""

  kind: str  # operation, or a fusion's or library's kind
  results: tuple[str, ...]  # shapes, like bf16[8,256]
  bytes: int  # operands and results


def kernels(text: str) -> list[Kernel]:
  """All kernels of an HLO module, a loop's body once."""
  program = hlo.computations(text)
  shapes = {
    name: hlo.result_shapes(rest)
    for lines in program.values()
    for name, rest in lines
  }
  return list(_walk(program, shapes, hlo.entry(text)))


def _walk(
  program: dict[str, list[tuple[str, str]]],
  shapes: dict[str, list[str]],
  computation: str,
) -> Iterator[Kernel]:
  for name, rest in program[computation]:
    after = rest[_end(rest) :] if rest.startswith('(') else rest
    operation = _OPERATION.search(after)
    if operation is None or operation[1] in _FREE:
      continue
    if operation[1] in _CALLS:
      for called in hlo.called(rest):
        yield from _walk(program, shapes, called)
      continue
    begin = operation.end() - 1
    operands = after[begin : begin + _end(after[begin:])]
    moved = list(shapes[name])
    for operand in set(re.findall(r'%[\w.-]+', operands)):
      moved += shapes.get(operand, [])
    kind = _KIND.search(rest)
    yield Kernel(
      (kind[1] or kind[2]) if kind else operation[1],
      tuple(shapes[name]),
      sum(map(hlo.num_bytes, moved)),
    )


def _end(text: str) -> int:
  """Behind the parenthesis that closes the first one."""
  depth = 0
  for i, c in enumerate(text):
    depth += (c == '(') - (c == ')')
    if depth == 0:
      return i + 1
  return len(text)


def _table(counter: collections.Counter, number: collections.Counter, b: int):
  total = sum(counter.values())
  return [
    [
      ' '.join(key),
      number[key],
      f'{x / b / 1e6:.1f}',
      f'{100 * x / total:.1f}%',
    ]
    for key, x in counter.most_common(20)
  ]


def main() -> None:
  """Compiles, counts and prints."""
  parser = command.parser(__doc__)
  parser.add_argument('--target', default='h100', help='see targets.py')
  parser.add_argument('--encoder', default='resnet50')
  parser.add_argument('--sizes', default='512,224,96')
  parser.add_argument('--batch_size', type=int, default=32)
  parser.add_argument('--precision', default='bfloat16')
  args = parser.parse_args()
  target = targets.find(args.target)
  sizes = [int(size) for size in args.sizes.split(',')]
  cfg = programs.settings(
    args.encoder, args.batch_size, sizes, 20 * args.batch_size,
    precision=args.precision,
  )  # fmt: skip
  program = programs.described(programs.prepare(cfg))
  compiled = target.compile(programs.lower(program, target.devices))
  found = kernels(compiled.as_text())
  total = sum(kernel.bytes for kernel in found) / args.batch_size
  print(f'{len(found)} kernels, {total / 1e9:.2f} GB an image\n')
  for head, key in (
    ('kind', lambda kernel: (kernel.kind,)),
    ('kind and first result', lambda kernel: (kernel.kind, kernel.results[0])),
  ):
    moved, number = collections.Counter(), collections.Counter()
    for kernel in found:
      moved[key(kernel)] += kernel.bytes
      number[key(kernel)] += 1
    heads = [head, 'kernels', 'MB an image', 'share']
    print(tables.markdown(heads, _table(moved, number, args.batch_size)))
  command.finish(args, {'kernels': found, 'bytes_per_image': total})


if __name__ == '__main__':
  main()
