"""Nearest neighbours among features: exact, a tile of distances at a time, in JAX.

Squared distances are x^2 + y^2 - 2 x.y in float32 at the highest matmul precision,
after the keys' mean is taken off both sides, so that x.y does not cancel against the
norms. Memory: a copy of the keys, a block of queries and one `ROWS` x `COLUMNS` tile
(16 MB) with a few as large to rank it; 50k x 50k distances never exist.
"""

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int, Int32, Int64

from core.errors import UserError

ROWS, COLUMNS = 1024, 4096


def nearest(
  queries: Float[np.ndarray, "n d"],
  keys: Float[np.ndarray, "m d"],
  k: int = 1,
  exclude_self: bool = False,
) -> tuple[Int64[np.ndarray, "n k"], Float32[np.ndarray, "n k"]]:
  """Indices of the k nearest keys of each query, and how far, nearest first.

  The neighbours are ranked in float32; their distances are then taken anew from
  differences, so an exact copy is at exactly 0. Keys nearer to each other than
  rounding (about 1e-6 of the squared norms) may change places. With `exclude_self`
  query i is key i, and not its own neighbour.

  Raises:
    UserError: no queries, or fewer than k keys without itself.
  """
  if not len(queries):
    raise UserError("there are no features to compare; give some images.")
  if not 1 <= k <= len(keys) - exclude_self:
    raise UserError(
      f"{k} nearest neighbours cannot be found among {len(keys)} images: give more."
    )
  centre = mean(keys)
  tiles = tiled(keys, centre)
  indices, distances = [], []
  for start, block in blocks(queries, centre):
    found, off = _nearest(
      block,
      tiles,
      jnp.int32(start),
      jnp.int32(len(keys)),
      k=k,
      exclude_self=exclude_self,
    )
    indices.append(np.asarray(found, np.int64))
    distances.append(np.asarray(off))
  n = len(queries)
  return np.concatenate(indices)[:n], np.concatenate(distances)[:n]


@functools.partial(jax.jit, static_argnames=("k", "exclude_self"))
def _nearest(
  queries: Float[Array, "r d"],
  tiles: Float[Array, "t c d"],
  start: Int[Array, ""],
  count: Int[Array, ""],
  k: int,
  exclude_self: bool,
) -> tuple[Int32[Array, "r k"], Float[Array, "r k"]]:
  """The running k best over tiles of keys; `start` is the first query's number."""
  rows, columns = len(queries), tiles.shape[1]

  def step(best: tuple, tile: tuple) -> tuple[tuple, None]:
    keys, number = tile
    index = number * columns + jnp.arange(columns)
    squared = squared_distances(queries, keys)
    hidden = index >= count
    if exclude_self:
      hidden = hidden | (index == (start + jnp.arange(rows))[:, None])
    squared = jnp.where(hidden, jnp.inf, squared)
    found, at = jax.lax.top_k(-squared, min(k, columns))
    squared = jnp.concatenate([best[0], -found], axis=1)
    index = jnp.concatenate([best[1], index[at]], axis=1)
    found, at = jax.lax.top_k(-squared, k)
    return (-found, jnp.take_along_axis(index, at, axis=1)), None

  none = jnp.full((rows, k), jnp.inf), jnp.zeros((rows, k), jnp.int32)
  (_, index), _ = jax.lax.scan(step, none, (tiles, jnp.arange(len(tiles))))
  flat = tiles.reshape(-1, tiles.shape[-1])
  differences = [queries - flat[index[:, i]] for i in range(k)]
  exact = jnp.sqrt(jnp.stack([jnp.sum(d * d, axis=1) for d in differences], axis=1))
  order = jnp.argsort(exact, axis=1)
  return tuple(jnp.take_along_axis(a, order, axis=1) for a in (index, exact))


def squared_distances(
  x: Float[Array, "r d"], y: Float[Array, "c d"]
) -> Float[Array, "r c"]:
  """|x_i|^2 + |y_j|^2 - 2 x_i.y_j, at least 0; see the module on its rounding."""
  product = jnp.matmul(x, y.T, precision=jax.lax.Precision.HIGHEST)
  return jnp.maximum(norms(x)[:, None] + norms(y) - 2 * product, 0)


def norms(x: Float[Array, "n d"]) -> Float[Array, " n"]:
  """|x_i|^2."""
  return jnp.sum(x * x, axis=1)


def mean(features: Float[np.ndarray, "n d"]) -> Float[np.ndarray, " d"]:
  """The mean row in float64: where distances are measured from."""
  return features.mean(0, dtype=np.float64)


def blocks(
  features: Float[np.ndarray, "n d"], centre: Float[np.ndarray, " d"]
) -> Iterator[tuple[int, Float32[Array, "r d"]]]:
  """(number of the first row, centred rows), all blocks of one size: zeros at the end.

  Blocks have `ROWS` rows, or as many less as an even cut allows.
  """
  rows = _even(len(features), ROWS)
  for start in range(0, len(features), rows):
    yield start, jnp.asarray(_centred(features[start : start + rows], centre, rows))


def tiled(
  features: Float[np.ndarray, "n d"], centre: Float[np.ndarray, " d"]
) -> Float32[Array, "t c d"]:
  """All rows on the device, centred, in even tiles of at most `COLUMNS`, zeros last."""
  columns = _even(len(features), COLUMNS)
  count = -(-len(features) // columns)
  tiles = np.empty((count, columns, features.shape[1]), np.float32)
  for i, tile in enumerate(tiles):
    tile[:] = _centred(features[i * columns : (i + 1) * columns], centre, columns)
  return jnp.asarray(tiles)


def _even(count: int, most: int) -> int:
  """The size of as few parts as can be, none above `most`."""
  return -(-count // -(-count // most))


def _centred(
  features: Float[np.ndarray, "n d"], centre: Float[np.ndarray, " d"], rows: int
) -> Float32[np.ndarray, "{rows} d"]:
  centred = np.zeros((rows, features.shape[1]), np.float32)
  centred[: len(features)] = features - centre
  return centred
