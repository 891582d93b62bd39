"""DeepMind's checkpoint pickles, read without running anything of theirs.

A pickle is a program that may call whatever it names, and checkpoints come from
strangers. So `reading` interprets the opcodes itself: it knows those that build
containers and numbers, and gets a stand-in of ours, from `stand_ins`, for a few
names; nothing is ever imported. Time and memory are bounded by the file's size,
whatever the file says.

It goes over the file twice: first to see which memo entries are ever used, then
to build. What is not used is not kept, above all the arrays' texts: protocol 2
writes an array's bytes as text, which is longer than the array.
"""

from semppl_jax.weights.release_pickle.reading import read
from semppl_jax.weights.release_pickle.writing import write

__all__ = ['read', 'write']
