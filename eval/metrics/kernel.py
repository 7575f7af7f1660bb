"""Kernel distance (KID if the features are Inception's): an unbiased MMD^2."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float64

from core.errors import UserError

TILE = 1024  # rows and columns of the kernel matrix held at once: 8 MB


class KernelDistance(NamedTuple):
  """The mean over subsets, and their spread, which papers print after the ±."""

  value: float
  std: float


class Estimate(NamedTuple):
  """A value and its standard error."""

  value: float
  stderr: float

  @property
  def interval(self) -> tuple[float, float]:
    """The 95% confidence interval, value ± 1.96 stderr."""
    return self.value - 1.96 * self.stderr, self.value + 1.96 * self.stderr


def kernel_distance(
  features: Float[np.ndarray, "n d"],
  reference: Float[np.ndarray, "m d"],
  subsets: int = 100,
  subset_size: int = 1000,
  seed: int = 2020,
) -> KernelDistance:
  """MMD^2 averaged over random subsets of both, as KID is reported.

  Binkowski et al. 2018: kernel (x.y / d + 1)^3, unbiased estimator, in float64. The
  spread says how far one subset is off, not how far the mean is: for that see `mmd2`.
  Subsets come from a `RandomState`, whose stream NumPy keeps for ever, drawn as
  torch-fidelity draws them: the same features and seed give the same numbers.

  Raises:
    UserError: a subset is larger than one of the sets.
  """
  fewest = min(len(features), len(reference))
  if subsets < 1 or not 2 <= subset_size <= fewest:
    raise UserError(
      f"the kernel distance cannot take {subsets} subsets of {subset_size} out of"
      f" {fewest} images: give more images or a smaller subset size (at least 2)."
    )
  rng = np.random.RandomState(seed)
  values = []
  for _ in range(subsets):
    x = features[rng.choice(len(features), subset_size, replace=False)]
    y = reference[rng.choice(len(reference), subset_size, replace=False)]
    values.append(mmd2(x, y).value)
  return KernelDistance(float(np.mean(values)), float(np.std(values)))


def mmd2(
  features: Float[np.ndarray, "n d"],
  reference: Float[np.ndarray, "m d"],
  within: Float64[np.ndarray, " m"] | None = None,
) -> Estimate:
  """The unbiased MMD^2 of whole sets, with its jackknife standard error.

    sum_{i != j} k(x_i, x_j) / n (n - 1) + sum_{i != j} k(y_i, y_j) / m (m - 1)
      - 2 sum_ij k(x_i, y_j) / n m

  Gretton et al. 2012, eq. 3, with k(x, y) = (x.y / d + 1)^3; below 0 by chance when
  the sets are alike. The error is that of leaving out one row at a time (Efron &
  Stein 1981, each set by itself), exact from the sums over rows; it tends to be too
  large where the two distributions are the same. Beside float64 copies of both sets
  one `TILE` x `TILE` tile sits in memory.

  Args:
    features: of the generated pictures.
    reference: of the real ones.
    within: `sums_within(reference)`, where it is known.

  Raises:
    UserError: fewer than two rows in either.
  """
  if min(len(features), len(reference)) < 2:
    raise UserError("the kernel distance needs at least 2 images on either side.")
  x, y = features.astype(np.float64), reference.astype(np.float64)
  n, m = len(x), len(y)
  xx, yy = sums_within(x), sums_within(y) if within is None else within
  xy, yx = _sums(x, y)
  within_x, within_y, across = xx.sum(), yy.sum(), xy.sum()
  value = within_x / (n * (n - 1)) + within_y / (m * (m - 1)) - 2 * across / (n * m)
  variance = 0.0
  for count, other, within, row, cross in (
    (n, m, within_x, xx, xy),
    (m, n, within_y, yy, yx),
  ):
    if count < 3:
      return Estimate(float(value), float("inf"))
    # What depends on the row that is left out.
    left = (within - 2 * row) / ((count - 1) * (count - 2)) - 2 * (across - cross) / (
      (count - 1) * other
    )
    variance += (count - 1) * left.var()
  return Estimate(float(value), float(np.sqrt(variance)))


def sums_within(x: Float[np.ndarray, "n d"]) -> Float64[np.ndarray, " n"]:
  """Sums of k(x_i, x_j) over all j but i, in float64.

  k is symmetric, so half of the tiles are enough.
  """
  x, sums = x.astype(np.float64), np.zeros(len(x))
  for i in range(0, len(x), TILE):
    for j in range(i, len(x), TILE):
      tile = _kernel(x[i : i + TILE] @ x[j : j + TILE].T, x.shape[1])
      sums[i : i + TILE] += tile.sum(1)
      if j > i:
        sums[j : j + TILE] += tile.sum(0)
  return sums - _kernel(np.einsum("nd,nd->n", x, x), x.shape[1])


def _kernel(products: Float64[np.ndarray, "..."], dim: int) -> np.ndarray:
  """(x.y / d + 1)^3, in the memory of the products."""
  products /= dim
  products += 1
  square = products * products
  products *= square
  return products


def _sums(
  x: Float64[np.ndarray, "n d"], y: Float64[np.ndarray, "m d"]
) -> tuple[Float64[np.ndarray, " n"], Float64[np.ndarray, " m"]]:
  """Sums of k(x_i, y_j) over j and over i, a tile at a time."""
  rows, columns = np.zeros(len(x)), np.zeros(len(y))
  for i in range(0, len(x), TILE):
    for j in range(0, len(y), TILE):
      tile = _kernel(x[i : i + TILE] @ y[j : j + TILE].T, x.shape[1])
      rows[i : i + TILE] += tile.sum(1)
      columns[j : j + TILE] += tile.sum(0)
  return rows, columns
