"""What a compiled step needs of a device's memory; and what to do without it.

Sizes are bytes on one device, by the compiler's own account.
"""

import math
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax

GIB = 2**30
# An accelerator's allocator keeps some for itself.
USABLE = 0.92


class Need(NamedTuple):
  """Memory of one device."""

  state: int  # what goes in, the batch too, and what comes out beside it
  temporary: int  # activations and the like

  @property
  def total(self) -> int:
    """Both."""
    return self.state + self.temporary


def need(compiled: Any) -> Need | None:
  """Of a compiled step; None where the compiler does not say."""
  found = compiled.memory_analysis()
  if found is None:
    return None
  # Donated arguments are results, too.
  results = found.output_size_in_bytes - found.alias_size_in_bytes
  return Need(
    found.argument_size_in_bytes + max(results, 0), found.temp_size_in_bytes
  )


def limit(device: jax.Device) -> int | None:
  """What a device can give in all; None where it does not say (CPUs)."""
  stats = device.memory_stats() or {}
  return stats.get('bytes_limit')


def capacity(device: jax.Device) -> int | None:
  """The same; of a CPU device, an equal share of the machine's memory."""
  if getattr(device, 'platform', '') == 'cpu':
    pages, size = (os.sysconf(f'SC_{x}') for x in ('PHYS_PAGES', 'PAGE_SIZE'))
    return pages * size // jax.local_device_count()
  return limit(device)


def largest_batch(found: Need, per_device: int, available: int) -> int:
  """Images on a device that would fit, if temporary memory grows with them.

  Args:
    found: at `per_device` images.
    per_device: images.
    available: of the device.
  """
  room = USABLE * available - found.state
  return max(0, int(per_device * room / max(found.temporary, 1)))


def convolution_outputs(
  function: Callable[..., Any], *arguments: Any, axis: str
) -> int:
  """Elements of the outputs of all convolutions in a function.

  The backward pass cannot do without them; what BatchNorm and ReLU make of them
  can be computed again.

  Args:
    function: of arrays, not mapped.
    *arguments: arrays or their shapes.
    axis: name of the axis that the function may reduce over.
  """
  return sum(_convolved(_trace(function, arguments, axis)))


def largest_convolution_output(
  function: Callable[..., Any], *arguments: Any, axis: str
) -> int:
  """Elements of the largest of them: a forward pass alone needs that, too.

  Args:
    function: see `convolution_outputs`.
    *arguments: likewise.
    axis: likewise.
  """
  return max(_convolved(_trace(function, arguments, axis)), default=0)


def _trace(function: Callable[..., Any], arguments: tuple, axis: str) -> Any:
  return jax.make_jaxpr(function, axis_env=[(axis, 1)])(*arguments).jaxpr


def _convolved(jaxpr: Any) -> Iterator[int]:
  for equation in jaxpr.eqns:
    if equation.primitive.name == 'conv_general_dilated':
      yield math.prod(equation.outvars[0].aval.shape)
    inside = jax.tree.leaves(list(equation.params.values()))
    # A convolution's forms by platform: the last one is XLA's own.
    if equation.primitive.name == 'cond':
      inside = equation.params['branches'][-1:]
    for inner in inside:
      inner = getattr(inner, 'jaxpr', inner)  # a closed jaxpr has it inside
      if hasattr(inner, 'eqns'):
        yield from _convolved(inner)


def is_exhausted(error: BaseException) -> bool:
  """Whether an error of JAX's is that there is not enough memory."""
  text = str(error)
  return 'RESOURCE_EXHAUSTED' in text or 'Out of memory' in text


def advice(
  batch_size: int,
  accumulate: int,
  devices: Sequence[jax.Device],
  compiled: Any | None = None,
  support: int = 0,
) -> str:
  """One line for a step that did not fit: the batch, and what would fit.

  Args:
    batch_size: over all devices.
    accumulate: parts in which it was taken.
    devices: all of them.
    compiled: the step, if it could be compiled.
    support: images beside the batch, over all devices, each taken for as large
      as one of the batch.
  """
  at_once = batch_size // (len(devices) * accumulate)
  beside = support // len(devices)
  line = (
    f'Out of memory: batch_size {batch_size} is {at_once} images at once on '
    f'each of {len(devices)} devices'
  )
  if beside:
    line += f', and {beside} of its support'
  found = compiled and need(compiled)
  there = capacity(devices[0])
  if found:
    line += f', which takes {found.total / GIB:.1f} GiB'
  if there:
    line += f' of {there / GIB:.1f}'
  if found and there:
    fits = largest_batch(found, at_once + beside, there) - beside
    line += f'. About {max(fits, 0)} would fit'
  return (
    f'{line}. Use more devices, a multiple of accumulate={accumulate}, '
    'remat=True, precision=bfloat16 or a smaller batch_size.'
  )
