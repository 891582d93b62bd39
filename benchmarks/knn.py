"""kNN's search over many keys, against NumPy's sort of all of them.

  python -m benchmarks.knn --keys=131072 --queries=1024

Ranks of all classes, for random embeddings. NumPy's way is what the search was
before: products on the host, a stable sort of every row, a maximum for each
class. The two take turns, NumPy with fewer queries. Prints images per second,
and the time of --all queries among --all_keys, if it grows with the product of
their numbers; --json=FILE writes the numbers.
"""

import time
from collections.abc import Callable

import numpy as np

from benchmarks import command
from semppl_jax.evaluation import knn


def before(queries, keys, labels, *, k, num_classes):
  """Ranks as they were until the search was replaced; see `knn.ranks`."""
  unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)
  keys, parts = unit(keys), []
  size = max(1, min(1024, 2**26 // len(keys)))
  for block in np.split(queries, range(size, len(queries), size)):
    similarity = unit(block) @ keys.T
    nearest = np.argsort(-similarity, axis=1, kind='stable')[:, :k]
    rows = np.arange(len(block))[:, None]
    near = np.take_along_axis(similarity, nearest, axis=1)
    own = np.full((len(block), num_classes), -np.inf)
    np.maximum.at(own, (rows, labels[None]), similarity)
    parts.append(knn._rank(near, nearest, own, labels, k, None))
  return np.concatenate(parts)


def timed(ranks: Callable[..., np.ndarray], *args, **kwargs) -> float:
  """Seconds of a call."""
  begun = time.perf_counter()
  ranks(*args, **kwargs)
  return time.perf_counter() - begun


def main() -> None:
  """Runs both and prints the table."""
  parser = command.parser(__doc__)
  parser.add_argument('--keys', type=int, default=2**17)
  parser.add_argument('--queries', type=int, default=1024)
  parser.add_argument('--size', type=int, default=2048)
  parser.add_argument('--classes', type=int, default=1000)
  parser.add_argument('--k', type=int, default=20)
  parser.add_argument('--rounds', type=int, default=3)
  parser.add_argument('--all', type=int, default=50_000)
  parser.add_argument('--all_keys', type=int, default=1_281_167)
  args = parser.parse_args()
  random = np.random.default_rng(0)
  draw = lambda count: random.standard_normal((count, args.size), np.float32)
  keys, queries = draw(args.keys), draw(args.queries)
  labels = random.integers(0, args.classes, args.keys)
  settings = {'k': args.k, 'num_classes': args.classes}
  few = max(1, args.queries // 8)
  same = np.array_equal(
    before(queries[:few], keys, labels, **settings).argmax(axis=1),
    knn.ranks(queries, keys, labels, **settings)[:few].argmax(axis=1),
  )  # and compiles
  command.say(f'the same first classes: {same}')
  rates: dict[str, list[float]] = {'before': [], 'now': []}
  for _ in range(args.rounds):
    for name, ranks, count in (
      ('before', before, few), ('now', knn.ranks, args.queries)
    ):  # fmt: skip
      seconds = timed(ranks, queries[:count], keys, labels, **settings)
      rates[name].append(count / seconds)
      command.say(f'{name}: {rates[name][-1]:.1f} images/s')
  print('| | images/s | hours for all |')
  print('| --- | --- | --- |')
  for name, values in rates.items():
    rate = float(np.median(values))
    hours = args.all / rate * args.all_keys / args.keys / 3600
    print(f'| {name} | {rate:.1f} | {hours:.2f} |')
  command.finish(args, {'images_per_second': rates, 'same': same})


if __name__ == '__main__':
  main()
