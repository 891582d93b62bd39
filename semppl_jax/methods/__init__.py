"""Objectives: one file each, and what the engine asks of all of them.

A method's module has `build(cfg, facts) -> base.Method` and `default() ->` its
sections of the config; it may have RANGES and CHOICES of them, WITHOUT
(sections of the engine's that it does not have), `validate(cfg, num_devices)`,
`validate_with_data(cfg, facts)` and `doubts(cfg, facts)`.
"""

import types
from collections.abc import Iterator

import ml_collections

from semppl_jax.config import checks, defaults, validation
from semppl_jax.config.upgrade import RENAMED, renamed
from semppl_jax.errors import UserError
from semppl_jax.methods import (
  base,
  byol,
  daino,
  dino,
  distill,
  mean_shift,
  mira,
  paws,
  semppl,
  simclr,
  simreg,
  suave,
  supervised,
  swav,
)

METHODS: dict[str, types.ModuleType] = {
  'semppl': semppl,  # ReLICv2 and multi-crop contrastive learning, too
  'byol': byol,
  'simclr': simclr,
  'swav': swav,
  'dino': dino,
  'mira': mira,
  'suave': suave,
  'daino': daino,
  'paws': paws,
  'mean_shift': mean_shift,
  'distill': distill,
  'simreg': simreg,
  'supervised': supervised,
}


def get(name: str) -> types.ModuleType:
  """A method's module.

  Raises:
    UserError: an unknown name; the line has the nearest.
  """
  if name not in METHODS:
    hint = checks.nearest_name(str(name), METHODS)
    raise UserError(f'method is {name!r}; known: {", ".join(METHODS)}{hint}')
  return METHODS[name]


def default(name: str) -> ml_collections.ConfigDict:
  """The engine's settings and the method's own, with their defaults."""
  module = get(name)
  cfg = defaults.default()
  cfg.method = name
  for section in getattr(module, 'WITHOUT', ()):
    del cfg[section]
  for key, value in module.default().items():
    if key in cfg and isinstance(value, ml_collections.ConfigDict):
      cfg[key].update(value)
    else:
      cfg[key] = value
  return cfg


def build(
  cfg: ml_collections.FrozenConfigDict, facts: base.RunFacts
) -> base.Method:
  """The objective of a config.

  Raises:
    UserError: settings that cannot work with these labels.
  """
  module = get(cfg.method)
  if hasattr(module, 'validate_with_data'):
    module.validate_with_data(cfg, facts)
  method = module.build(cfg, facts)
  if cfg.evaluation.network == 'target' and method.target_views is None:
    raise UserError(
      f"evaluation.network is 'target', but method {cfg.method!r} has no "
      'target network: set it to online.'
    )
  if cfg.accumulate > 1 and not method.accumulates:
    raise UserError(
      f'accumulate is {cfg.accumulate}, but method {cfg.method!r} needs the '
      'whole batch at once: set it to 1.'
    )
  return method


def doubts(
  cfg: ml_collections.FrozenConfigDict, facts: base.RunFacts
) -> Iterator[str]:
  """What can run but can hardly be meant."""
  module = get(cfg.method)
  if hasattr(module, 'doubts'):
    yield from module.doubts(cfg, facts)


def validate(cfg: ml_collections.ConfigDict, num_devices: int) -> None:
  """Refuses, before anything expensive, settings that cannot work.

  Args:
    cfg: the resolved config.
    num_devices: over all hosts.

  Raises:
    UserError: one line that names the setting, its value and what would do.
  """
  cfg = renamed(cfg)
  check_kinds(cfg)
  module, usual = get(cfg.method), default(cfg.method)
  checks.check_ranges(cfg, _only_known(validation.RANGES | module.RANGES, cfg))
  choices = validation.CHOICES | getattr(module, 'CHOICES', {})
  checks.check_choices(cfg, choices)
  validation.validate(cfg, num_devices)
  if not cfg.init and cfg.init_modules not in ('all', usual.init_modules):
    raise UserError(
      f'init_modules is {cfg.init_modules!r}, but init is empty: set '
      '--config.init=CHECKPOINT.'
    )
  if hasattr(module, 'validate'):
    module.validate(cfg, num_devices)


def check_kinds(cfg: ml_collections.ConfigDict) -> None:
  """Refuses other settings than the method's, and values of other kinds."""
  check_sections(cfg)
  checks.check_kinds(cfg, default(cfg.method))


def _only_known(bounds: dict, cfg: ml_collections.ConfigDict) -> dict:
  known = {key for key, _ in checks.flat(cfg)}
  return {key: bound for key, bound in bounds.items() if key in known}


def check_sections(cfg: ml_collections.ConfigDict) -> None:
  """Refuses a config whose settings are those of another method.

  Raises:
    UserError: one line that says whose they are.
  """
  if 'method' not in cfg:
    raise UserError(
      'The config has no `method`: begin with semppl_jax.config.default().'
    )
  usual = default(cfg.method)
  ours, theirs = (
    {key for key, _ in checks.flat(each)} for each in (usual, cfg)
  )
  if theirs == ours:
    return
  if surplus := sorted(theirs - ours):
    if surplus[0] in RENAMED:
      names = ' and '.join(RENAMED[surplus[0]])
      raise UserError(f'{surplus[0]} is called {names} now.')
    whose = owners(surplus[0])
    of = f'is a setting of {" and ".join(whose)}' if whose else 'is unknown'
    raise UserError(
      f'{surplus[0]} {of}, but method is {cfg.method!r}: choose an experiment '
      'of that method, or begin with '
      f'config.default({cfg.method!r}).'
    )
  lacking = sorted(ours - theirs)[0]
  raise UserError(
    f'method is {cfg.method!r}, which needs the setting {lacking}: choose an '
    f'experiment of that method, or begin with config.default({cfg.method!r}).'
  )


def owners(key: str) -> list[str]:
  """Methods that have a setting, by its dotted name."""
  return [
    name
    for name in METHODS
    if key in {known for known, _ in checks.flat(default(name))}
  ]
