"""Neighbours, pictures and captions, against brute force and by hand."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import mannwhitneyu, norm

from core.errors import UserError
from eval.metrics import alignment, neighbours
from eval.metrics.manifold import manifold
from eval.metrics.memorisation import mann_whitney, memorisation
from eval.metrics.neighbours import nearest
from eval.metrics.pixels import psnr, ssim


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


# Pixels.


def pictures(n=3, h=17, w=21, c=3, seed=0):
  return jnp.asarray(rng(seed).uniform(-1, 1, (n, h, w, c)), jnp.float32)


def ssim_by_hand(x, y, data_range=2.0):
  """Wang et al. 2004, a window at a time, in float64."""
  x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
  bell = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
  window = np.outer(bell, bell)[..., None] / bell.sum() ** 2
  c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
  values = []
  for i in range(x.shape[0] - 10):
    for j in range(x.shape[1] - 10):
      a, b = x[i : i + 11, j : j + 11], y[i : i + 11, j : j + 11]
      ma, mb = (window * a).sum((0, 1)), (window * b).sum((0, 1))
      va, vb = ((window * (z - m) ** 2).sum((0, 1)) for z, m in ((a, ma), (b, mb)))
      cov = (window * (a - ma) * (b - mb)).sum((0, 1))
      top = (2 * ma * mb + c1) * (2 * cov + c2)
      values.append(top / ((ma**2 + mb**2 + c1) * (va + vb + c2)))
  return np.mean(values)


def test_psnr_by_hand():
  x = pictures()
  # An error of 0.1 everywhere in a range of 2: 20 log10(20) dB.
  np.testing.assert_allclose(psnr(x, x + 0.1), 20 * np.log10(20), rtol=1e-5)
  np.testing.assert_allclose(psnr(x / 2, x / 2 + 0.1, 1.0), 20, rtol=1e-5)
  assert np.all(np.isinf(psnr(x, x)))
  # Each picture by itself.
  one = psnr(x, x.at[1].add(0.2))
  assert np.isinf(one[0])
  assert one[1] == pytest.approx(20, rel=1e-5)


def test_ssim_by_hand():
  x, y = pictures(), pictures(seed=1)
  for other in (y, 0.7 * x + 0.3 * y, -x, 0.3 + 0.5 * x):
    want = [ssim_by_hand(a, b) for a, b in zip(x, other, strict=True)]
    np.testing.assert_allclose(ssim(x, other), want, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(ssim(x, x), 1, rtol=1e-6)
  # Flat pictures have the luminance term alone.
  flat = jnp.zeros((1, 11, 11, 1))
  want = (2 * 0.5 * 0.25 + 4e-4) / (0.25 + 0.0625 + 4e-4)
  np.testing.assert_allclose(ssim(flat + 0.5, flat + 0.25), want, rtol=1e-5)
  with pytest.raises(UserError, match="10 x 21"):
    ssim(x[:, :10], y[:, :10])


def test_pixels_fall_with_noise_and_blur():
  x = jnp.cumsum(pictures(4, 32, 32), axis=1) / 8  # smooth along one side
  noise = pictures(4, 32, 32, seed=1)
  for score in (psnr, ssim):
    noisy = [np.asarray(score(x, x + level * noise)) for level in (0.05, 0.1, 0.3, 1)]
    assert np.all(np.diff(noisy, axis=0) < 0)
    blurred, values = x, []
    for _ in range(4):
      blurred = (blurred + jnp.roll(blurred, 1, axis=2)) / 2
      values.append(np.asarray(score(x, blurred)))
    assert np.all(np.diff(values, axis=0) < 0)


# Pictures and captions.


def test_score_is_the_cosine():
  images = np.array([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0], [0.0, 0.0]], np.float32)
  texts = np.array([[3.0, 0.0], [0.0, -1.0], [1.0, 0.0], [1.0, 0.0]], np.float32)
  want = [100, -100, 50 * 2**0.5, 0]
  np.testing.assert_allclose(alignment.score(images, texts), want, rtol=1e-6)


@pytest.mark.parametrize("rows", [1024, 16, 7])
def test_retrieval_equals_sorting(rows, monkeypatch):
  monkeypatch.setattr(alignment, "ROWS", rows)
  images = normal(50, 8)
  texts = images + 1.2 * normal(50, 8, seed=1)
  unit = [z / np.linalg.norm(z, axis=1, keepdims=True) for z in (images, texts)]
  cosines = unit[0].astype(np.float64) @ unit[1].T.astype(np.float64)
  for matrix, got in zip(
    (cosines, cosines.T), alignment.retrieval(images, texts), strict=True
  ):
    rank = (matrix > np.diag(matrix)[:, None]).sum(1)
    assert 0.1 < (rank < 1).mean() < 0.9
    assert got == {k: pytest.approx((rank < k).mean()) for k in (1, 10)}


def test_retrieval_on_a_permutation():
  x = normal(30, 16)
  assert alignment.retrieval(x, 5 * x) == ({1: 1, 10: 1}, {1: 1, 10: 1})
  # Everyone has the next one's caption.
  moved = alignment.retrieval(x, np.roll(x, 1, axis=0), at=(1,))
  assert moved == ({1: 0}, {1: 0})


def test_equal_embeddings_score_chance():
  same = np.ones((20, 4), np.float32)
  got = alignment.retrieval(same, same, at=(1, 5, 50))
  want = {1: pytest.approx(1 / 20), 5: pytest.approx(5 / 20), 50: 1}
  assert got == (want, want)
  # The second picture has the first one's caption: for the first a draw, and lost for
  # the second.
  x = normal(10, 8)
  texts = np.concatenate([x[:1], x[:1], x[2:]])
  got = alignment.retrieval(x, texts, at=(1,)).image_to_text
  assert got == {1: pytest.approx(8.5 / 10)}
  with pytest.raises(UserError, match="at least one pair"):
    alignment.retrieval(x[:0], x[:0])
