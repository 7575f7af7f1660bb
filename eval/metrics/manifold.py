"""Precision and recall, density and coverage, from balls around each image."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from eval.metrics.neighbours import (
  blocks,
  mean,
  nearest,
  norms,
  squared_distances,
  tiled,
)

ROUNDING = 1e-6  # of the squared norms: on the edge is inside


class Manifold(NamedTuple):
  """All four; fidelity: precision, density; diversity: recall, coverage."""

  precision: float
  recall: float
  density: float
  coverage: float


def manifold(
  features: Float[np.ndarray, "n d"],
  reference: Float[np.ndarray, "m d"],
  k: int = 3,
  density_k: int = 5,
) -> Manifold:
  """How much of the samples y lies among the real x, and the other way round.

  With B_k(x_i) the closed ball around x_i that reaches its k-th nearest neighbour
  among the real, itself not counted, and B_k(y_j) likewise among the samples:

    precision = share of y_j in some B_k(x_i)     (Kynkaanniemi et al. 2019, eq. 1-2)
    recall    = share of x_i in some B_k(y_j)
    density   = sum_ij 1[y_j in B_k'(x_i)] / k' n   (Naeem et al. 2020)
    coverage  = share of B_k'(x_i) holding some y_j        (the same)

  k' = density_k. Density may exceed 1. Three passes over pairs (real-real, sample-
  sample, sample-real), in tiles: beside both sets, the peak is a centred float32 copy
  of one (400 MB at 50k x 2048, twice while it goes to the device) and some tiles of
  16 MB.

  Raises:
    UserError: too few images for k neighbours.
  """
  most = max(k, density_k)
  real = nearest(reference, reference, most, exclude_self=True)[1]
  sample = nearest(features, features, k, exclude_self=True)[1][:, k - 1]
  centre = mean(reference)
  tiles = tiled(reference, centre)
  # No distance is at most -inf: rows that only fill up the last tile hold nothing.
  shape = tiles.shape[:2]
  radii, density_radii = (_filled(real[:, i - 1], shape) for i in (k, density_k))
  precise, inside = [], 0
  recalled = covered = np.zeros(shape, bool)
  for start, block in blocks(features, centre):
    count = min(len(block), len(features) - start)
    own = _filled(sample[start : start + count], block.shape[:1])
    real_rows = jnp.arange(len(block)) < count
    in_some, held, recall, cover = jax.device_get(
      _compare(block, own, real_rows, tiles, radii, density_radii)
    )
    precise.append(in_some[:count])
    inside += int(held[:count].sum(dtype=np.int64))
    recalled, covered = recalled | recall, covered | cover
  m, n = len(reference), len(features)
  return Manifold(
    precision=float(np.concatenate(precise).mean()),
    recall=float(recalled.reshape(-1)[:m].mean()),
    density=inside / (density_k * n),
    coverage=float(covered.reshape(-1)[:m].mean()),
  )


def _filled(
  radii: Float[np.ndarray, " n"], shape: tuple[int, ...]
) -> Float[Array, "..."]:
  """Squared radii in that shape, -inf at the end."""
  full = np.full(shape, -np.inf, np.float32)
  full.reshape(-1)[: len(radii)] = radii**2
  return jnp.asarray(full)


@jax.jit
def _compare(
  queries: Float[Array, "r d"],
  own: Float[Array, " r"],
  valid: Bool[Array, " r"],
  tiles: Float[Array, "t c d"],
  radii: Float[Array, "t c"],
  density_radii: Float[Array, "t c"],
) -> tuple[Bool[Array, " r"], Int[Array, " r"], Bool[Array, "t c"], Bool[Array, "t c"]]:
  """Each query: is it in a ball, in how many? Each key: is it in a ball, holds it any?

  All radii are squared.
  """

  def step(carry: tuple, tile: tuple) -> tuple[tuple, tuple]:
    precise, inside = carry
    keys, radius, density_radius = tile
    squared = squared_distances(queries, keys)
    squared -= ROUNDING * (norms(queries)[:, None] + norms(keys))
    squared = jnp.where(valid[:, None], squared, jnp.inf)
    held = squared <= density_radius
    precise |= (squared <= radius).any(1)
    inside += held.sum(1, dtype=jnp.int32)
    return (precise, inside), ((squared <= own[:, None]).any(0), held.any(0))

  start = jnp.zeros(len(queries), bool), jnp.zeros(len(queries), jnp.int32)
  (precise, inside), (recalled, covered) = jax.lax.scan(
    step, start, (tiles, radii, density_radii)
  )
  return precise, inside, recalled, covered
