"""What is done across the rows of a batch, the same for any number of devices."""

import jax
from jaxtyping import Array, PyTree


def neighbours(a: Array) -> Array:
  """Rows 2i and 2i + 1 swapped: a partner that no cut over devices takes away."""
  return a.reshape(-1, 2, *a.shape[1:])[:, ::-1].reshape(a.shape)


def mean(sums: PyTree, size: int, axis: str | None) -> PyTree:
  """Sums over `size` rows -> means, over those of all devices."""
  found = jax.tree.map(lambda a: a / size, sums)
  return found if axis is None else jax.lax.pmean(found, axis)
