"""What several heads have in common."""

import haiku as hk
import jax

Outputs = dict[str, jax.Array]  # by name, [.., n, ...]


def torch_linear(size: int, inputs: int) -> hk.Linear:
  """A layer with a bias, to be, which begins as torch's."""
  return hk.Linear(
    size, w_init=torch_uniform(inputs), b_init=torch_uniform(inputs)
  )


def torch_uniform(inputs: int) -> hk.initializers.Initializer:
  """torch's of a layer of so many inputs, weights and bias alike."""
  limit = inputs**-0.5
  return hk.initializers.RandomUniform(-limit, limit)
