"""p(x | z) against sums, integrals and SciPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from configs import base
from core import levels
from core.errors import UserError
from core.family import sample_keys
from core.levels import BIN
from core.logistic import log_scale
from vae import likelihoods

KEYS = sample_keys(jax.random.key(0), 3)
LEVELS = np.arange(256, dtype=np.float32) * np.float32(BIN) - 1
KINDS = ("bernoulli", "gaussian", "logistic", "logistic_mixture", "laplace")


@functools.cache
def make(kind, channels=1):
  """A likelihood, compiled."""
  vae = base.vae()
  vae.likelihood, vae.components = kind, 3
  model = likelihoods.make(vae, channels)
  fns = {name: jax.jit(getattr(model, name)) for name in ("log_prob", "mean")}
  return model._replace(**fns)


def scale(raw):
  return np.exp(np.asarray(log_scale(jnp.asarray(raw)), np.float64))


def pixels(values):
  """Numbers as pictures of one pixel."""
  values = jnp.asarray(values, jnp.float32)
  return values.reshape(len(values), 1, 1, -1)


def same(raw, n):
  """The raw output of one pixel, for n pictures."""
  return jnp.broadcast_to(jnp.asarray(raw, jnp.float32), (n, 1, 1, len(raw)))


def log_probs(model, values, raw):
  return np.asarray(model.log_prob(pixels(values), same(raw, len(values))), np.float64)


def mixture_raw(channels):
  each = 1 + 2 * channels + channels * (channels - 1) // 2
  raw = np.random.default_rng(1).normal(0, 0.7, (3, each))
  raw[:, 1 + channels : 1 + 2 * channels] -= 2.5  # scales of about a tenth
  return raw.ravel()


@pytest.mark.parametrize(
  "raw", [(0.1, -2.0), (0.99, -5.0), (-3.0, 0.5), (0.3, -9.0), (2.0, 8.0)]
)
def test_the_masses_of_256_levels_are_the_logistics_and_sum_to_one(raw):
  log_mass = log_probs(make("logistic"), LEVELS, raw)
  np.testing.assert_allclose(np.exp(log_mass).sum(), 1, atol=2e-5)
  mu, s = raw[0], scale(raw[1])
  edges = np.concatenate([[-np.inf], LEVELS[:-1] + BIN / 2, [np.inf]])
  exact = np.diff(stats.logistic.cdf(edges, mu, s))
  np.testing.assert_allclose(np.exp(log_mass), exact, atol=2e-5)


def test_a_mass_far_out_in_the_tail_does_not_cancel():
  # There F is 1 up to rounding; the mass is F' times the bin.
  x = LEVELS[230]
  found = log_probs(make("logistic"), [x], (-0.9, -4.0))
  s = scale(-4.0)
  exact = stats.logistic.logsf(x - BIN / 2, -0.9, s)
  exact += np.log(-np.expm1(-BIN / s))
  np.testing.assert_allclose(found, exact, rtol=1e-5)
  assert exact < -80


@pytest.mark.parametrize("channels", [1, 2])
def test_the_masses_of_a_mixture_sum_to_one(channels):
  model, raw = make("logistic_mixture", channels), mixture_raw(channels)
  values = np.stack(np.meshgrid(*[LEVELS] * channels), -1).reshape(-1, channels)
  assert model.channels == len(raw)
  np.testing.assert_allclose(np.exp(log_probs(model, values, raw)).sum(), 1, atol=1e-4)


def test_a_mixture_couples_colours_as_pixelcnn_does():
  """Equation 3 of Salimans et al. 2017, written again."""
  raw = mixture_raw(3)
  x = LEVELS[[[3, 200, 90], [255, 0, 128], [60, 61, 255]]].astype(np.float64)
  exact = np.zeros(3)
  rows = raw.reshape(3, 10)
  pi = np.exp(rows[:, 0]) / np.exp(rows[:, 0]).sum()
  for weight, row in zip(pi, rows, strict=True):
    alpha, beta, gamma = np.tanh(row[7:])
    mean = np.stack(
      [
        np.full(3, row[1]),
        row[2] + alpha * x[:, 0],
        row[3] + beta * x[:, 0] + gamma * x[:, 1],
      ],
      axis=-1,
    )
    s = scale(row[4:7])
    high = np.where(x > 0.999, 1, stats.logistic.cdf(x + BIN / 2, mean, s))
    low = np.where(x < -0.999, 0, stats.logistic.cdf(x - BIN / 2, mean, s))
    exact += weight * np.prod(high - low, axis=-1)
  found = log_probs(make("logistic_mixture", 3), x, raw)
  np.testing.assert_allclose(found, np.log(exact), rtol=1e-4)


@pytest.mark.parametrize("raw", [(0.2, -1.5), (-0.9, -3.0)])
@pytest.mark.parametrize(("kind", "end"), [("gaussian", 6.0), ("laplace", 1.25)])
def test_a_density_integrates_to_one(kind, end, raw):
  edges = np.linspace(-end, end, 200_001)
  middle = (edges[1:] + edges[:-1]) / 2
  density = np.exp(log_probs(make(kind), middle, raw)) / BIN  # from a level's units
  np.testing.assert_allclose(density.sum() * (edges[1] - edges[0]), 1, atol=1e-3)


def test_dequantized_a_density_bounds_the_mass_of_a_level():
  # Jensen: E[log p(x + u)] <= log E[p(x + u)], which is the mass of the bin.
  model, u = make("gaussian"), (np.arange(1000) + 0.5) / 1000 - 0.5
  gaps = []
  for log_sigma in (-6.0, -5.0, -3.0):
    x, sigma = LEVELS[140], scale(log_sigma)
    bound = log_probs(model, x + u * BIN, (0.09, log_sigma)).mean()
    ends = stats.norm.cdf([x - BIN / 2, x + BIN / 2], 0.09, sigma)
    gaps.append(np.log(ends[1] - ends[0]) - bound)
  assert gaps[0] > gaps[1] > gaps[2] > 0
  assert gaps[2] < 1e-3
  noisy = levels.dequantized(jnp.zeros((3, 50, 50, 1)), KEYS)
  assert float(jnp.abs(noisy).max()) <= BIN / 2
  np.testing.assert_allclose(noisy.std(), BIN / np.sqrt(12), rtol=0.02)


def test_a_gaussian_has_one_learned_scale_a_channel():
  model = make("gaussian", 2)
  raw = jax.random.normal(jax.random.key(1), (2, 3, 3, 4))
  x = jax.random.uniform(jax.random.key(2), (2, 3, 3, 2), minval=-1)
  sigma = scale(raw[..., 2:].mean((1, 2), keepdims=True))
  exact = stats.norm.logpdf(x, raw[..., :2], sigma) + np.log(BIN)
  np.testing.assert_allclose(model.log_prob(x, raw), exact.sum((1, 2, 3)), rtol=1e-5)


def test_bernoulli_is_cross_entropy_with_soft_targets():
  model = make("bernoulli")
  p, t = jax.nn.sigmoid(0.7), 0.25
  exact = t * np.log(p) + (1 - t) * np.log(1 - p)
  np.testing.assert_allclose(log_probs(model, [-0.5], (0.7,)), exact, rtol=1e-5)
  np.testing.assert_allclose(model.mean(same((0.7,), 1)), 2 * p - 1, rtol=1e-5)


@pytest.mark.parametrize(
  "raw", [(0.1, -2.0), (0.95, -3.0), (-1.5, -1.0), (0.302, -9.0), (0.3, 3.0)]
)
def test_the_mean_of_a_logistic_is_that_of_its_levels(raw):
  model = make("logistic")
  exact = (np.exp(log_probs(model, LEVELS, raw)) * LEVELS).sum()
  found = float(model.mean(same(raw, 1))[0, 0, 0, 0])
  assert abs(found - exact) <= BIN / 2 + 1e-4


def test_the_mean_of_a_mixture_takes_the_channels_in_turn():
  raw = mixture_raw(3)
  rows = raw.reshape(3, 10)
  rows[:, 1:4] *= 0.2  # far from the ends, where nothing is cut
  rows[:, 4:7] = -5.0
  pi = np.exp(rows[:, 0]) / np.exp(rows[:, 0]).sum()
  alpha, beta, gamma = np.tanh(rows[:, 7:]).T
  red, green = rows[:, 1], rows[:, 2] + alpha * rows[:, 1]
  blue = rows[:, 3] + beta * red + gamma * green
  found = make("logistic_mixture", 3).mean(same(raw, 1))[0, 0, 0]
  np.testing.assert_allclose(found, [pi @ red, pi @ green, pi @ blue], atol=1e-4)


def test_the_mean_of_a_mixture_is_that_of_its_levels():
  model, raw = make("logistic_mixture", 2), mixture_raw(2)
  raw.reshape(3, 6)[:, 1:3] *= 0.3  # far from the ends
  values = np.stack(np.meshgrid(LEVELS, LEVELS), -1).reshape(-1, 2)
  exact = np.exp(log_probs(model, values, raw)) @ values
  np.testing.assert_allclose(model.mean(same(raw, 1))[0, 0, 0], exact, atol=BIN)


def test_other_means():
  raw = same((0.4, -2.0), 1)
  assert make("gaussian").mean(raw) == pytest.approx(0.4)
  assert make("gaussian").mean(raw + 1) == 1
  median = float(make("laplace").mean(raw)[0, 0, 0, 0])
  y = 0.8 * (median + 1) / 2 + 0.1
  assert np.log(y / (1 - y)) == pytest.approx(0.4, abs=1e-5)
  assert make("laplace").mean(raw - 9) == -1


@pytest.mark.parametrize("kind", KINDS)
def test_values_and_gradients_are_finite_at_the_extremes(kind):
  model = make(kind, 3)
  x = pixels([[-1, 1, 0]] * 3)
  value = jax.jit(jax.value_and_grad(lambda raw: model.log_prob(x, raw).sum()))
  for low in (-1e4, 0.0, 1e4):
    for high in (-1e4, 0.0, 1e4):
      raw = jnp.where(jnp.arange(model.channels) % 2, low, high)
      raw = jnp.broadcast_to(raw, (3, 1, 1, model.channels))
      found, slope = value(raw)
      assert np.isfinite(found)
      assert np.isfinite(slope).all()
      assert np.abs(model.mean(raw)).max() <= 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_is_scored_by_itself(kind):
  model = make(kind, 3)
  raw = jax.random.normal(jax.random.key(1), (3, 2, 2, model.channels))
  x = jax.random.uniform(jax.random.key(2), (3, 2, 2, 3), minval=-1)
  each = model.log_prob(x, raw)
  assert len(np.unique(each)) == 3
  np.testing.assert_allclose(model.log_prob(x[1:], raw[1:]), each[1:], rtol=1e-5)
  np.testing.assert_allclose(model.mean(raw[1:]), model.mean(raw)[1:], rtol=1e-5)


def test_an_unknown_likelihood_is_refused():
  with pytest.raises(UserError, match=r"vae\.likelihood"):
    make("poisson")
