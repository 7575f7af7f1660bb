"""Neighbours, pictures and captions, against brute force and by hand."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import mannwhitneyu, norm

from core.errors import UserError
from eval.metrics import neighbours
from eval.metrics.manifold import manifold
from eval.metrics.memorisation import mann_whitney, memorisation
from eval.metrics.neighbours import nearest


def rng(seed=0):
  return np.random.default_rng(seed)


def normal(*shape, seed=0):
  return rng(seed).normal(size=shape).astype(np.float32)


def distances(x, y):
  x, y = x.astype(np.float64), y.astype(np.float64)
  return np.sqrt(((x[:, None] - y) ** 2).sum(-1))


@pytest.fixture(params=[(1024, 4096), (16, 8), (7, 33)], ids=str)
def tiles(request, monkeypatch):
  """Whole, and in tiles that do and do not divide the sets."""
  rows, columns = request.param
  monkeypatch.setattr(neighbours, "ROWS", rows)
  monkeypatch.setattr(neighbours, "COLUMNS", columns)


# Nearest neighbours.


def test_nearest_are_the_nearest(tiles):
  x, y = normal(50, 6), normal(61, 6, seed=1)
  full = distances(x, y)
  index, off = nearest(x, y, k=4)
  np.testing.assert_array_equal(index, np.argsort(full, axis=1)[:, :4])
  np.testing.assert_allclose(off, np.sort(full, axis=1)[:, :4], rtol=1e-6)


def test_nobody_is_its_own_neighbour(tiles):
  x = normal(40, 6)
  x[7] = x[23]  # a true copy is a neighbour, at 0
  full = distances(x, x)
  np.fill_diagonal(full, np.inf)
  index, off = nearest(x, x, k=2, exclude_self=True)
  np.testing.assert_allclose(off, np.sort(full, axis=1)[:, :2], rtol=1e-6)
  assert (index[7, 0], index[23, 0]) == (23, 7)
  assert off[7, 0] == off[23, 0] == 0
  with pytest.raises(UserError, match="among 40 images"):
    nearest(x, x, k=40, exclude_self=True)
  with pytest.raises(UserError, match="no features"):
    nearest(x[:0], x)


def test_large_means_do_not_cancel():
  # Far from the origin, where x^2 + y^2 - 2 x.y in float32 is all rounding.
  x, y = normal(64, 512), normal(64, 512, seed=1)
  x[0], y[5] = x[0] + 300, y[5] + 300
  x, y = x + np.float32(300), y + np.float32(300)
  full = distances(x, y)
  index, off = nearest(x, y, k=3)
  np.testing.assert_array_equal(index, np.argsort(full, axis=1)[:, :3])
  np.testing.assert_allclose(off, np.sort(full, axis=1)[:, :3], rtol=1e-6)


def test_rounding_is_what_the_slack_allows():
  x, y = np.abs(normal(64, 2048)), np.abs(normal(64, 2048, seed=1))
  y[:32] = x[:32] + 1e-3 * y[:32]
  centre = x.mean(0)
  x, y = x - centre, y - centre
  off = (
    np.asarray(neighbours.squared_distances(jnp.asarray(x), jnp.asarray(y)))
    - distances(x, y) ** 2
  )
  norms = (x.astype(float) ** 2).sum(1)[:, None] + (y.astype(float) ** 2).sum(1)
  assert np.abs(off / norms).max() < 1e-6


# Precision, recall, density, coverage.


def brute(y, x, k, density_k):
  """The definitions on whole matrices; y are the samples."""

  def radius(z, k):
    return np.sort(distances(z, z), axis=1)[:, k]  # 0 is itself

  pairs = distances(y, x)
  precise = pairs <= radius(x, k)
  recalled = pairs <= radius(y, k)[:, None]
  held = pairs <= radius(x, density_k)
  return (
    precise.any(1).mean(),
    recalled.any(0).mean(),
    held.sum() / (density_k * len(y)),
    held.any(0).mean(),
  )


@pytest.mark.parametrize(("k", "density_k"), [(3, 5), (2, 1)])
def test_manifold_equals_brute_force(tiles, k, density_k):
  x, y = normal(45, 3), 0.3 + 0.8 * normal(52, 3, seed=1)
  want = brute(y, x, k, density_k)
  assert all(0.1 < value < 0.99 for value in want[:2] + want[3:])
  assert manifold(y, x, k, density_k) == pytest.approx(want, rel=1e-6)


def test_manifold_by_hand():
  # Real at 0, 1, 2, 10 with balls to the nearest: radii 1, 1, 1, 8.
  real = np.array([[0.0], [1.0], [2.0], [10.0]], np.float32)
  # Samples at -0.5 (in one ball), 1.5 (in two), 4 (in one), 30 (in none); their own
  # radii are 2, 2, 2.5, 26, which reach 0 and 1; 1, 2 and 0; 2; 10.
  samples = np.array([[-0.5], [1.5], [4.0], [30.0]], np.float32)
  got = manifold(samples, real, k=1, density_k=1)
  assert got == pytest.approx((3 / 4, 1.0, 4 / 4, 4 / 4))
  # All samples at one point that is real: precise, but nothing is recalled beside it.
  got = manifold(np.zeros((4, 1), np.float32), real, k=1, density_k=1)
  assert got == pytest.approx((1.0, 1 / 4, 8 / 4, 2 / 4))


def test_the_same_set_is_precise_and_covered():
  x = normal(300, 64)
  same = manifold(x, x)
  assert (same.precision, same.recall, same.coverage) == (1, 1, 1)
  assert manifold(x, x[rng().permutation(300)]) == pytest.approx(same)
  far = manifold(x + 100, x)
  assert far == (0, 0, 0, 0)


def test_half_the_modes_are_missed():
  # Two modes in the reference, one in the samples: good fidelity, half the diversity.
  x = np.concatenate([normal(200, 4), 50 + normal(200, 4, seed=1)])
  got = manifold(normal(400, 4, seed=2), x)
  assert got.precision > 0.9
  assert got.density == pytest.approx(1, abs=0.15)
  assert got.recall == pytest.approx(0.5, abs=0.05)
  assert got.coverage == pytest.approx(0.5, abs=0.05)


# Memorisation.


def test_planted_copies_are_found():
  training, held_out = normal(500, 8), normal(300, 8, seed=1)
  samples = normal(200, 8, seed=2)
  samples[:20] = training[100:120] + 1e-3 * normal(20, 8, seed=3)
  found = memorisation(samples, training, held_out, k=3)
  np.testing.assert_array_equal(found.neighbours[:20, 0], np.arange(100, 120))
  assert found.distances.shape == (200, 3)
  assert found.distances[:20, 0].max() < found.threshold
  assert found.expected == pytest.approx(0.05)
  assert found.share == pytest.approx(0.1 + 0.9 * 0.05, abs=0.03)
  # All of them copies: as plain as can be.
  copies = memorisation(training[:200], training, held_out)
  assert copies.share == 1
  assert copies.z < -15
  assert copies.distances.max() == 0


def test_new_samples_are_not_accused():
  training, held_out = normal(500, 8), normal(300, 8, seed=1)
  zs = [
    memorisation(normal(200, 8, seed=s), training, held_out[s % 2 :: 2])
    for s in range(10, 30)
  ]
  assert np.mean([m.share for m in zs]) == pytest.approx(0.05, abs=0.02)
  assert max(abs(m.z) for m in zs) < 4
  with pytest.raises(UserError, match="percentile"):
    memorisation(held_out, training, held_out, percentile=0.0)


def test_mann_whitney():
  a, b = rng().normal(size=40), rng(1).normal(size=55) + 0.3
  for x, y in ((a, b), (a.round(), b.round())):
    p = mannwhitneyu(x, y, alternative="less", use_continuity=False).pvalue
    z = mann_whitney(x, y)
    assert norm.cdf(z) == pytest.approx(p, rel=1e-9)
    assert mann_whitney(y, x) == pytest.approx(-z)
  assert mann_whitney(np.ones(3), np.ones(4)) == 0
