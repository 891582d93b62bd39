"""benchmarks.kernel_bytes, on a program by hand and on a compiled one."""

import jax
import jax.numpy as jnp

from benchmarks import kernel_bytes
from benchmarks.kernel_bytes import Kernel

_TEXT = """HloModule step

%fused (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  ROOT %add.9 = f32[8]{0} add(%p, %p)
}

%body (state: (s32[], f32[8])) -> (s32[], f32[8]) {
  %state = (s32[], f32[8]{0}) parameter(0)
  %x.1 = f32[8]{0} get-tuple-element(%state), index=1
  ROOT %negate.2 = f32[8]{0} negate(%x.1)
}

%condition (state.1: (s32[], f32[8])) -> pred[] {
  %state.1 = (s32[], f32[8]{0}) parameter(0)
  ROOT %true.1 = pred[] constant(true)
}

ENTRY %main (a: f32[8], b: bf16[4]) -> f32[8] {
  %a = f32[8]{0} parameter(0)
  %b = bf16[4]{0} parameter(1)
  %twice.1 = f32[8]{0} fusion(%a, %a, %b), kind=kLoop, calls=%fused
  %conv.1 = (bf16[4]{0}, u8[0]{0}) custom-call(%b), custom_call_target="conv"
  %same.1 = bf16[4]{0} get-tuple-element(%conv.1), index=0
  %pair.1 = (s32[], f32[8]{0}) tuple(%a, %twice.1)
  %while.1 = (s32[], f32[8]{0}) while(%pair.1), condition=%condition, body=%body
  ROOT %sum.1 = f32[] add(%twice.1, %same.1), metadata={op_name="copy(x)"}
}
"""


def test_bytes_by_hand():
  assert kernel_bytes.kernels(_TEXT) == [
    Kernel('kLoop', ('f32[8]',), 32 + 8 + 32),  # %a is read once
    Kernel('conv', ('bf16[4]', 'u8[0]'), 8 + 8),
    Kernel('negate', ('f32[8]',), 64),  # the loop's body; its condition: none
    Kernel('add', ('f32[]',), 32 + 8 + 4),
  ]


def test_a_compiled_program():
  x = jnp.ones((64, 32))
  compiled = jax.jit(lambda x: x @ x.T).lower(x).compile()
  found = kernel_bytes.kernels(compiled.as_text())
  assert sum(kernel.bytes for kernel in found) >= 4 * (64 * 32 + 64 * 64)
