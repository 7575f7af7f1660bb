"""What is done across the rows of a batch, the same for any number of devices."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree


def neighbours(a: Array) -> Array:
  """Rows 2i and 2i + 1 swapped: a partner that no cut over devices takes away."""
  return a.reshape(-1, 2, *a.shape[1:])[:, ::-1].reshape(a.shape)


def alike(cond: PyTree, other: PyTree) -> Bool[Array, " b"]:
  """Where all parts of two conditions are equal, row by row."""
  same = [
    (a == b).reshape(len(a), -1).all(1)
    for a, b in zip(jax.tree.leaves(cond), jax.tree.leaves(other), strict=True)
  ]
  return jnp.stack(same).all(0)


def distances(
  x: Float[Array, "b h w c"], label: Int[Array, " b"] | None
) -> Float[Array, "b 2"]:
  """The sum of |x - its neighbour|, and the same if both are of one class, else 0."""
  apart = jnp.sum(jnp.abs(x - neighbours(x)).reshape(len(x), -1), -1)
  same = jnp.zeros(len(x)) if label is None else label == neighbours(label)
  return jnp.stack([apart, apart * same], -1)


def mean(sums: PyTree, size: int, axis: str | None) -> PyTree:
  """Sums over `size` rows -> means, over those of all devices."""
  found = jax.tree.map(lambda a: a / size, sums)
  return found if axis is None else jax.lax.pmean(found, axis)
