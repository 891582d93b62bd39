"""Watches a run's metrics for what no later step would mend.

An alarm depends on the steps' metrics alone, never on time, and what it goes by
is saved with the run: a run that was taken up again raises it at the same step,
and all hosts of a job, who see the same metrics, raise it together.
"""

import contextlib
import json
import os
import pathlib
import statistics
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from semppl_jax import files, hosts
from semppl_jax.errors import UserError

# Whatever its cause, an alarm ends a run with a status of its own.
STATUS = 3
_STOPPED = 'stopped.json'  # in the run's folder
_WINDOW = 100  # steps of which the median of the loss is taken
_START = 5  # times `patience`, and twice the warm-up: the start is over


class AlarmError(UserError):
  """A run went wrong.

  Attributes:
    step: at which it was noticed.
    good: the newest step whose state is trusted.
    what: is wrong, without a full stop.
    kind: loss, spread, chance, labels, or '': not finite.
  """

  status = STATUS

  def __init__(self, step: int, good: int, what: str, kind: str = ''):
    super().__init__(f'{what}.')
    self.step, self.good, self.what, self.kind = step, good, what, kind


class NotFiniteError(AlarmError):
  """The loss, its gradient or the state became NaN or infinite."""


class Stop(NamedTuple):
  """What a run's folder says of the alarm that ended the run."""

  step: int  # of the alarm
  good: int  # checkpoints up to this step are trusted
  what: str  # was wrong

  def __str__(self) -> str:
    return f'stopped by an alarm at step {self.step:,}'


def note_stop(workdir: str, alarm: AlarmError) -> None:
  """Writes what ended a run into its folder, for those who read it."""
  stop = Stop(alarm.step, alarm.good, alarm.what)
  path = pathlib.Path(workdir, _STOPPED)
  with contextlib.suppress(OSError):  # the alarm is told in any case
    files.write_text(path, json.dumps(stop._asdict()) + '\n')


def forget_stop(workdir: str) -> None:
  """A run that goes on is not a stopped one."""
  with contextlib.suppress(OSError):  # what is wrong with the disk shows later
    pathlib.Path(workdir, _STOPPED).unlink(missing_ok=True)


def read_stop(workdir: str | os.PathLike) -> Stop | None:
  """Of a run's folder; None: no alarm ended the run."""
  try:
    found = json.loads(pathlib.Path(workdir, _STOPPED).read_text('utf-8'))
    return Stop(int(found['step']), int(found['good']), str(found['what']))
  except (OSError, ValueError, TypeError, KeyError):
    return None


def stopped(alarm: AlarmError, last_good: int | None, cfg: Any) -> AlarmError:
  """The alarm that ends a run: where the last good checkpoint is, what to try.

  Args:
    alarm: of one kind or the other.
    last_good: the step of that checkpoint; None: there is none.
    cfg: the run's settings: what is on already is not advised.
  """
  kept = 'there is no good checkpoint yet'
  if last_good is not None:
    kept = f'the last good checkpoint is that of step {last_good}'
  ways = _against_one_label(cfg) if alarm.kind == 'labels' else ()
  ways = [*ways, 'a smaller optimizer.learning_rate'][:4]
  rolls_back = 'watchdog' in cfg and cfg.watchdog.action != 'roll_back'
  back = ', or watchdog.action=roll_back' if rolls_back else ''
  what = (
    f'{alarm.what}: stopped; {kept}. Try another --workdir with '
    f'{" or ".join(ways)}{back}'
  )
  return type(alarm)(alarm.step, alarm.good, what, alarm.kind)


def _against_one_label(cfg: Any) -> list[str]:
  """Settings that keep one pseudo-label from taking over, and are not on.

  In the order in which they helped on small folders: benchmarks/NOTES.md.
  """
  whole = cfg.accumulate == 1  # what needs all votes of a batch
  ways = {
    'queue.balance=1': whole and cfg.queue.balance == 0,
    'labels.share=0.25': cfg.labels.share == 0,
    'queue.target_query_epochs=6': cfg.queue.target_query_epochs == 0,
    'loss.alpha=0.2': cfg.loss.alpha > 0.2,
    'queue.k=5': cfg.queue.k == 1,
    'queue.min_share=0.5': whole and cfg.queue.min_share == 0,
  }
  return [way for way, is_off in ways.items() if is_off]


class Watchdog:
  """Looks at the metrics of every step, in order.

  NaN and infinity alarm at once. A loss that explodes and a representation that
  collapses do after `patience` steps in a row: a batch may have bad luck. The
  state before the first of these steps made it, so that is not trusted either.

  A start is no collapse: votes, embeddings and losses of an untrained network
  mean nothing yet. So what is watched alarms only if it was healthy after the
  warm-up, for `patience` steps in a row, or if it still is not when twice the
  warm-up and five times `patience` are over.

  Args:
    limits: the `watchdog` section of the config; None: NaN and infinity only.
    warmup_steps: of the learning rate.
    chance: loss_augm of a network that cannot tell an image's views from other
      images, in nats; None: it is not trained to.
    largest_class: share of the most frequent label among the training labels;
      pseudo-labels may be that one-sided by right.
    memory: of the watchdog that saw the steps before, see `memory`.
  """

  def __init__(
    self,
    limits: Any = None,
    *,
    warmup_steps: int = 0,
    chance: float | None = None,
    largest_class: float = 0.0,
    memory: Mapping[str, Any] | None = None,
  ):
    self._limits = limits
    self._warmup_steps = warmup_steps
    self._chance = chance
    self._largest_class = largest_class
    memory = memory or {}
    self._losses: list[float] = list(memory.get('losses', []))
    # Of each thing that is watched: so many steps in a row it has been bad, and
    # good since the warm-up (no more than `patience` are counted).
    self._rows: dict[str, int] = dict(memory.get('rows', {}))
    self._good_rows: dict[str, int] = dict(memory.get('good_rows', {}))

  def memory(self) -> dict[str, Any]:
    """What the next steps are judged by, of JSON types."""
    return {
      'losses': list(self._losses),
      'rows': dict(self._rows),
      'good_rows': dict(self._good_rows),
    }

  def look(self, step: int, scalars: Mapping[str, float]) -> None:
    """Takes a step's metrics.

    Raises:
      NotFiniteError: the loss or its gradient is NaN or infinite.
      AlarmError: the loss has exploded, or the representation collapsed.
    """
    for name in ('loss', 'grad_norm'):
      if not np.isfinite(scalars[name]):
        what = f'{name} is {scalars[name]} at step {step}'
        # The update before made this loss.
        raise NotFiniteError(step, step - 2, what)
    if self._limits is None:
      return
    for name, what in self._complaints(scalars).items():
      self._count(name, step, bad=bool(what))
      if what and self._is_over(name, step):
        first = step - self._rows[name] + 1
        what = f'From step {first} to {step} {what}'
        raise AlarmError(step, first - 2, what, name)
    if step > self._warmup_steps:
      self._losses = [*self._losses, scalars['loss']][-_WINDOW:]

  def _count(self, name: str, step: int, *, bad: bool) -> None:
    self._rows[name] = self._rows.get(name, 0) + 1 if bad else 0
    good = self._good_rows.get(name, 0)
    if step > self._warmup_steps and good < self._limits.patience:
      self._good_rows[name] = 0 if bad else good + 1

  def _is_over(self, name: str, step: int) -> bool:
    """Whether what is bad now will not mend itself."""
    patience = self._limits.patience
    was_healthy = self._good_rows.get(name, 0) >= patience
    is_late = step >= 2 * self._warmup_steps + _START * patience
    return self._rows[name] >= patience and (was_healthy or is_late)

  def _complaints(self, scalars: Mapping[str, float]) -> dict[str, str]:
    """What is wrong with a step's metrics; an empty string: nothing.

    What cannot be judged yet is left out.
    """
    limits, loss = self._limits, scalars['loss']
    found = {'spread': '', 'loss': ''}
    if scalars['embedding_std'] < limits.min_spread:
      found['spread'] = (
        f'embedding_std was below {limits.min_spread:g} (it is '
        f'{scalars["embedding_std"]:.3g}): the embeddings have collapsed'
      )
    if self._chance is not None and limits.chance_factor:
      found['chance'] = ''
      if scalars['loss_augm'] >= limits.chance_factor * self._chance:
        found['chance'] = (
          "the network could not tell an image's views from other images ("
          f'loss_augm is {scalars["loss_augm"]:.3g}; by chance it is '
          f'{self._chance:.3g})'
        )
    # Before, a loss may rise by right: the invariance of an untrained network
    # is all but perfect.
    if limits.loss_factor and len(self._losses) >= limits.patience:
      usual = statistics.median(self._losses)
      if loss > limits.loss_factor * usual:
        found['loss'] = (
          f'the loss was above {limits.loss_factor:g} times its usual '
          f'{usual:.3g} (it is {loss:.3g})'
        )
    # A queue that fills has seen few labelled images, maybe of one class.
    if scalars['queue_fill'] >= 1:
      share = scalars['top_label_share']
      found['labels'] = ''
      if share > self._most(limits):
        found['labels'] = (
          f'one pseudo-label had taken over (it has {share:.1%} of the '
          'unlabelled images)'
        )
    return found

  def _most(self, limits: Any) -> float:
    """The largest share of a pseudo-label that is still fine."""
    # Of the way from a fair share to all.
    rest = 1 - self._largest_class
    return self._largest_class + limits.max_label_share * rest


def check_state(step: int, state: Any) -> None:
  """Looks at all numbers of a state, on all hosts, before it is saved.

  Args:
    step: the number of steps done.
    state: NumPy arrays, or JAX arrays of which each host looks at its part.

  Raises:
    NotFiniteError: one is NaN or infinite.
  """
  leaves = jax.tree_util.tree_flatten_with_path(state)[0]
  bad = [jax.tree_util.keystr(path) for path, x in leaves if not _finite(x)]
  everywhere = [name for names in hosts.exchange(bad[:1]) for name in names]
  if everywhere:
    what = f'state{everywhere[0]} is not finite after step {step}'
    raise NotFiniteError(step, step - 1, what)


def _finite(leaf: Any) -> bool:
  if not jnp.issubdtype(leaf.dtype, jnp.inexact):
    return True
  if isinstance(leaf, jax.Array):
    return all(np.isfinite(s.data).all() for s in leaf.addressable_shards)
  return bool(np.isfinite(leaf).all())
