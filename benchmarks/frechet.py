"""The Fréchet distance by eigenvalues against scipy's `sqrtm`.

    python benchmarks/frechet.py [dimensions] [rounds]

Both get the same two covariances, in float64, and take turns. The ratio (theirs /
ours) is what counts: the goal at 2048 dimensions is 5 or more.
"""

import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import scipy.linalg

from eval.metrics.frechet import Moments, frechet_distance


def features(rng: np.random.Generator, dim: int) -> np.ndarray:
  """Non-negative, correlated, with a decaying spectrum, as pooled features are."""
  basis = rng.normal(size=(dim, dim)) * np.geomspace(1, 1e-2, dim)[:, None]
  return np.abs(rng.normal(size=(3 * dim, dim)) @ basis).astype(np.float32)


def by_sqrtm(a: Moments, b: Moments) -> float:
  """The distance as FID's reference code writes it."""
  root = scipy.linalg.sqrtm(a.covariance @ b.covariance)
  delta = a.mean - b.mean
  return float(
    delta @ delta + np.trace(a.covariance + b.covariance) - 2 * np.trace(root).real
  )


def main(dim: str = "2048", rounds: str = "1") -> None:
  """Prints the seconds of each, their ratio and how far the results are apart."""
  rng = np.random.default_rng(0)
  a, b = (Moments.of(features(rng, int(dim))) for _ in range(2))
  times: dict[str, list[float]] = {"ours": [], "sqrtm": []}
  values = {}
  for _ in range(int(rounds)):
    for name, fn in (("ours", frechet_distance), ("sqrtm", by_sqrtm)):
      began = time.perf_counter()
      values[name] = fn(a, b)
      times[name].append(time.perf_counter() - began)
  ours, theirs = (statistics.median(t) for t in times.values())
  apart = abs(values["ours"] / values["sqrtm"] - 1)
  print(f"{dim} dimensions, {rounds} rounds in turn, median seconds")
  print(f"ours {ours:.2f}  sqrtm {theirs:.2f}  ratio {theirs / ours:.1f}")
  print(f"distance {values['ours']:.9g}, relative difference {apart:.1e}")


if __name__ == "__main__":
  main(*sys.argv[1:])
