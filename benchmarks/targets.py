"""What programs are compiled for: devices that are there, or that are not.

  here, here:D   this machine's devices, or the first D of them
  h100, h100:D   H100s of 80 GB; needs the extra `cuda`, no GPU
  v5p:2x2x1, v5e:4x4, ...   a TPU topology; needs the extra `tpu`, no TPU

XLA compiles for a described device as for a real one, and tells the memory and
the collectives of the program; only running it is impossible.
"""

import os
from collections.abc import Sequence
from typing import NamedTuple

import jax
from jax.experimental import topologies

from semppl_jax.distributed import parallel
from semppl_jax.errors import UserError

# NVIDIA's figures for the H100 SXM, in the form in which XLA wants them.
_H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32
  shared_memory_per_block: 49152 shared_memory_per_core: 233472
  shared_memory_per_block_optin: 232448
  threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800
  clock_rate_ghz: 1.98 device_memory_size: 84942979072
  cuda_compute_capability { major: 9 }
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 }
runtime_version { major: 12 minor: 8 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
# What is only counted need not be fast; and without a GPU no kernel can be
# tried out.
_HASTY = {
  'xla_backend_optimization_level': 0,
  'xla_llvm_disable_expensive_passes': True,
}
_UNTUNED = {'xla_gpu_autotune_level': 0, 'xla_gpu_enable_triton_gemm': False}


class Target(NamedTuple):
  """Devices to compile for, in order to count; not to run fast."""

  name: str
  devices: Sequence[jax.Device]
  options: dict  # the compiler's

  def compile(self, lowered: jax.stages.Lowered) -> jax.stages.Compiled:
    """Compiles a program that was lowered for these devices."""
    return lowered.compile(compiler_options=self.options)


def find(name: str) -> Target:
  """Devices by their name, see above.

  Raises:
    UserError: an unknown name, too few devices, or a plug-in of JAX's that is
      missing.
  """
  kind, _, number = name.partition(':')
  if kind == 'here':
    devices = parallel.some_devices(_number(name, number, 0))
    return Target(name, devices, _HASTY)
  # An accelerator's plug-in is to describe one, not to look for it.
  jax.config.update('jax_platforms', 'cpu')
  jax.devices()  # so that plug-ins register
  try:
    if kind == 'h100':
      described = _h100(_number(name, number, 1))
      return Target(name, described.devices, _HASTY | _UNTUNED)
    described = _tpu(name)
  except (RuntimeError, ModuleNotFoundError) as error:
    first = str(error).splitlines()[0]
    raise UserError(
      f'Cannot compile for {name!r}: {first} Known: here[:D], h100[:D] (needs '
      'the extra `cuda`), TPU topologies like v5p:2x2x1 (the extra `tpu`).'
    ) from error
  return Target(name, described.devices, {})


def _number(name: str, number: str, default: int) -> int:
  if number and not number.isdigit():
    raise UserError(f'{name!r}: {number!r} is not a number of devices.')
  return int(number or default)


def _h100(number: int) -> topologies.TopologyDescription:
  return topologies.get_topology_desc(
    platform='cuda',
    topology_name='',
    target_config=_H100,
    topology=f'1x1x{number}',
  )


def _tpu(name: str) -> topologies.TopologyDescription:
  # Nobody is to be asked which machine this is.
  os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')
  os.environ.setdefault('TPU_ACCELERATOR_TYPE', 'v5p-8')
  os.environ.setdefault('TPU_WORKER_HOSTNAMES', 'localhost')
  return topologies.get_topology_desc(platform='tpu', topology_name=name)
