"""Runs <-> disk: the arrays of a run's state.

A checkpoint is one folder WORKDIR/checkpoints/STEP that appears as a whole or
not at all. It holds the leaves under their names in the tree, and a list of
their dtypes, shapes and checksums, so that what does not fit is refused before
it is read, and what is not what was written is noticed. Leaves are plain
arrays; a key is derived from the step and never saved.

`checkpointer` writes and restores those of a run, `in_bucket` the same on
object storage; `folder` reads one that anybody wrote, `checksums` compares.
"""

from semppl_jax.checkpoint.checkpointer import Checkpointer
from semppl_jax.checkpoint.folder import read, steps
from semppl_jax.checkpoint.in_bucket import InBucket

__all__ = ['Checkpointer', 'InBucket', 'read', 'steps']
