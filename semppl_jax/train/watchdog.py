"""Watches a run's metrics for what no later step would mend.

An alarm depends on the steps' metrics alone, never on time, and what it goes by
is saved with the run: a run that was taken up again raises it at the same step,
and all hosts of a job, who see the same metrics, raise it together.
"""

import math
import statistics
import types
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from semppl_jax.distributed import processes
from semppl_jax.errors import UserError
from semppl_jax.methods import base

# What alarms after some steps in a row: an exploded loss, embeddings that have
# collapsed, one prototype for all, uniform assignments to prototypes, views
# told apart by chance, one pseudo-label for all.
WATCHED = ('loss', 'spread', 'marginal', 'assignments', 'chance', 'labels')
# Whatever its cause, an alarm ends a run with a status of its own.
STATUS = 3
_WINDOW = 100  # steps of which the median of the loss is taken
_LATE = 3  # times `patience`, and twice the warm-up: the start is over


class AlarmError(UserError):
  """A run went wrong.

  Attributes:
    step: at which it was noticed.
    good: the newest step whose state is trusted.
    what: is wrong, without a full stop.
    kind: one of `WATCHED`, or '': not finite.
    advice: settings to try, the best first.
  """

  status = STATUS

  def __init__(
    self,
    step: int,
    good: int,
    what: str,
    kind: str = '',
    advice: Sequence[str] = (),
  ):
    super().__init__(f'{what}.')
    self.step, self.good, self.what, self.kind = step, good, what, kind
    self.advice = tuple(advice)


class NotFiniteError(AlarmError):
  """The loss, its gradient or the state became NaN or infinite."""


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
  ways = [*alarm.advice[:3], 'a smaller optimizer.learning_rate']
  rolls_back = 'watchdog' in cfg and cfg.watchdog.action != 'roll_back'
  back = ', or watchdog.action=roll_back' if rolls_back else ''
  what = (
    f'{alarm.what}: stopped; {kept}. Try another --workdir with '
    f'{" or ".join(ways)}{back}'
  )
  return type(alarm)(alarm.step, alarm.good, what, alarm.kind)


class Watchdog:
  """Looks at the metrics of every step, in order.

  NaN and infinity alarm at once. A loss that explodes and a representation that
  collapses do after `patience` steps in a row: a batch may have bad luck. The
  state before the first of these steps made it, so that is not trusted either.

  A start is no collapse: votes, embeddings and losses of an untrained network
  mean nothing yet. So what is watched alarms only if it was healthy after the
  warm-up, for `patience` steps in a row, or if it still is not when twice the
  warm-up and three times `patience` are over (for chance: at least
  `chance_patience`, as hard views take their time). The loss is compared with
  that of steps after the warm-up only.

  Args:
    limits: the `watchdog` section of the config; None: NaN and infinity only.
    watched: of `WATCHED`, what the run trains.
    warmup_steps: of the learning rate.
    chance: {metric: its value, in nats, of a network that cannot tell an
      image's views from other images}.
    lowest: what the loss can be at least.
    prototypes: to which images are assigned; None: to none.
    advice: settings to try if one pseudo-label takes over, or assignments to
      prototypes become uniform; of a run that trains no pseudo-labels, if
      embeddings collapse or views are told apart by chance, too.
    largest_class: share of the most frequent label among the training labels;
      pseudo-labels may be that one-sided by right.
    memory: of the watchdog that saw the steps before, see `memory`.
  """

  def __init__(
    self,
    limits: Any = None,
    *,
    watched: Collection[str] = WATCHED,
    warmup_steps: int = 0,
    chance: Mapping[str, float] = types.MappingProxyType({}),
    lowest: float = 0.0,
    prototypes: base.Prototypes | None = None,
    advice: Sequence[str] = (),
    largest_class: float = 0.0,
    memory: Mapping[str, Any] | None = None,
  ):
    self._limits = limits
    self._watched = watched
    self._warmup_steps = warmup_steps
    self._chance = dict(chance)
    self._lowest = lowest
    self._prototypes = prototypes
    patient = 'a larger watchdog.chance_patience, if it was falling'
    self._advice = {'labels': tuple(advice), 'chance': (patient,)}
    if 'labels' not in watched:
      # Then it is for what else can collapse; three are told at most.
      self._advice = {
        'spread': tuple(advice),
        'chance': (*advice[:2], patient),
      }
    if prototypes is not None:
      self._advice['marginal'] = prototypes.advice
      self._advice['assignments'] = tuple(advice)
    self._largest_class = largest_class
    memory = memory or {}
    # Of each thing that is watched: so many steps in a row it has been bad, and
    # good since the warm-up; and whether that was health.
    self._rows: dict[str, int] = dict(memory.get('rows', {}))
    self._good_rows: dict[str, int] = dict(memory.get('good_rows', {}))
    self._healthy: dict[str, bool] = dict(memory.get('healthy', {}))
    # An older version remembered losses of the warm-up, too.
    losses = memory.get('losses', []) if 'healthy' in memory else []
    self._losses: list[float] = list(losses)

  def memory(self) -> dict[str, Any]:
    """What the next steps are judged by, of JSON types."""
    return {
      'losses': list(self._losses),
      'rows': dict(self._rows),
      'good_rows': dict(self._good_rows),
      'healthy': dict(self._healthy),
    }

  def check(self, step: int, scalars: Mapping[str, float]) -> None:
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
      if what and self._must_alarm(name, step):
        first = step - self._rows[name] + 1
        what = f'From step {first} to {step} {what}'
        raise AlarmError(
          step, first - 2, what, name, self._advice.get(name, ())
        )
    if step > self._warmup_steps:
      self._losses = [*self._losses, scalars['loss']][-_WINDOW:]

  def _count(self, name: str, step: int, *, bad: bool) -> None:
    self._rows[name] = self._rows.get(name, 0) + 1 if bad else 0
    if step > self._warmup_steps:
      self._good_rows[name] = 0 if bad else self._good_rows.get(name, 0) + 1
      if self._good_rows[name] >= self._limits.patience:
        self._healthy[name] = True

  def _must_alarm(self, name: str, step: int) -> bool:
    """Whether what is bad now will not mend itself."""
    patience = self._limits.patience
    late = _LATE * patience
    if name == 'chance':
      late = max(late, self._limits.chance_patience)
    is_late = step >= 2 * self._warmup_steps + late
    was_healthy = self._healthy.get(name, False)
    return self._rows[name] >= patience and (was_healthy or is_late)

  def _complaints(self, scalars: Mapping[str, float]) -> dict[str, str]:
    """What is wrong with a step's metrics; an empty string: nothing.

    What cannot be judged yet is left out.
    """
    found = {}
    if 'spread' in self._watched:
      found['spread'] = self._spread(scalars['embedding_std'])
    if self._prototypes is not None:
      if 'marginal' in self._watched:
        found['marginal'] = self._one_prototype(scalars['marginal_entropy'])
      if 'assignments' in self._watched:
        found['assignments'] = self._uniform(scalars['assignment_entropy'])
    if 'chance' in self._watched and self._limits.chance_factor:
      told = [self._by_chance(scalars, name) for name in self._chance]
      found['chance'] = next(filter(None, told), '')
    if 'loss' in self._watched and len(self._losses) >= self._limits.patience:
      found['loss'] = self._exploded(scalars['loss'])
    # Of all unlabelled images; a queue that fills has seen few labelled images,
    # maybe of one class.
    if 'labels' in self._watched and scalars.get('queue_fill', 1.0) >= 1:
      share = scalars['top_label_share'] * scalars['pseudo_label_share']
      if share:
        found['labels'] = self._one_label(share)
    return found

  def _spread(self, spread: float) -> str:
    limit = self._limits.min_spread
    if spread >= limit:
      return ''
    return (
      f'embedding_std was below {limit:g} (it is {spread:.3g}): the embeddings '
      'have collapsed'
    )

  def _one_prototype(self, entropy: float) -> str:
    limit = self._limits.min_marginal_entropy * self._most_entropy()
    if entropy >= limit:
      return ''
    return (
      f'marginal_entropy was below {limit:.3g} (it is {entropy:.3g}): one '
      'prototype had taken all images'
    )

  def _uniform(self, entropy: float) -> str:
    factor, most = self._limits.max_assignment_entropy, self._most_entropy()
    if factor >= 1 or entropy <= factor * most:
      return ''
    return (
      f'assignment_entropy was above {factor * most:.3g} (it is {entropy:.3g}; '
      f'the most is {most:.3g}): the assignments to prototypes were uniform'
    )

  def _most_entropy(self) -> float:
    """log K, of uniform assignments, in nats."""
    return math.log(self._prototypes.number)

  def _by_chance(self, scalars: Mapping[str, float], name: str) -> str:
    loss, chance = scalars[name], self._chance[name]
    if loss < self._limits.chance_factor * chance:
      return ''
    return (
      "the network could not tell an image's views from other images "
      f'({name} is {loss:.3g}; by chance it is {chance:.3g})'
    )

  def _exploded(self, loss: float) -> str:
    usual, factor = statistics.median(self._losses), self._limits.loss_factor
    lowest = self._lowest
    if not factor or loss - lowest <= factor * (usual - lowest):
      return ''
    above = f', both above {lowest:.3g}, its lowest' if lowest else ''
    return (
      f'the loss was above {factor:g} times its usual {usual:.3g} (it is '
      f'{loss:.3g}{above})'
    )

  def _one_label(self, share: float) -> str:
    if share <= self._most(self._limits):
      return ''
    return (
      f'one pseudo-label had taken over (it has {share:.1%} of the unlabelled '
      'images)'
    )

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
  everywhere = [
    name for names in processes.allgather_json(bad[:1]) for name in names
  ]
  if everywhere:
    what = f'state{everywhere[0]} is not finite after step {step}'
    raise NotFiniteError(step, step - 1, what)


def _finite(leaf: Any) -> bool:
  if not jnp.issubdtype(leaf.dtype, jnp.inexact):
    return True
  if isinstance(leaf, jax.Array):
    return all(np.isfinite(s.data).all() for s in leaf.addressable_shards)
  return bool(np.isfinite(leaf).all())
