"""Nearest codes, and the codes that a set of vectors starts with."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

ITERATIONS = 10  # of Lloyd's algorithm
ROWS = 4096  # vectors that k-means compares with all codes at a time


def kmeans(
  key: Key[Array, ""], vectors: Float[Array, "m d"], codes: int
) -> tuple[Float[Array, "{codes} d"], Float[Array, " {codes}"]]:
  """Means, and the vectors that each had, after `ITERATIONS` of Lloyd's algorithm.

  The starts are vectors drawn in proportion to their squared distance from those drawn
  before (k-means++, Arthur & Vassilvitskii 2007). A mean that has no vector stays. If
  fewer than `codes` vectors differ, the last means are copies and have none.
  """

  def distance(start: Array) -> Array:
    return jnp.sum((vectors - start) ** 2, axis=-1)

  def draw(d: Array, key: Array) -> tuple[Array, Array]:
    start = vectors[jax.random.categorical(key, jnp.log(d))]
    return jnp.minimum(d, distance(start)), start

  def lloyd(means: Array, _: None) -> tuple[Array, Array]:
    owner = nearest_by_rows(means, vectors)
    counts = jnp.zeros(codes).at[owner].add(1.0)
    sums = jnp.zeros_like(means).at[owner].add(vectors)
    own = sums / jnp.maximum(counts, 1.0)[:, None]
    return jnp.where(counts[:, None] > 0, own, means), counts

  keys = jax.random.split(key, codes)
  start = vectors[jax.random.randint(keys[0], (), 0, len(vectors))]
  others = jax.lax.scan(draw, distance(start), keys[1:])[1]
  starts = jnp.concatenate([start[None], others])
  means, counts = jax.lax.scan(lloyd, starts, length=ITERATIONS)
  return means, counts[-1]


def nearest(codes: Float[Array, "k d"], z: Float[Array, "*p d"]) -> Int[Array, "*p"]:
  """argmin_k |z - e_k|^2, the lowest k of those at one distance.

  Van den Oord et al. 2017, equation 1. |z|^2 - 2 z.e + |e|^2 by one matmul. |z|^2
  is left out: it is the same for every code, and adding it would round away what tells
  near codes apart.
  """
  product = jnp.matmul(z, codes.T, precision=jax.lax.Precision.HIGHEST)
  return jnp.argmin(jnp.sum(codes**2, axis=-1) - 2 * product, -1).astype(jnp.int32)


def nearest_by_rows(
  codes: Float[Array, "k d"], vectors: Float[Array, "m d"]
) -> Int[Array, " m"]:
  """`nearest`, with no more than `ROWS` of the distances in memory for each code."""
  return jax.lax.map(lambda z: nearest(codes, z), vectors, batch_size=ROWS)
