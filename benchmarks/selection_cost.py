"""CPU seconds and peak memory of choosing images to label, by their number.

  python -m benchmarks.selection_cost
  python -m benchmarks.selection_cost --images=20000 --budget=200

Features are noise around as many centres as are to be chosen, 256 numbers an
image; nothing is embedded. Each number of images has a process of its own, so
that its peak is its own. Density grows with the square of the images, an
iteration of k-means with images times budget, the peak by as much an image as
between the numbers measured: 1,281,167 images are projected so, ImageNet's,
with a budget of 2,911 and 100 iterations.
"""

import json
import resource
import subprocess
import sys
import time
from typing import Any

import numpy as np

from benchmarks import command
from semppl_jax.selection import density, k_means, rounds, usl
from semppl_jax.workdir import tables

SIZE = 256
IMAGENET = 1_281_167
IMAGENET_BUDGET = 2_911  # 0.2%
PARTS = ('density', 'k-means', 'rounds')


def features(images: int, budget: int) -> np.ndarray:
  """[images, SIZE] float32 of unit length."""
  random = np.random.default_rng(0)
  centres = random.standard_normal((budget, SIZE), np.float32)
  rows = centres[random.integers(0, budget, images)]
  rows += random.standard_normal(rows.shape, np.float32)
  return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def measure(images: int, budget: int, iterations: int) -> dict[str, Any]:
  """CPU seconds of the three parts, compiling included, and peaks in MB."""
  settings = usl.PRESETS['imagenet']
  rows = features(images, budget)
  peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
  times = [time.process_time()]
  apart = density.mean_squared_distances(rows, settings.k)
  times.append(time.process_time())
  start = np.random.RandomState(0).permutation(images)[:budget]
  clusters, _ = k_means.cluster(rows, start, iterations)
  times.append(time.process_time())
  of_rounds = settings._asdict()
  del of_rounds['k'], of_rounds['iterations']
  rounds.choose(rows, 1 / apart, clusters, **of_rounds)
  times.append(time.process_time())
  return dict(zip(PARTS, np.diff(times).tolist(), strict=True)) | {
    'images': images,
    'budget': budget,
    'iterations': iterations,
    'features_mb': rows.nbytes / 2**20,
    'peak_mb': peak(),
  }


def projected(
  measured: list[dict[str, Any]], iterations: int = 100
) -> dict[str, Any]:
  """What ImageNet would take, from measured numbers of images."""
  first, found = measured[0], measured[-1]
  more = IMAGENET / found['images']
  slope = (found['peak_mb'] - first['peak_mb']) / max(
    1, found['images'] - first['images']
  )
  wider = IMAGENET_BUDGET / found['budget']
  return {
    'images': IMAGENET,
    'budget': IMAGENET_BUDGET,
    'iterations': iterations,
    'density': found['density'] * more**2,
    'k-means': found['k-means'] * more * wider
    * iterations / found['iterations'],
    'rounds': found['rounds'] * more * wider,
    'features_mb': found['features_mb'] * more,
    'peak_mb': found['peak_mb'] + slope * (IMAGENET - found['images']),
  }  # fmt: skip


def table(found: list[dict[str, Any]]) -> str:
  """Measured rows, and the projected one."""
  rows = [
    [
      f'{one["images"]:,}' + ', projected' * (one['images'] == IMAGENET),
      f'{one["budget"]:,}',
      f'{one["iterations"]}',
      *(f'{one[part]:,.0f}' for part in PARTS),
      f'{one["features_mb"]:,.0f}',
      f'{one["peak_mb"]:,.0f}',
    ]
    for one in found
  ]
  heads = ['images', 'budget', 'iterations', *(f'{p}, s' for p in PARTS)]
  return tables.markdown([*heads, 'features, MB', 'peak, MB'], rows)


def main() -> None:
  """Measures each number of images in a process of its own."""
  parser = command.parser(__doc__)
  parser.add_argument('--images', default='20000,100000')
  parser.add_argument('--budget', type=int, default=500)
  parser.add_argument('--iterations', type=int, default=10)
  parser.add_argument('--one', action='store_true', help='this process')
  args = parser.parse_args()
  numbers = list(map(int, args.images.split(',')))
  if args.one:
    print(json.dumps(measure(numbers[0], args.budget, args.iterations)))
    return
  found = []
  for number in numbers:
    done = subprocess.run(
      [
        sys.executable, '-m', 'benchmarks.selection_cost', '--one',
        f'--images={number}', f'--budget={args.budget}',
        f'--iterations={args.iterations}',
      ],
      check=True, capture_output=True, text=True,
    )  # fmt: skip
    found.append(json.loads(done.stdout.splitlines()[-1]))
    command.say(str(found[-1]))
  print(table([*found, projected(found)]))
  command.finish(args, {'measured': found, 'projected': projected(found)})


if __name__ == '__main__':
  main()
