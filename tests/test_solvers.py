"""Each step against the equations of its paper."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core import noise
from diffusion import solvers

SCHEDULES = {name: make() for name, make in noise.SCHEDULES.items()}
SCALINGS = ("vp", "ve", "rf")
INF = jnp.asarray(jnp.inf)


@pytest.fixture
def float64():
  with jax.enable_x64(True):
    yield


def levels(logsnr, scaling):
  """(alpha, sigma) as float64."""
  snr = np.exp(np.asarray(logsnr, np.float64))
  return {
    "vp": (np.sqrt(snr / (1 + snr)), np.sqrt(1 / (1 + snr))),
    "ve": (np.ones_like(snr), snr**-0.5),
    "rf": (snr**0.5 / (1 + snr**0.5), 1 / (1 + snr**0.5)),
  }[scaling]


# DDIM and DDPM.


def test_ddim_on_rectified_flow_is_one_euler_step():
  schedule = SCHEDULES["rectified_flow"]
  x_t, x_hat = jax.random.normal(jax.random.key(0), (2, 2, 3))
  for t, s in [(0.9, 0.7), (0.5, 0.49), (0.2, 0.1), (0.3, 0.6)]:
    logsnr_t, logsnr_s = schedule.logsnr(jnp.array([t, s]))
    got = solvers.ddim(x_t, x_hat, None, logsnr_t, logsnr_s, "rf")
    np.testing.assert_allclose(got, x_t - (t - s) * (x_t - x_hat) / t, atol=1e-5)


def test_ddim_under_ve_is_edms_euler_step():
  # Karras et al. 2022, algorithm 1 without the second-order correction.
  x_t, x_hat = jax.random.normal(jax.random.key(0), (2, 2, 3))
  for t, s in [(80.0, 60.0), (1.0, 0.4), (0.003, 0.002), (1.0, 2.0)]:
    logsnr = -2 * jnp.log(jnp.array([t, s]))
    got = solvers.ddim(x_t, x_hat, None, *logsnr, "ve")
    np.testing.assert_allclose(got, x_t + (s - t) * (x_t - x_hat) / t, atol=1e-5)


@pytest.mark.parametrize(("eta", "moves"), [(0.0, False), (0.5, True), (1.0, True)])
def test_eta_decides_whether_noise_is_added(eta, moves):
  logsnr = SCHEDULES["cosine"].logsnr(jnp.array([0.8, 0.6]))
  one, two = (
    solvers.ddim(x, x, fresh, *logsnr, "vp", eta)
    for x, fresh in [(jnp.ones((1, 1)), jnp.full((1, 1), a)) for a in (-1.0, 1.0)]
  )
  assert (one != two).item() == moves


BETAS = 1e-4 + (0.02 - 1e-4) * np.arange(1000) / 999
ALPHA_BAR = np.cumprod(1 - BETAS)


def ddpm_step(i, x_t, x_hat, fresh, fraction=0.0):
  """From step i (counted from 1, as in the paper) to i - 1."""
  logsnr = SCHEDULES["linear"].logsnr(jnp.array([i, i - 1]) / 1000)
  logsnr = logsnr if i > 1 else logsnr.at[1].set(jnp.inf)
  x_t, x_hat, fresh = (jnp.full((1, 1), a, jnp.float32) for a in (x_t, x_hat, fresh))
  return solvers.ddpm(x_t, x_hat, fresh, *logsnr, "vp", fraction).item()


@pytest.mark.parametrize("i", [1, 2, 10, 500, 1000])
def test_ddpm_step_has_the_posteriors_mean_and_variance(i):
  # Ho et al. 2020, eq. 7, and the larger variance of their section 3.2.
  beta, alpha_bar = BETAS[i - 1], ALPHA_BAR[i - 1]
  before = ALPHA_BAR[i - 2] if i > 1 else 1.0
  of_x = np.sqrt(before) * beta / (1 - alpha_bar)
  of_x_t = np.sqrt(1 - beta) * (1 - before) / (1 - alpha_bar)
  small = np.sqrt((1 - before) / (1 - alpha_bar) * beta)
  large = np.sqrt(beta) if i > 1 else 0.0  # the last step of algorithm 2 adds none
  close = functools.partial(np.testing.assert_allclose, rtol=3e-4, atol=1e-6)
  for fraction in (0.0, 1.0):
    close(ddpm_step(i, 0, 1, 0, fraction), of_x)
    close(ddpm_step(i, 1, 0, 0, fraction), of_x_t)
  close(ddpm_step(i, 0, 0, 1), small)
  close(ddpm_step(i, 0, 0, 1, 1.0), large)


@pytest.mark.parametrize("i", [1, 2, 10, 500, 1000])
def test_ddpm_step_is_ancestral_sampling(i):
  # Ho et al. 2020, algorithm 2, line 4, with the smaller of its two variances.
  x_t, eps, z = 0.7, -1.1, 0.4
  beta, alpha_bar = BETAS[i - 1], ALPHA_BAR[i - 1]
  before = ALPHA_BAR[i - 2] if i > 1 else 1.0
  want = (x_t - beta / np.sqrt(1 - alpha_bar) * eps) / np.sqrt(1 - beta)
  want += np.sqrt((1 - before) / (1 - alpha_bar) * beta) * z
  x_hat = (x_t - np.sqrt(1 - alpha_bar) * eps) / np.sqrt(alpha_bar)
  np.testing.assert_allclose(ddpm_step(i, x_t, x_hat, z), want, rtol=3e-4)


@pytest.mark.parametrize("name", SCHEDULES)
def test_eta_1_is_bayes_rule_on_every_scaling(name, float64):
  # q(x_s | x_t, x) from the precisions of q(x_s | x) and q(x_t | x_s).
  schedule = SCHEDULES[name]
  x_t, x, fresh = jnp.array([[0.7]]), jnp.array([[-0.4]]), jnp.array([[1.3]])
  for t, s in [(1.0, 0.9), (0.6, 0.5), (0.3, 0.05)]:
    logsnr = schedule.logsnr(jnp.array([t, s]))
    (alpha_t, alpha_s), (sigma_t, sigma_s) = levels(logsnr, schedule.scaling)
    ratio = alpha_t / alpha_s
    added = sigma_t**2 - ratio**2 * sigma_s**2
    variance = 1 / (1 / sigma_s**2 + ratio**2 / added)
    mean = variance * (alpha_s * x / sigma_s**2 + ratio * x_t / added)
    args = (x_t, x, fresh, *logsnr, schedule.scaling)
    want = mean + np.sqrt(variance) * fresh
    np.testing.assert_allclose(solvers.ddim(*args, 1.0), want, rtol=1e-7)
    np.testing.assert_allclose(solvers.ddpm(*args), want, rtol=1e-7)
    # The larger variance is that of q(x_t | x_s).
    large = mean + np.sqrt(added) * fresh
    np.testing.assert_allclose(solvers.ddpm(*args, 1.0), large, rtol=1e-7)


def test_a_learned_variance_lies_between_small_and_large(float64):
  x_t, x_hat, fresh = jax.random.normal(jax.random.key(0), (3, 2, 5))
  logsnr = jnp.array([-1.0, 0.5])
  fraction = jnp.array([[0.0, 0.25, 0.5, 0.75, 1.0]] * 2)
  step = functools.partial(solvers.ddpm, x_t, x_hat, fresh, *logsnr, "vp")
  mean = solvers.ddpm(x_t, x_hat, jnp.zeros((2, 5)), *logsnr, "vp")
  small, large, got = (
    np.log(np.square((step(f) - mean) / fresh)) for f in (0.0, 1.0, fraction)
  )
  # Nichol & Dhariwal 2021, eq. 15.
  np.testing.assert_allclose(got, fraction * large + (1 - fraction) * small, atol=1e-9)
  assert (large > small).all()
  # No noise at the clean end, whatever the fraction.
  end = solvers.ddpm(x_t, x_hat, fresh, logsnr[0], INF, "vp", fraction)
  np.testing.assert_allclose(end, x_hat, atol=1e-12)


def test_the_larger_variance_under_ve_is_reverse_diffusion(float64):
  # Song et al. 2021, eq. 46.
  x_t, x_hat, fresh = jax.random.normal(jax.random.key(0), (3, 2, 5))
  t, s = 3.0, 2.5
  score = -(x_t - x_hat) / t**2
  added = t**2 - s**2
  want = x_t + added * score + np.sqrt(added) * fresh
  logsnr = -2 * jnp.log(jnp.array([t, s]))
  got = solvers.ddpm(x_t, x_hat, fresh, *logsnr, "ve", 1.0)
  np.testing.assert_allclose(got, want, rtol=1e-9)


# DPM-Solver++.


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("stochastic", [False, True])
def test_dpm_solver_2m_is_its_formula(scaling, stochastic, float64):
  # Lu et al. 2022 (DPM-Solver++), algorithm 2, line 8, and eq. 18 of the SDE variant.
  x_t, x_hat, before, fresh = jax.random.normal(jax.random.key(0), (4, 2, 5))
  logsnr = jnp.array([-2.0, -1.2, 0.7])
  lam = np.asarray(logsnr) / 2
  h, r = lam[2] - lam[1], (lam[1] - lam[0]) / (lam[2] - lam[1])
  d = (1 + 1 / (2 * r)) * x_hat - 1 / (2 * r) * before
  alpha, sigma = levels(logsnr, scaling)
  if stochastic:
    want = sigma[2] / sigma[1] * np.exp(-h) * x_t + alpha[2] * -np.expm1(-2 * h) * d
    want += sigma[2] * np.sqrt(-np.expm1(-2 * h)) * fresh
  else:
    want = sigma[2] / sigma[1] * x_t - alpha[2] * np.expm1(-h) * d
  to = solvers.extrapolate(x_hat, before, *logsnr)
  got = solvers.ddim(x_t, to, fresh, *logsnr[1:], scaling, float(stochastic))
  np.testing.assert_allclose(got, want, rtol=1e-9)


@pytest.mark.parametrize(
  "logsnr",
  [
    (-1.0, 0.0, np.inf),  # to the clean end
    (-np.inf, -1.0, 0.0),  # after a step from pure noise
    (-np.inf, 0.0, np.inf),
    (-np.inf, -np.inf, 0.0),
    (0.0, 0.0, 1.0),  # after a step that was none
    (0.0, 0.0, np.inf),
  ],
)
def test_extrapolation_is_of_first_order_where_there_is_no_second(logsnr):
  x_hat, before = jnp.ones((1, 1)), jnp.full((1, 1), 3.0)
  got = solvers.extrapolate(x_hat, before, *jnp.array(logsnr))
  np.testing.assert_array_equal(got, x_hat)


# EDM's churn, and Langevin's corrector.


@pytest.mark.parametrize("scaling", SCALINGS)
def test_churn_is_edms_through_any_lens(scaling, float64):
  # Karras et al. 2022, algorithm 2, lines 5 and 6, of x_t / alpha.
  x_t, fresh = jax.random.normal(jax.random.key(0), (2, 2, 5))
  logsnr, gamma = jnp.asarray(0.3), jnp.asarray(0.2)
  alpha, sigma = levels(logsnr, scaling)
  t, to = sigma / alpha, 1.2 * sigma / alpha
  y = x_t / alpha + np.sqrt(to**2 - t**2) * 1.1 * fresh
  got, level = solvers.churn(x_t, fresh, logsnr, gamma, scaling, 1.1)
  np.testing.assert_allclose(level, -2 * np.log(to), rtol=1e-9)
  np.testing.assert_allclose(got, levels(level, scaling)[0] * y, rtol=1e-9)


@pytest.mark.parametrize("scaling", ["vp", "rf"])
def test_churn_of_pure_noise_is_pure_noise(scaling):
  x_t, fresh = jax.random.normal(jax.random.key(0), (2, 2, 5))
  got, level = solvers.churn(x_t, fresh, -INF, jnp.asarray(0.25), scaling)
  assert level == -np.inf
  np.testing.assert_allclose(got, 0.8 * x_t + 0.6 * fresh, rtol=1e-5)
  same, _ = solvers.churn(x_t, fresh, jnp.asarray(1.0), jnp.asarray(0.0), scaling)
  np.testing.assert_array_equal(same, x_t)


@pytest.mark.parametrize("scaling", SCALINGS)
def test_langevins_step_has_songs_size_for_each_example(scaling, float64):
  # Song et al. 2021, algorithm 4, lines 6 and 7.
  x_t, x_hat, fresh = jax.random.normal(jax.random.key(0), (3, 2, 5, 3))
  logsnr, snr = jnp.asarray(0.4), 0.16
  alpha, sigma = levels(logsnr, scaling)
  got = solvers.langevin(x_t, x_hat, fresh, logsnr, scaling, snr)
  for i in range(2):
    score = -(x_t[i] - alpha * x_hat[i]) / sigma**2
    e = (
      2 * (snr * np.linalg.norm(fresh[i].ravel()) / np.linalg.norm(score.ravel())) ** 2
    )
    np.testing.assert_allclose(
      got[i], x_t[i] + e * score + np.sqrt(2 * e) * fresh[i], rtol=1e-9
    )


# The lenses.


@pytest.mark.parametrize("lens", SCALINGS)
def test_clock_runs_to_the_clean_end_and_back(lens, float64):
  logsnr = jnp.linspace(-9, 12, 50)
  time = solvers.clock(logsnr, lens)
  assert (np.diff(time) < 0).all()
  np.testing.assert_allclose(solvers.logsnr_at(time, lens), logsnr, atol=1e-9)
  assert solvers.clock(INF, lens) == 0
  assert solvers.logsnr_at(jnp.asarray(0.0), lens) == np.inf


@pytest.mark.parametrize("lens", ["rf", "vp"])
def test_pure_noise_has_a_time(lens):
  assert solvers.logsnr_at(solvers.clock(-INF, lens), lens) == -np.inf


@pytest.mark.parametrize("lens", SCALINGS)
@pytest.mark.parametrize("scaling", SCALINGS)
def test_slope_is_the_derivative_along_a_path(scaling, lens, float64):
  x, eps = jax.random.normal(jax.random.key(0), (2, 1, 5))

  def path(logsnr):
    x_t = noise.diffuse(x, eps, logsnr[None], scaling)
    return solvers.lensed(x_t, logsnr[None], scaling, lens)

  for level in (-4.0, 0.3, 3.0):
    logsnr = jnp.asarray(level)
    y, dy = jax.jvp(path, (logsnr,), (jnp.ones(()),))
    dt = jax.grad(lambda a: solvers.clock(a, lens))(logsnr)
    x_t = solvers.unlensed(y, logsnr[None], scaling, lens)
    slope = solvers.slope(x, x_t, logsnr[None], scaling, lens)
    np.testing.assert_allclose(slope, dy / dt, rtol=1e-7)
    np.testing.assert_allclose(
      solvers.estimate(slope, y, logsnr[None], lens), x, rtol=1e-7
    )


@pytest.mark.parametrize("scaling", SCALINGS)
def test_the_own_lens_changes_nothing(scaling):
  logsnr = jnp.array([-jnp.inf, -9.0, 0.1, 8.0, jnp.inf])
  np.testing.assert_array_equal(solvers.norm(logsnr, scaling, scaling), np.ones(5))
