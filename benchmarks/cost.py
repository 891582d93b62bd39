"""What a run of each ImageNet experiment costs, in floating-point operations.

  python -m benchmarks.cost            # counts, nothing is run

Counts are XLA's, of the whole step (views, both networks and their gradients,
optimiser) before optimisation, at a batch of 16 on one device, divided by the
images; the kNN's share grows with the queue and is left out (a queue of 16).
Days are those of 300 epochs of ImageNet at a rate of --tflops on all devices
together: an assumption until `benchmarks.step` has measured it. Prints a table;
--json=FILE writes the numbers.
"""

from benchmarks import command, programs
from experiments import imagenet

IMAGES, EPOCHS = 1_281_167, 300


def networks() -> dict[str, str]:
  """{network: an experiment that trains it}, of all released checkpoints."""
  return {
    variant.removesuffix('_1pct'): variant
    for variant in imagenet.VARIANTS
    if variant.endswith('_1pct')
  }


def days(flops_per_image: float, tflops: float) -> float:
  """Of 300 epochs of ImageNet at a rate."""
  return flops_per_image * IMAGES * EPOCHS / (tflops * 1e12) / 86_400


def table(counts: dict[str, float], tflops: float) -> str:
  """GFLOP per image and device-days for each network, as Markdown."""
  lines = [
    f'| network | GFLOP per image | days at {tflops:g} TFLOP/s |',
    '| --- | --- | --- |',
  ]
  for name, flops in counts.items():
    lines.append(f'| {name} | {flops / 1e9:.0f} | {days(flops, tflops):.1f} |')
  return '\n'.join(lines)


def main() -> None:
  """Counts and prints."""
  parser = command.parser(__doc__)
  parser.add_argument('--tflops', type=float, default=100.0, help='for days')
  args = parser.parse_args()
  counts = {
    name: programs.step_flops(imagenet.get_config(variant))
    for name, variant in networks().items()
  }
  print(table(counts, args.tflops))
  command.finish(args, {'flops_per_image': counts})


if __name__ == '__main__':
  main()
