"""SimReg: a small student regresses a teacher's features, without labels.

Navaneet et al., BMVC 2021; code: UCDvision/simreg. The teacher is the encoder
of a trained network, of any architecture, fixed and in evaluation mode. Student
and teacher see the same crop. A projector leads from the student's embedding
into the teacher's space, and is of no use afterwards. No target network, no
memory.

Shapes: as in `base`; d is the size of the teacher's embedding.
"""

import ml_collections

from semppl_jax.losses import regression
from semppl_jax.methods import base
from semppl_jax.models.heads import SimRegProjector
from semppl_jax.models.multicrop import l2_normalize


def build(
  cfg: ml_collections.FrozenConfigDict, facts: base.RunFacts
) -> base.Method:
  """SimReg's projector and loss."""
  del facts
  projector = cfg.projector

  def loss(inputs: base.Inputs, memory: base.Memory) -> base.Result:
    del memory
    value = regression.same_view_distances(
      l2_normalize(inputs.online['projection']),  # [V, b, d]
      l2_normalize(inputs.teacher),  # [V, b, d]
    ).mean()
    return base.Result(value, {'loss/regression': value})

  return base.Method(
    heads=SimRegProjector(projector.hidden, projector.size),
    loss=loss,
    online_views=base.large_views,
    teacher=base.FrozenTeacher('embedding', projector.size),
    # Its spread becomes the teacher's, which may be small; it cannot collapse.
    embedding=None,
  )


# Settings. -----------------------------------------------------------------

# Sections of the engine that are of no use here.
WITHOUT = ('ema',)


def default() -> ml_collections.ConfigDict:
  """SimReg's own sections, and what it sets of the engine's, for ImageNet."""
  cfg = ml_collections.ConfigDict()
  cfg.batch_size = 256  # B, global [P]
  cfg.num_epochs = 130.0  # passes over all training images [P]
  cfg.encoder = {
    'name': 'resnet18',  # the student [P]
  }
  cfg.views = base.weak_views()
  # Share of the image that a crop covers [P]
  cfg.views.large_area = (0.2, 1.0)
  cfg.teacher = base.teacher_section()
  cfg.projector = {
    # Units of both hidden layers; 0: twice those of the student's embedding [P]
    'hidden': 0,
    'size': 2048,  # d, of the teacher's embedding, a ResNet-50's [P]
  }
  cfg.optimizer = {
    'name': 'sgd_l2',  # with momentum and decay [P]
    'learning_rate': 0.05,  # for 256 images [P]
    'warmup_epochs': 0.0,  # none [P]
    'weight_decay': 1e-4,  # of all parameters [P]
    'momentum': 0.9,  # of sgd_l2 [P]
  }
  return cfg


RANGES = {
  'projector.hidden': (0, None),
  'projector.size': (1, None),
}


def validate(cfg: ml_collections.ConfigDict, num_devices: int) -> None:
  """Refuses a run without a teacher."""
  del num_devices
  base.check_teacher(cfg)
