"""Distances between distributions, against closed forms and direct sums."""

import numpy as np
import pytest
import scipy.linalg

from core.errors import UserError
from eval.metrics import kernel
from eval.metrics.frechet import Moments, fd_infinity, frechet_distance
from eval.metrics.inception_score import inception_score
from eval.metrics.kernel import kernel_distance, mmd2


def rng(seed=0):
  return np.random.default_rng(seed)


def features(n, d=32, seed=0, basis=0, noise=0.0):
  """Of noisy pictures after one layer: non-negative, correlated, not Gaussian."""
  draw = rng(seed)
  mix = rng(basis).normal(size=(d, d)) * np.geomspace(0.3, 0.02, d)[:, None]
  x = draw.normal(size=(n, d)) @ mix + noise * draw.normal(size=(n, d))
  return np.maximum(x, 0).astype(np.float32)


def gaussian(mean, covariance, count=1000):
  mean, covariance = np.asarray(mean, float), np.asarray(covariance, float)
  return Moments(count, mean, covariance * (count - 1))


def by_sqrtm(a, b):
  """Heusel et al. 2017, eq. 6, as it stands."""
  root = scipy.linalg.sqrtm(a.covariance @ b.covariance)
  traces = np.trace(a.covariance + b.covariance - 2 * np.real(root))
  return np.sum((a.mean - b.mean) ** 2) + traces


# Moments.


def test_moments_are_mean_and_covariance():
  x = features(2500)
  moments = Moments.of(x)
  assert moments.count == 2500
  np.testing.assert_allclose(moments.mean, x.mean(0, dtype=np.float64), rtol=1e-13)
  want = np.cov(x.T.astype(np.float64))
  np.testing.assert_allclose(moments.covariance, want, rtol=1e-11)


def test_a_large_mean_does_not_cancel():
  x = rng().normal(size=(5000, 4)) + 1e7
  want = np.cov((x - 1e7).T)
  np.testing.assert_allclose(Moments.of(x).covariance, want, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("batch", [1, 7, 64, 1000, 1024, 1500, 2500])
def test_batches_do_not_change_a_bit(batch):
  x = features(2500)
  whole = Moments.of(x)
  parts = Moments.of(x[i : i + batch] for i in range(0, len(x), batch))
  assert parts.count == whole.count
  np.testing.assert_array_equal(parts.mean, whole.mean)
  np.testing.assert_array_equal(parts.scatter, whole.scatter)


def test_merging_and_order_change_rounding_only():
  x = features(3000)
  whole = Moments.of(x)
  parts = [Moments.of(x[i:j]) for i, j in ((0, 10), (10, 1500), (1500, 3000))]
  scale = np.abs(whole.scatter).max()
  for other in (
    parts[0].merge(parts[1]).merge(parts[2]),
    parts[2].merge(parts[0].merge(parts[1])),
    Moments.of(x[rng(1).permutation(3000)]),
  ):
    assert other.count == whole.count
    np.testing.assert_allclose(other.mean, whole.mean, rtol=1e-13)
    np.testing.assert_allclose(other.scatter, whole.scatter, rtol=0, atol=1e-13 * scale)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_refused(bad):
  x = features(10)
  x[3, 3] = bad
  with pytest.raises(UserError, match="NaN or infinity"):
    Moments.of(x)
  with pytest.raises(UserError, match="no features"):
    Moments.of(x[:0])
  with pytest.raises(UserError, match="at least 2"):
    frechet_distance(Moments.of(x[:1]), Moments.of(x[:1]))


# Fréchet distance.


def test_gaussians_with_commuting_covariances():
  # sum (m_a - m_b)^2 + sum (s_a - s_b)^2, in a turned basis.
  turn = np.linalg.qr(rng().normal(size=(6, 6)))[0]
  s_a, s_b = rng(1).uniform(0.1, 3, (2, 6))
  m_a, m_b = rng(2).normal(size=(2, 6))
  a, b = (gaussian(m, (turn * s**2) @ turn.T) for m, s in ((m_a, s_a), (m_b, s_b)))
  want = np.sum((m_a - m_b) ** 2) + np.sum((s_a - s_b) ** 2)
  assert frechet_distance(a, b) == pytest.approx(want, rel=1e-12)
  assert frechet_distance(b, a) == pytest.approx(want, rel=1e-12)


def test_two_dimensions_by_hand():
  # tr (S_a S_b)^(1/2) = sqrt(tr S_a S_b + 2 sqrt(det S_a S_b)) for 2 x 2.
  s_a, s_b = np.array([[2.0, 1.0], [1.0, 3.0]]), np.array([[1.0, -0.5], [-0.5, 4.0]])
  product = s_a @ s_b
  cross = np.sqrt(np.trace(product) + 2 * np.sqrt(np.linalg.det(product)))
  want = 5 + np.trace(s_a + s_b) - 2 * cross
  got = frechet_distance(gaussian([1, 0], s_a), gaussian([0, 2], s_b))
  assert got == pytest.approx(want, rel=1e-12)


@pytest.mark.parametrize("n", [2000, 20])  # 20 samples have rank 19 of 32
def test_the_distance_to_oneself_is_zero(n):
  a = Moments.of(features(n))
  assert frechet_distance(a, a) <= 1e-10 * np.trace(a.covariance)


@pytest.mark.parametrize(("n", "m"), [(400, 300), (3000, 3000)])
def test_equals_sqrtm(n, m):
  a, b = Moments.of(features(n, 128)), Moments.of(features(m, 128, 1, basis=1))
  assert frechet_distance(a, b) == pytest.approx(by_sqrtm(a, b), rel=1e-9)
  # Also where the distance is small against the traces.
  c = Moments.of(features(n, 128, seed=2))
  assert frechet_distance(a, c) == pytest.approx(by_sqrtm(a, c), rel=1e-6)


@pytest.mark.parametrize(("n", "m"), [(20, 3000), (3000, 20), (20, 30), (2, 2)])
def test_fewer_samples_than_dimensions(n, m):
  # Exactly: with centred rows X, Y the trace is that of the singular values of X Y^T.
  x, y = features(n, 64).astype(float), features(m, 64, 1, basis=1).astype(float)
  a, b = Moments.of(x), Moments.of(y)
  x, y = ((z - z.mean(0)) / np.sqrt(len(z) - 1) for z in (x, y))
  cross = np.linalg.svd(x @ y.T, compute_uv=False).sum()
  want = np.sum((a.mean - b.mean) ** 2) + (x**2).sum() + (y**2).sum() - 2 * cross
  assert frechet_distance(a, b) == pytest.approx(want, rel=1e-6)


def test_constant_images_have_no_covariance():
  a, b = gaussian([1, 2], np.zeros((2, 2))), gaussian([1, 5], np.eye(2))
  assert frechet_distance(a, a) == 0
  assert frechet_distance(a, b) == pytest.approx(9 + 2)
  with pytest.raises(UserError, match="2 and 3 dimensions"):
    frechet_distance(a, gaussian(np.zeros(3), np.eye(3)))


def test_grows_with_noise():
  x = features(1500)
  noisy = [features(1500, seed=1, noise=level) for level in (0, 0.2, 0.4, 0.8, 1.6)]
  fd = [frechet_distance(Moments.of(x), Moments.of(z)) for z in noisy]
  kd = [mmd2(x, z).value for z in noisy]
  assert np.all(np.diff(fd) > 0)
  assert np.all(np.diff(kd) > 0)


def test_fd_infinity_removes_the_bias():
  # The same Gaussian, the reference exact: the true distance is 0, and 2,000 samples
  # in 64 dimensions give about (d^2 + 5d) / 4N = 0.55.
  reference = gaussian(np.zeros(64), np.eye(64))
  fits = [
    fd_infinity(rng(seed).normal(size=(2000, 64)), reference, smallest=500)
    for seed in range(10)
  ]
  plain = np.mean([fit.distances[-1] for fit in fits])
  assert plain == pytest.approx(0.55, abs=0.02)
  assert abs(np.mean([fit.value for fit in fits])) < 0.1 * plain
  assert max(abs(fit.value) for fit in fits) < 0.2 * plain


def test_fd_infinity_ends_at_the_plain_distance():
  x, reference = features(700), Moments.of(features(3000, basis=1))
  fit = fd_infinity(x, reference, points=4, smallest=100)
  assert fit.counts == (100, 300, 500, 700)
  want = frechet_distance(Moments.of(x), reference)
  assert fit.distances[-1] == pytest.approx(want, rel=1e-9)
  with pytest.raises(UserError, match="700 images"):
    fd_infinity(x, reference)


# Kernel distance.


def direct(x, y):
  """The unbiased estimator as three loops."""

  def mean(u, v, same):
    terms = [
      (a @ b / len(a) + 1) ** 3
      for i, a in enumerate(u)
      for j, b in enumerate(v)
      if not (same and i == j)
    ]
    return np.mean(terms)

  return mean(x, x, True) + mean(y, y, True) - 2 * mean(x, y, False)


def test_mmd_equals_a_direct_loop(monkeypatch):
  x, y = features(23, 8).astype(float), features(17, 8, 1, basis=1).astype(float)
  want = mmd2(x, y)
  assert want.value == pytest.approx(direct(x, y), rel=1e-12)
  # The jackknife, left out one by one.
  drop_x = [direct(np.delete(x, i, 0), y) for i in range(23)]
  drop_y = [direct(x, np.delete(y, i, 0)) for i in range(17)]
  stderr = np.sqrt(22 * np.var(drop_x) + 16 * np.var(drop_y))
  assert want.stderr == pytest.approx(stderr, rel=1e-9)
  monkeypatch.setattr(kernel, "TILE", 5)
  assert mmd2(x, y) == pytest.approx(want, rel=1e-12)
  assert mmd2(rng().permutation(x), rng().permutation(y)) == pytest.approx(want)


def test_one_subset_of_all_is_the_whole():
  x, y = features(50), features(50, seed=1)
  one = kernel_distance(x, y, subsets=1, subset_size=50)
  assert one.value == pytest.approx(mmd2(x, y).value, rel=1e-9)
  assert one.std == 0
  with pytest.raises(UserError, match="subsets of 1000 out of 50"):
    kernel_distance(x, y)


def test_kernel_distance_has_no_bias():
  # 200 pairs from one distribution: the mean is 0 within its own error.
  values = [
    mmd2(features(30, 8, seed), features(40, 8, 1000 + seed)).value
    for seed in range(200)
  ]
  assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(200)
  assert min(values) < 0 < max(values)


def test_confidence_interval_covers_the_truth():
  pairs = [
    (rng(seed).normal(size=(100, 8)), 0.3 + rng(1000 + seed).normal(size=(100, 8)))
    for seed in range(200)
  ]
  estimates = [mmd2(x, y) for x, y in pairs]
  truth = np.mean([e.value for e in estimates])
  covered = np.mean([e.interval[0] <= truth <= e.interval[1] for e in estimates])
  assert 0.9 <= covered <= 0.99


# Inception Score.


@pytest.mark.parametrize("splits", [1, 4])
def test_inception_score_of_perfect_and_constant(splits):
  classes = np.tile(np.eye(5), (400, 1))
  sure = inception_score(1000 * classes, splits=1)
  assert sure.value == pytest.approx(5, rel=1e-12)
  assert inception_score(1000 * classes, splits).value == pytest.approx(5, rel=0.01)
  same = inception_score(np.tile([3.0, 1.0, -2.0], (50, 1)), splits)
  assert same == pytest.approx((1, 0), abs=1e-12)


def test_inception_score_by_hand():
  # Two images, p = (.9, .1) and (.3, .7); p(y) = (.6, .4).
  p = np.array([[0.9, 0.1], [0.3, 0.7]])
  kl = np.sum(p * np.log(p / p.mean(0)), axis=1)
  got = inception_score(np.log(p), splits=1)
  assert got.value == pytest.approx(np.exp(kl.mean()), rel=1e-12)
  with pytest.raises(UserError, match="2 images into 10 splits"):
    inception_score(np.log(p))
