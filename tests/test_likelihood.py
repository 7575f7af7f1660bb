"""Bounds and exact likelihoods of data whose likelihood is known in closed form."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

from core import noise
from core.family import sample_keys
from core.levels import BIN, bits, dequantized, total
from core.noise import alpha_sigma, per_example
from diffusion import likelihood

MEANS, WEIGHTS, STD = np.array([-0.5, 0.4]), np.array([0.3, 0.7]), 0.2
DIMS = 2
KEYS = sample_keys(jax.random.key(0), 4)
X = np.array([[-0.5, 0.3], [0.1, 0.4], [-0.7, -0.3], [0.45, 0.5]])


@pytest.fixture(autouse=True)
def double():
  with jax.enable_x64(True):
    yield


@functools.cache
def mixture(scaling):
  """E[x | x_t] of a mixture of two normals in each dimension by itself."""

  def denoise(x_t, logsnr):
    alpha, sigma = alpha_sigma(per_example(logsnr, x_t), scaling)
    variance = (alpha * STD) ** 2 + sigma**2
    off = x_t[..., None] - alpha[..., None] * MEANS
    share = jax.nn.softmax(
      jnp.log(WEIGHTS) - off**2 / (2 * variance[..., None]), axis=-1
    )
    each = MEANS + (alpha * STD**2 / variance)[..., None] * off
    return (share * each).sum(-1), None

  return denoise


def log_density(y, alpha=1.0, sigma=0.0):
  """log p(x_t) of the mixture, noised, summed over dimensions."""
  std = math.sqrt((alpha * STD) ** 2 + sigma**2)
  terms = WEIGHTS * stats.norm.pdf(y[..., None], alpha * MEANS, std)
  return np.log(terms.sum(-1)).sum(-1)


SCHEDULES = {
  "cosine": noise.cosine,
  "ve": noise.ve,
  "edm": noise.edm,
  "rectified_flow": noise.rectified_flow,
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_flow_gives_the_exact_likelihood_of_a_mixture(name):
  schedule = SCHEDULES[name]()
  nats, calls = likelihood.ode_nats(
    mixture(schedule.scaling), jnp.asarray(X), KEYS, schedule, probes=0, tolerance=1e-6
  )
  # Under ve and edm pure noise is not quite reached, nor is quite clean.
  np.testing.assert_allclose(nats, -log_density(X), atol=1e-2)
  assert (np.asarray(calls) > 20).all()


def test_hutchinsons_estimate_is_unbiased_and_exact_for_independent_dimensions():
  # The Jacobian is diagonal, so random signs give its trace exactly.
  schedule = noise.cosine()
  nats, _ = likelihood.ode_nats(
    mixture("vp"), jnp.asarray(X), KEYS, schedule, probes=1, tolerance=1e-6
  )
  np.testing.assert_allclose(nats, -log_density(X), atol=1e-3)


def correlated(rotation, scales):
  """E[x | x_t] of N(0, R diag(scales^2) R^T) under vp."""

  def denoise(x_t, logsnr):
    alpha, sigma = alpha_sigma(per_example(logsnr, x_t), "vp")
    gain = alpha * scales**2 / ((alpha * scales) ** 2 + sigma**2)
    return ((x_t @ rotation) * gain) @ rotation.T, None

  return denoise


def test_hutchinsons_estimate_averages_to_the_trace():
  angle, scales = 0.6, np.array([0.9, 0.1])
  rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
  denoise, n = correlated(rotation, scales), 400
  x = jnp.broadcast_to(jnp.asarray(X[1]), (n, 2))
  keys = sample_keys(jax.random.key(1), n)
  estimate, _ = likelihood.ode_nats(
    denoise, x, keys, noise.cosine(), probes=1, tolerance=1e-5
  )
  covariance = rotation @ np.diag(scales**2) @ rotation.T
  exact = -stats.multivariate_normal.logpdf(X[1], np.zeros(2), covariance)
  assert np.std(estimate) > 0.1
  assert abs(np.mean(estimate) - exact) < 4 * np.std(estimate) / np.sqrt(n)


def continuous(x, schedule, count=4000, denoise=None):
  """prior + diffusion loss of one x, by the midpoint rule in u and many draws."""
  u = (jnp.arange(count) + 0.5) / count
  logsnr, weight = likelihood.continuous_weight(u, schedule)
  draws = 50
  eps = jax.random.normal(jax.random.key(2), (draws, count, DIMS))
  rows = jnp.broadcast_to(jnp.asarray(x), (draws, count, DIMS)).reshape(-1, DIMS)
  levels = jnp.tile(logsnr, draws)
  x_t = noise.diffuse(rows, eps.reshape(-1, DIMS), levels, schedule.scaling)
  x_hat, _ = (denoise or mixture(schedule.scaling))(x_t, levels)
  off = jnp.exp(levels) * total((rows - x_hat) ** 2)
  each = (jnp.tile(weight, draws) * off).reshape(draws, count).mean(1)
  prior = likelihood.prior(jnp.asarray(x)[None], schedule)[0]
  return float(prior + each.mean()), float(each.std() / math.sqrt(draws))


def exact_bound(x, schedule):
  """KL(q(x_0 | x) || p(x_0)), which the bound is with the exact denoiser."""
  alpha, sigma = (
    float(a) for a in alpha_sigma(schedule.logsnr(jnp.zeros(())), schedule.scaling)
  )

  def kl(value):
    def integrand(z):
      log_q = stats.norm.logpdf(z, alpha * value, sigma)
      return np.exp(log_q) * (log_q - log_density(np.array([z]), alpha, sigma))

    centre = alpha * value
    return integrate.quad(integrand, centre - 9 * sigma, centre + 9 * sigma)[0]

  return sum(kl(value) for value in x)


def inner(schedule):
  """Without the outermost times, where all of a bound hangs on few draws."""
  return schedule._replace(logsnr=lambda t: schedule.logsnr(0.02 + 0.96 * t))


@pytest.mark.parametrize(
  "schedule",
  [
    inner(noise.cosine()),
    inner(noise.laplace(0.0, 1.5)),
    noise.ve(0.01, 50.0),
    # Another density of t does not change the bound.
    inner(noise.cosine())._replace(
      density=functools.partial(noise.logit_normal, std=1.5)
    ),
  ],
)
@pytest.mark.parametrize("i", [0, 1])
def test_the_continuous_bound_is_exact_with_the_exact_denoiser(schedule, i):
  bound, error = continuous(X[i], schedule)
  exact = exact_bound(X[i], schedule)
  assert abs(bound - exact) < 5 * error + 0.02 * abs(exact), (bound, exact, error)


def test_the_continuous_bound_is_above_it_with_another_denoiser():
  schedule = noise.cosine()
  worse = lambda x_t, logsnr: (0.8 * mixture("vp")(x_t, logsnr)[0], None)  # noqa: E731
  bound, error = continuous(X[0], schedule, denoise=worse)
  assert bound > exact_bound(X[0], schedule) + 5 * error


def test_the_prior_term_is_the_divergence_of_two_normals():
  early = noise.Schedule(lambda t: 1 - 2 * t)  # which keeps much of the signal
  alpha, sigma = (float(a) for a in alpha_sigma(-jnp.ones(()), "vp"))
  want = sum(
    integrate.quad(
      lambda z, m=alpha * v: (
        stats.norm.pdf(z, m, sigma)
        * (stats.norm.logpdf(z, m, sigma) - stats.norm.logpdf(z))
      ),
      -9,
      9,
    )[0]
    for v in X[0]
  )
  got = likelihood.prior(jnp.asarray(X[:1]), early)[0]
  np.testing.assert_allclose(got, want, rtol=1e-6)


# Discrete steps.


def discrete_bound(x, steps, variance, draws=4000):
  """The bound without its decoder: prior and all KL terms, and its standard error."""
  first = 1 / steps  # whose noise level is the same for all numbers of steps
  schedule = noise.discrete(
    noise.Schedule(
      lambda t: noise.cosine().logsnr(0.1 + 0.88 * (t - first) / (1 - first))
    ),
    steps,
  )
  rows = jnp.broadcast_to(jnp.asarray(x), (draws, DIMS))

  def term(i):
    eps = jax.random.normal(jax.random.fold_in(jax.random.key(3), i), rows.shape)
    t = jnp.full(draws, i / steps)
    logsnr = schedule.logsnr(t)
    x_t = noise.diffuse(rows, eps, logsnr, "vp")
    x_hat, _ = mixture("vp")(x_t, logsnr)
    fraction = jnp.full(rows.shape, 0.3)
    return likelihood.step(rows, x_hat, fraction, t, schedule, variance)

  each = jax.lax.map(term, jnp.arange(2, steps + 1)).sum(0)
  prior = likelihood.prior(rows[:1], schedule)[0]
  return float(prior + each.mean()), float(each.std() / math.sqrt(draws))


def test_the_discrete_bound_falls_to_the_continuous_one():
  start = noise.Schedule(lambda t: noise.cosine().logsnr(0.1 + 0.88 * t))
  exact, found = exact_bound(X[0], start), []
  for steps in (6, 30, 150):
    bound, error = discrete_bound(X[0], steps, "small")
    found.append(bound - exact)
    assert found[-1] > -4 * error
  assert found[0] > 3 * found[1] > 0
  assert found[2] < 0.05 * exact


def test_a_step_is_the_divergence_of_two_normals():
  # Against the posterior by Bayes' rule, and the formula of two normals.
  steps, i = 10, 4
  schedule = noise.discrete(noise.cosine(0.008), steps)
  (a_t, s_t), (a_s, s_s) = (
    [float(v) for v in alpha_sigma(schedule.logsnr(jnp.asarray(k / steps)), "vp")]
    for k in (i, i - 1)
  )
  ratio = a_t / a_s
  added = s_t**2 - ratio**2 * s_s**2
  variance = 1 / (1 / s_s**2 + ratio**2 / added)
  x, x_hat, x_t = 0.3, -0.2, 0.1
  mean, guess = (
    variance * (a_s * v / s_s**2 + ratio * x_t / added) for v in (x, x_hat)
  )
  for name, theirs in {
    "small": variance,
    "large": added,
    "learned": variance**0.6 * added**0.4,
  }.items():
    want = (
      np.log(theirs / variance) + (variance + (mean - guess) ** 2) / theirs - 1
    ) / 2
    got = likelihood.step(
      jnp.full((1, 1), x),
      jnp.full((1, 1), x_hat),
      jnp.full((1, 1), 0.4),
      jnp.full(1, i / steps),
      schedule,
      name,
    )
    np.testing.assert_allclose(got[0], want, rtol=1e-9)


def test_the_decoder_is_a_distribution_over_pixel_values():
  values = jnp.arange(256)[:, None] * BIN - 1
  for mean, std in [(0.1, 0.05), (-0.99, 0.02), (1.3, 0.4), (0.0, 1e-3)]:
    nats = likelihood.decoder(
      values, jnp.full_like(values, mean), jnp.full_like(values, 2 * math.log(std))
    )
    np.testing.assert_allclose(jnp.exp(-nats).sum(), 1, rtol=1e-4)
    edges = (np.arange(257) - 0.5) * BIN - 1
    edges[[0, -1]] = -np.inf, np.inf
    want = np.diff(stats.norm.cdf(edges, mean, std))
    big = want > 1e-12
    np.testing.assert_allclose(jnp.exp(-nats)[big, 0], want[big], rtol=1e-4)


def test_the_reconstruction_is_the_softmax_over_pixel_values():
  x = jnp.round((jnp.asarray(X) + 1) / BIN) * BIN - 1
  eps = jax.random.normal(jax.random.key(4), x.shape)
  values = np.arange(256) * BIN - 1
  alpha, sigma = (float(a) for a in alpha_sigma(jnp.asarray(9.0), "vp"))
  seen = np.asarray(alpha * x + sigma * eps)
  logits = stats.norm.logpdf(seen[..., None], alpha * values, sigma)
  mine = np.abs(values - np.asarray(x)[..., None]).argmin(-1)
  log_p = np.take_along_axis(logits, mine[..., None], -1)[..., 0]
  want = -(log_p - np.logaddexp.reduce(logits, axis=-1)).sum(-1)
  got = likelihood.reconstruction(x, eps, jnp.asarray(9.0))
  np.testing.assert_allclose(got, want, rtol=1e-9)


def test_dequantized_pictures_stay_in_their_bins():
  x = jnp.round((jnp.asarray(X) + 1) / BIN) * BIN - 1
  near = dequantized(x, KEYS)
  np.testing.assert_allclose(jnp.round((near + 1) / BIN) * BIN - 1, x, atol=1e-12)
  assert (near != x).all()


def test_bits():
  # A uniform distribution over 256 values has 8 bits a dimension.
  np.testing.assert_allclose(bits(jnp.full(1, 12 * math.log(256)), 12), 8.0)
