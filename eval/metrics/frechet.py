"""Fréchet distance between Gaussians, and its limit for endlessly many samples."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import scipy.linalg
from jaxtyping import Float, Float64

from core.errors import UserError

BLOCK = 1024  # rows added at a time, however many come at once


class Moments(NamedTuple):
  """Count, mean and scatter sum_i (x_i - mean)(x_i - mean)^T, in float64."""

  count: int
  mean: Float64[np.ndarray, " d"]
  scatter: Float64[np.ndarray, "d d"]

  @classmethod
  def of(
    cls, features: Float[np.ndarray, "n d"] | Iterable[Float[np.ndarray, "_ d"]]
  ) -> "Moments":
    """Of all rows, or of a stream of rows in example order.

    Rows are added in blocks of `BLOCK`, counted from the first row, so the same rows
    in the same order give the same bits however the stream was cut into batches; a
    stream gathered in example order hence does not know how many devices or hosts
    made it. In another order the result differs by rounding only.

    Raises:
      UserError: no rows, or one that is not finite.
    """
    total = None
    for block in _blocks([features] if isinstance(features, np.ndarray) else features):
      if not np.isfinite(block).all():
        raise UserError(
          "the features hold NaN or infinity: check the images and the feature net."
        )
      mean = block.mean(0)
      centred = block - mean
      part = cls(len(block), mean, centred.T @ centred)
      total = part if total is None else total.merge(part)
    if total is None:
      raise UserError("there are no features to take moments of; give some images.")
    return total

  def merge(self, other: "Moments") -> "Moments":
    """Of both sets of rows (Chan et al. 1979, eq. 2.1), equal up to rounding (1e-13).

    mean = mean_a + delta n_b / n, scatter = S_a + S_b + delta delta^T n_a n_b / n.
    """
    count = self.count + other.count
    delta = other.mean - self.mean
    scatter = np.outer(delta, delta)
    scatter *= self.count * other.count / count
    scatter += self.scatter
    scatter += other.scatter
    return type(self)(count, self.mean + delta * (other.count / count), scatter)

  @property
  def covariance(self) -> Float64[np.ndarray, "d d"]:
    """scatter / (count - 1), the unbiased estimate that FID is defined with.

    Raises:
      UserError: fewer than two rows.
    """
    if self.count < 2:
      raise UserError("a covariance needs at least 2 images.")
    return self.scatter / (self.count - 1)


def _blocks(chunks: Iterable[Float[np.ndarray, "_ d"]]) -> Iterator[np.ndarray]:
  """The same rows in float64, `BLOCK` at a time, the last may be shorter."""
  held: list[np.ndarray] = []
  count = 0
  for chunk in chunks:
    while len(chunk):
      part, chunk = chunk[: BLOCK - count], chunk[BLOCK - count :]
      held.append(part)
      count += len(part)
      if count == BLOCK:
        yield np.concatenate(held, dtype=np.float64)
        held, count = [], 0
  if held:
    yield np.concatenate(held, dtype=np.float64)


def frechet_distance(a: Moments, b: Moments) -> float:
  """|m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)), FID if Inception's features.

  Dowson & Landau 1982; Heusel et al. 2017, eq. 6. With S_a = A^T A and S_b = B^T B,
  S_a S_b has the eigenvalues of M M^T for M = A B^T, apart from zeros, so

    tr (S_a S_b)^(1/2) = sum_i sqrt(lambda_i(M M^T)).

  A and B are pivoted Cholesky factors with as many rows as the covariance has rank:
  fewer images than dimensions make it faster, and nothing is added to a singular
  covariance. All in float64; at least 0.

  Raises:
    UserError: the dimensions differ, or fewer than two rows in either.
  """
  return max(0.0, _distance(a, b, _factor(b.covariance)))


def _distance(a: Moments, b: Moments, factor_b: Float64[np.ndarray, "r d"]) -> float:
  if a.mean.shape != b.mean.shape:
    raise UserError(
      f"the features have {len(a.mean)} and {len(b.mean)} dimensions: compare features"
      " of the same net only."
    )
  m = _factor(a.covariance) @ factor_b.T
  gram = m @ m.T if m.shape[0] <= m.shape[1] else m.T @ m
  roots = np.sqrt(np.maximum(scipy.linalg.eigvalsh(gram, overwrite_a=True), 0))
  delta = a.mean - b.mean
  traces = np.trace(a.covariance) + np.trace(b.covariance)
  return float(delta @ delta + traces - 2 * roots.sum())


def _factor(covariance: Float64[np.ndarray, "d d"]) -> Float64[np.ndarray, "r d"]:
  """A with covariance = A^T A and as many rows as the rank.

  LAPACK stops where what is left is below d eps max(diagonal), that is, rounding.
  """
  upper, pivots, rank, _ = scipy.linalg.lapack.dpstrf(covariance)
  factor = np.empty((rank, len(covariance)))
  factor[:, pivots - 1] = np.triu(upper[:rank])
  return factor


class Extrapolation(NamedTuple):
  """FD = value + slope / N, and the (N, FD) pairs the line was fitted to."""

  value: float
  slope: float
  counts: tuple[int, ...]
  distances: tuple[float, ...]


def fd_infinity(
  features: Float[np.ndarray, "n d"],
  reference: Moments,
  points: int = 15,
  smallest: int = 5000,
  seed: int = 0,
) -> Extrapolation:
  """The Fréchet distance extrapolated to endlessly many generated images.

  FD of N images exceeds its limit by about slope / N, so a line over 1/N is fitted to
  `points` counts, evenly spaced from `smallest` to n, and read at 1/N = 0 (Chong &
  Forsyth 2020, FID-infinity, whose 15 points from 5,000 are the defaults). Each count
  draws its images anew, without replacement. What the reference's own finite count
  adds stays; the value may be below 0 by chance.

  Raises:
    UserError: fewer than two points, `smallest` is below 2 or not below n, or the
      dimensions differ.
  """
  if points < 2 or not 2 <= smallest < len(features):
    raise UserError(
      f"FD-infinity needs 2 counts or more from {smallest} up to all {len(features)}"
      " images: give more images or a smaller first count (at least 2)."
    )
  rng = np.random.default_rng(seed)
  counts = np.unique(np.linspace(smallest, len(features), points).astype(int))
  factor = _factor(reference.covariance)
  distances = []
  for n in counts:
    drawn = rng.permutation(len(features))[:n]
    distances.append(_distance(Moments.of(features[drawn]), reference, factor))
  slope, value = np.polyfit(1 / counts, distances, 1)
  return Extrapolation(
    float(value), float(slope), tuple(counts.tolist()), tuple(distances)
  )
