"""Golden numbers: what DeepMind's release printed, and how its inputs arise.

The files in golden_data/ hold outputs of the public SemPPL release (jax 0.4.13,
haiku 0.0.9), in byol.npz of BYOL's (jax 0.4.20, haiku 0.0.10), and as sk_*,
which `simclr` reads, and simclr_* of SimCLRv2's (TensorFlow 2.21.0). Most
weights and inputs are not stored: `fill` makes them anew.

clustering_schedules.npz, dino_*, swav_*, mira.npz, suave_*, daino_steps.npz: of
SwAV's, DINO's, MIRA's, Suave's and Daino's code (torch 2.13.0), inputs
included. paws_*: of PAWS's (facebookresearch/suncet, torch 2.13.0), likewise.

msf.npz, cmsf_sup.npz, cmsf_semi.npz: forward passes of MSF's (UMBCvision/MSF
130191c4, train_msf.py) and of CMSF's code (UCDvision/CMSF 7f40a519,
supervised/train_cmsf_sup.py and semi_supervised/pseudo_cmsf.py), torch 2.13.0,
inputs included.

fnc.npz: of FNC's (google-research/fnc adf5da5d, objective.py), TensorFlow
2.21.0, inputs included; masks and elimination derived apart.
usl.npz: USL's neighbours, k-means and selections
(TonyLianLong/UnsupervisedSelectiveLabeling ceaab3c9), torch 2.13.0, likewise.

release_linear_eval.npz: the release's EvalExperiment on
release_checkpoint_tiny.pkl, one device, six steps of 8 images (RandomState(0),
as test_classifier_step makes them) in order, its data set replaced by them;
'frozen' with base learning rate 3.0, 'fine_tuned' (freeze_backbone=False) with
0.3. release_linear_eval.pkl: what its Checkpointer wrote after 'frozen'.
eval_crops.npz: its evaluation crops of the files in jpeg/, each seventh row and
column.
"""

import pathlib
import zlib

import numpy as np

FOLDER = pathlib.Path(__file__).parents[1] / 'golden_data'


def path(name: str) -> str:
  """Where a golden file lies, e.g. `path('lars.npz')`."""
  return str(FOLDER / name)


def load(name: str) -> dict[str, np.ndarray]:
  """All arrays of a golden .npz file."""
  with np.load(path(name)) as file:
    return dict(file)


def fill(name: str, shape: tuple[int, ...], scale: float) -> np.ndarray:
  """Float32 noise that depends on nothing but its name."""
  random = np.random.RandomState(zlib.crc32(name.encode()) & 0xFFFFFFFF)
  return random.standard_normal(shape).astype(np.float32) * np.float32(scale)


def _param(module: str, name: str, shape: tuple[int, ...]) -> np.ndarray:
  full = f'{module}/{name}'
  if name == 'w':
    return fill(full, shape, 1 / np.sqrt(np.prod(shape[:-1])))
  if name == 'scale':
    return np.float32(1) + fill(full, shape, 0.1)
  return fill(full, shape, 0.1)


def params(shapes):
  """Weights by the fill rule; `shapes` is {module: {name: shape}}."""
  return {
    module: {name: _param(module, name, tuple(s)) for name, s in leaves.items()}
    for module, leaves in shapes.items()
  }


def _average(module: str, shape: tuple[int, ...]) -> np.ndarray:
  name = f'{module}/average'
  if module.endswith('var_ema'):
    return np.float32(1) + np.float32(0.1) * np.abs(fill(name, shape, 1.0))
  return fill(name, shape, 0.1)


def state(shapes):
  """BatchNorm running statistics by the fill rule, after one update."""
  return {
    module: {
      'average': _average(module, tuple(leaves['average'])),
      'hidden': _average(module, tuple(leaves['average'])),
      'counter': np.int32(1),
    }
    for module, leaves in shapes.items()
  }


def images(arch: str) -> np.ndarray:
  """The golden input batch of an architecture: [2, 64, 64, 3] in (0, 1)."""
  x = fill(f'input/{arch}', (2, 64, 64, 3), 1)
  return np.float32(1) / (np.float32(1) + np.exp(-x))
