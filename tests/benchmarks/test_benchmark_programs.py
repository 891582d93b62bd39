"""What the benchmarks of the step count: by hand, and on compiled programs."""

import functools
import gzip
import json
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import (
  convolution,
  hlo,
  kernels,
  programs,
  queue,
  queue_parts,
  step,
  targets,
  turns,
)
from semppl_jax import errors, methods
from semppl_jax.distributed import parallel
from semppl_jax.models import convolution as models_convolution
from semppl_jax.train import run as run_lib
from tests.helpers import tiny, toy_support

_TEXT = """
HloModule x, num_partitions=4

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

ENTRY %main (p: f32[8,16]) -> f32[32,16] {
  %p = f32[8,16]{1,0:T(8,128)} parameter(0), metadata={op_name="x"}
  %q = (bf16[2,3]{1,0}, pred[5]{0}) custom-call(%p), custom_call_target="y"
  %r = bf16[2,3]{1,0} get-tuple-element(%q), index=0
  %s = f32[] constant(0)
  %start = (f32[8,16]{1,0}, f32[32,16]{1,0:T(8,128)}) all-gather-start(%p)
  %done = f32[32,16]{1,0} all-gather-done(%start)
  %two = (f32[8,16]{1,0}, f32[]) all-reduce(%p, %s), to_apply=%add
  %few = f32[2,16]{1,0} reduce-scatter(%p), dimensions={0}, to_apply=%add
  ROOT %all = (bf16[2,3]{1,0}, f32[8,16]{1,0}) all-to-all(%r, %p)
}
"""


def test_collectives_of_a_text():
  gather, reduce, scatter, exchange = hlo.read(_TEXT)
  assert gather == ('all-gather', ('f32[8,16]',), ('f32[32,16]',), 4 * 512)
  assert reduce == (
    'all-reduce', ('f32[8,16]', 'f32[]'), ('f32[8,16]', 'f32[]'), 4 * 129
  )  # fmt: skip
  assert scatter == ('reduce-scatter', ('f32[8,16]',), ('f32[2,16]',), 512)
  assert exchange.operands == ('bf16[2,3]', 'f32[8,16]')
  assert exchange.bytes == 2 * 6 + 512
  assert gather.dimensions == {8, 16, 32}
  assert hlo.num_bytes('pred[5]') == 5
  assert hlo.num_bytes('f32[]') == 4


def test_a_collective_in_a_loop_is_refused():
  loop = _TEXT.replace(
    'ROOT %sum = f32[] add(', 'ROOT %sum = f32[] all-reduce('
  )
  assert len(hlo.read(loop)) == 5  # called once, for all we know
  within = """
%body (a: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  ROOT %y = f32[] call(%x), to_apply=%add
}

ENTRY %again (p: f32[]) -> f32[] {
  %p = f32[] parameter(0)
  ROOT %w = f32[] while(%p), condition=%c, body=BODY
}
"""
  for body in ('%add', '%body'):  # itself, and what it calls
    with pytest.raises(ValueError, match='in a loop'):
      hlo.read(loop + within.replace('BODY', body))


def test_collectives_of_a_compiled_program():
  def everything(x, unused_batch, unused_key):
    return (
      parallel.all_gather(x),  # [4, 2, 8]: 256 bytes
      jax.lax.psum(x, parallel.AXIS),  # 64 bytes
      jax.lax.psum_scatter(  # takes [4, 2]
        x.reshape(4, 4), parallel.AXIS, scatter_dimension=0, tiled=True
      ),
    )

  mapped = parallel.map_step(everything, jax.devices()[:4], donate=False)
  x = jnp.zeros((4, 2, 8))
  found = hlo.collectives(mapped.lower(x, x, jax.random.key(0)).compile())
  assert {one.kind: one.bytes for one in found} == {
    'all-gather': 256, 'all-reduce': 64, 'reduce-scatter': 64
  }  # fmt: skip
  assert queue.by_kind(found + found)['all-gather'] == {
    'number': 2, 'bytes': 512
  }  # fmt: skip
  assert queue.difference(found, found) == 0
  assert queue.difference(found, found[1:]) == 1


def test_look_up_costs_what_the_formula_says():
  """And each of two devices does half of it."""
  count = lambda devices: queue_parts.Parts(64, 512, devices).search_flops()
  parts = queue_parts.Parts(64, 512)
  assert parts.search_formula() == 2 * 4 * 4 * 64 * 512 * 256
  assert count(1) == pytest.approx(parts.search_formula(), rel=0.1)
  assert count(2) == pytest.approx(count(1) / 2, rel=0.02)


def test_queue_memory_is_shared():
  one, four = queue.queue_memory(1000, [1, 4]).values()
  assert one == 4 * (4 * 1000 * 256 + 2 * 1000 + 1)
  assert four == 4 * (4 * 250 * 256 + 2 * 1000 + 1)


@functools.cache
def _run():
  return programs.prepare(tiny.make_config(queue__capacity=16, num_devices=2))


def test_the_whole_program_is_a_runs_step_with_a_full_queue():
  run = _run()
  state = programs.whole(run).state
  chex.assert_trees_all_equal_shapes_and_dtypes(
    state, programs.described(run).state
  )
  assert int(state.memory.count[0]) == run.cfg.queue.capacity


def test_a_batch_has_the_support_of_its_method(monkeypatch):
  monkeypatch.setitem(methods.METHODS, toy_support.NAME, toy_support)
  run = programs.prepare(
    tiny.make_config(
      toy_support.NAME, support__images=0, support__classes=2,
      support__images_per_class=4,
    )
  )  # fmt: skip
  batch, real = programs.batch_of(run), next(run_lib.input_batches(run, 0))[0]
  # Arrays of one size are whole in a run; here they lie on a canvas.
  kind = lambda x: x._replace(sizes=None)
  chex.assert_trees_all_equal_shapes_and_dtypes(
    kind(batch.support), real.support
  )
  np.testing.assert_array_equal(batch.support.labels, real.support.labels)


def test_a_profile_is_summed_by_kind(tmp_path):
  event = lambda name, **more: {
    'ph': 'X', 'name': name, 'dur': 2e6, 'args': {'hlo_op': name}
  } | more  # fmt: skip
  events = [
    event('dot.1'),
    event('dot.27'),
    event('add_fusion', dur=1e6),
    event('a step around them', args={}),
    event('dot.3', ph='M'),
  ]
  (tmp_path / 'host').mkdir()
  with gzip.open(tmp_path / 'host/x.trace.json.gz', 'wt') as file:
    json.dump({'traceEvents': events}, file)
  assert kernels.durations(str(tmp_path)) == {
    'dot': (4.0, 2), 'add_fusion': (1.0, 1)
  }  # fmt: skip


@pytest.mark.parametrize('form', ["XLA's own", 'ours'])
def test_the_forms_of_a_convolution_are_what_they_are_called(form):
  fresh = lambda x: models_convolution.max_pool(x)  # of nothing traced before
  with convolution.chosen(form):
    text = jax.jit(fresh).lower(jnp.ones((1, 4, 4, 2))).as_text()
  assert ('reduce_window' in text) == (form != 'ours')


@pytest.mark.long  # three programs are compiled
def test_programs_run_and_compile_once():
  run, heard = _run(), turns.Compilations()
  for make in (programs.whole, programs.bare, programs.supervised):
    program = make(run)
    before = jax.tree.map(np.array, program.state.online_params)
    runner = turns.Ours(make.__name__, program, run.devices, heard)
    assert runner.take() > 0
    assert runner.compile_seconds > 0
    assert runner.compiled_again == 0
    # Programs share arrays; none takes them away from another.
    for old, now in zip(
      jax.tree.leaves(before), jax.tree.leaves(program.state.online_params)
    ):
      np.testing.assert_array_equal(old, now)


def test_listener_hears_a_second_compilation():
  heard = turns.Compilations()
  step_of = lambda state, batch, key: (state + batch.sum(), batch)
  mapped = parallel.map_step(step_of, jax.devices()[:1], donate=False)
  for size in (3, 3, 5):
    mapped(jnp.zeros(1), np.zeros((1, size)), jax.random.key(0))
    heard.seconds.append(-1.0)
  kinds = ''.join('c' if s >= 0 else '|' for s in heard.seconds)
  first, second, third, _ = kinds.split('|')
  assert first and third and not second


@pytest.mark.long
def test_bare_program_is_the_networks_alone():
  run = _run()
  counts = {
    make.__name__: programs.flops(programs.lower(make(run), run.devices))
    for make in (programs.whole, programs.bare, programs.supervised)
  }
  assert counts['bare'] < counts['whole']
  # One large view forward and backward, a little of it saved at the images;
  # and LARS, which the bare program lacks.
  images = jax.ShapeDtypeStruct((tiny.BATCH, 8, 8, 3), jnp.float32)
  shapes = jax.eval_shape(run.setup.nets.init, jax.random.key(0), images)
  forward = jax.jit(
    lambda params, state, x: run.setup.nets.encode(params, state, x, False)
  ).lower(*shapes, images)
  assert 2.5 < counts['supervised'] / programs.flops(forward) < 4


def test_more_devices_have_larger_shapes_only_of_the_queue():
  run = _run()
  one, four = (programs.abstract(programs.described(run), n) for n in (1, 4))
  assert four.batch.images.shape == (4,) + one.batch.images.shape[1:]
  assert four.state.memory.embeddings.shape[1:] == (2, 16, 8)
  assert four.state.memory.labels.shape == (4, 64)


def test_ratios_are_of_rounds():
  seconds = {
    'step': [2.0, 3.0, 8.0],
    'networks': [2.0, 2.0, 4.0],
    'PyTorch step': [1.0, 6.0, 8.0],
  }
  assert step.ratios(seconds) == {
    'step / networks': (1.5, 1.0, 2.0, 1.0),
    'step: PyTorch / ours': (1.0, 0.5, 2.0, 0.5),
  }


def test_report_of_the_step(tmp_path, monkeypatch, capsys):
  """The command with made-up times: 16 images in 2 s, 1e12 operations."""
  names = ('step', 'networks', 'supervised')
  times = {name: [2.0, 2.0, 4.0] for name in names}
  compiled = {'compile_seconds': 7.0, 'first_seconds': 9.0, 'compiled_again': 0}
  monkeypatch.setattr(
    step, 'measure', lambda *_: (times, dict.fromkeys(names, compiled))
  )
  monkeypatch.setattr(step, 'flops', lambda *_: dict.fromkeys(names, 1e12))
  monkeypatch.setattr(step.peaks, 'matmul_tflops', lambda *_: 2.0)
  monkeypatch.setattr(step.peaks, 'gigabytes_per_second', lambda *_: 5.0)
  file = tmp_path / 'x.json'
  monkeypatch.setattr(
    sys, 'argv', ['step', '--rounds=3', '--torch=', f'--json={file}']
  )
  step.main()
  shown = capsys.readouterr().out
  assert '| step | 2.000 | 2.000 to 4.000 | 8.00 | 0.500 | 25% |' in shown
  assert '| step / networks | 1.000 | 1.000 | 1.000 | 1.000 |' in shown
  assert 'compiled in 7 s' in shown and '556.1 days' in shown
  assert json.loads(file.read_text())['seconds'] == times


class _Counter:
  def __init__(self, name, calls):
    self.name, self.first, self._calls = name, 0.0, calls

  def take(self):
    self._calls.append(self.name)
    return float(len(self._calls))


@pytest.mark.parametrize('chosen', ['nothing', 'step,nothing', ''])
def test_programs_that_are_not_there(chosen, monkeypatch, capsys):
  monkeypatch.setattr(sys, 'argv', ['step', f'--programs={chosen}'])
  with pytest.raises(SystemExit):
    step.main()
  assert 'some of step' in capsys.readouterr().err


def test_turns_go_back_and_forth():
  calls = []
  found = turns.take_turns([_Counter('a', calls), _Counter('b', calls)], 3)
  assert calls == list('abbaab')
  assert found == {'a': [1, 4, 5], 'b': [2, 3, 6]}


@pytest.mark.parametrize(
  'name', ['here:99', 'here:x', 'h100:many', 'rubbish:1']
)
def test_unknown_targets(name):
  with pytest.raises(errors.UserError, match='99|not a number|Cannot compile'):
    targets.find(name)


def test_a_target_compiles():
  target = targets.find('here:2')
  total = lambda state, batch, key: (parallel.pmean(state), batch)
  mapped = parallel.map_step(total, target.devices)
  x = jax.ShapeDtypeStruct((2, 8), jnp.float32)
  key = jax.eval_shape(lambda: jax.random.key(0))
  (one,) = hlo.collectives(target.compile(mapped.lower(x, x, key)))
  assert (one.kind, one.bytes) == ('all-reduce', 32)
