"""Do samples lie nearer to the training images than new real images do?"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Int64
from scipy.special import ndtr

from core.errors import UserError
from eval.metrics.neighbours import nearest


class Memorisation(NamedTuple):
  """Distances to the nearest training images, and what they tell.

  Attributes:
    neighbours: the k nearest training images of each sample, nearest first.
    distances: theirs.
    held_out: each held-out image's distance to its nearest training image.
    threshold: the given percentile of `held_out`.
    share: of samples whose nearest distance is at most the threshold.
    expected: that share if samples were like held-out images.
    z: Mann-Whitney statistic; below -3, say, the samples are too near.
    p: the chance of a z this low or lower under 'alike'.
  """

  neighbours: Int64[np.ndarray, "n k"]
  distances: Float32[np.ndarray, "n k"]
  held_out: Float32[np.ndarray, " m"]
  threshold: float
  share: float
  expected: float
  z: float
  p: float


def memorisation(
  samples: Float[np.ndarray, "n d"],
  training: Float[np.ndarray, "t d"],
  held_out: Float[np.ndarray, "m d"],
  k: int = 1,
  percentile: float = 5.0,
) -> Memorisation:
  """Nearest training images of samples and of held-out images, compared.

  The share of samples nearer than `percentile` percent of held-out images finds a few
  copies; z asks of all samples at once whether they are nearer (see `mann_whitney`):
  the data-copying test of Meehan et al. 2020 with one cell, the whole space.

  Raises:
    UserError: too few training images for k, no samples or held-out images, or the
      percentile is not between 0 and 100.
  """
  if not 0 < percentile < 100:
    raise UserError(f"the percentile must be between 0 and 100, not {percentile}.")
  neighbours, distances = nearest(samples, training, k)
  real = nearest(held_out, training)[1][:, 0]
  threshold = float(np.percentile(real, percentile))
  z = mann_whitney(distances[:, 0], real)
  return Memorisation(
    neighbours=neighbours,
    distances=distances,
    held_out=real,
    threshold=threshold,
    share=float((distances[:, 0] <= threshold).mean()),
    expected=float((real <= threshold).mean()),
    z=z,
    p=float(ndtr(z)),
  )


def mann_whitney(
  samples: Float[np.ndarray, " n"], real: Float[np.ndarray, " m"]
) -> float:
  """z = (U - n m / 2) / sqrt(n m (n + m + 1) / 12), negative if samples are smaller.

  U counts the pairs in which the sample's number is the larger, ties as a half
  (Mann & Whitney 1947; Meehan et al. 2020, Z_U). Ties lower the variance by
  n m sum(t^3 - t) / (12 N (N - 1)), t their sizes, N = n + m. 0 if all are equal.
  """
  n, m = len(samples), len(real)
  total = n + m
  both = np.concatenate([samples, real])
  _, place, sizes = np.unique(both, return_inverse=True, return_counts=True)
  ranks = np.cumsum(sizes) - (sizes - 1) / 2  # the mean over equal numbers
  u = ranks[place[:n]].sum() - n * (n + 1) / 2
  sizes = sizes.astype(np.float64)
  ties = np.sum(sizes**3 - sizes) / (total * (total - 1))
  variance = n * m / 12 * (total + 1 - ties)
  return float((u - n * m / 2) / np.sqrt(variance)) if variance > 0 else 0.0
