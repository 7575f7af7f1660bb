"""The samplers against exact solutions: data x ~ N(m, s^2), denoiser E[x | x_t]."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core import noise
from core.family import sample_keys
from diffusion import sampler

M, S = 0.3, 0.5
SHAPE = (2, 2, 1)
SCHEDULES = {name: make() for name, make in noise.SCHEDULES.items()}


@functools.cache
def posterior_mean(scaling):
  """E[x | x_t] of x ~ N(M, S^2)."""

  def denoise(x_t, logsnr):
    alpha, sigma = noise.alpha_sigma(noise.per_example(logsnr, x_t), scaling)
    gain = alpha * S**2 / (alpha**2 * S**2 + sigma**2)
    return M + gain * (x_t - alpha * M)

  return denoise


def itself(x_t, logsnr):
  """A denoiser with which one step returns x_1."""
  return x_t


@functools.cache
def compiled(schedule, eta, runs):
  """keys -> Samples of each (denoise, steps, frames) in `runs`."""

  def samples(keys):
    return [
      sampler.sample(
        denoise, keys, SHAPE, schedule, steps=steps, eta=eta, frames=frames
      )
      for denoise, steps, frames in runs
    ]

  return jax.jit(samples)


def draw(schedule, *runs, keys, eta=0.0):
  """Samples as numpy, for each (denoise, steps, frames)."""
  return jax.device_get(compiled(schedule, eta, runs)(keys))


KEYS = sample_keys(jax.random.key(0), 8)


def levels(schedule, steps):
  """(alpha, sigma) at each point of the sampler's grid, float64, clean end included."""
  logsnr = np.asarray(sampler.time_grid(schedule, steps), np.float64)
  snr = np.exp(logsnr[:-1])
  alpha, sigma = {
    "vp": (np.sqrt(snr / (1 + snr)), np.sqrt(1 / (1 + snr))),
    "ve": (np.ones_like(snr), snr**-0.5),
    "rf": (snr**0.5 / (1 + snr**0.5), 1 / (1 + snr**0.5)),
  }[schedule.scaling]
  return np.append(alpha, 1.0), np.append(sigma, 0.0)


# Deterministic: the probability flow.


@pytest.mark.parametrize("name", ["linear", "cosine", "ve", "rectified_flow"])
def test_ddim_converges_to_the_exact_flow_with_order_1(name):
  schedule = SCHEDULES[name]
  denoise = posterior_mean(schedule.scaling)
  runs = draw(schedule, (itself, 1, 1), (denoise, 32, 1), (denoise, 128, 1), keys=KEYS)
  start, coarse, fine = (run.images for run in runs)
  alpha, sigma = (level[0] for level in levels(schedule, 1))
  # Gaussians are carried to Gaussians by the one increasing map, which is affine.
  spread = np.sqrt(alpha**2 * S**2 + sigma**2)
  exact = M + S * (start - alpha * M) / spread
  errors = [np.abs(images - exact).max() for images in (coarse, fine)]
  assert errors[1] < 0.05
  order = np.log(errors[0] / errors[1]) / np.log(4)
  assert 0.85 < order < 1.2, (errors, order)


def test_ddim_on_rectified_flow_is_euler_on_the_velocity():
  schedule, steps = SCHEDULES["rectified_flow"], 10
  start, samples = draw(
    schedule, (itself, 1, 1), (posterior_mean("rf"), steps, 1), keys=KEYS
  )
  x = start.images.astype(np.float64)
  for i in range(steps):
    t = 1 - i / steps
    # E[eps - x | x_t] for t > 0, where sigma = t and alpha = 1 - t.
    gain = (1 - t) * S**2 / ((1 - t) ** 2 * S**2 + t**2)
    x_hat = M + gain * (x - (1 - t) * M)
    velocity = (x - (1 - t) * x_hat) / t - x_hat
    x = x - velocity / steps
  np.testing.assert_allclose(samples.images, x, atol=2e-4)


def test_ddim_step_on_rectified_flow_is_one_euler_step():
  schedule = SCHEDULES["rectified_flow"]
  x_t, x_hat, fresh = jax.random.normal(jax.random.key(0), (3, 2, 3))
  for t, s in [(0.9, 0.7), (0.5, 0.49), (0.2, 0.1)]:
    logsnr_t, logsnr_s = schedule.logsnr(jnp.array([t, s]))
    got = sampler.step(x_t, x_hat, fresh, logsnr_t, logsnr_s, schedule, 0.0)
    np.testing.assert_allclose(got, x_t - (t - s) * (x_t - x_hat) / t, atol=1e-5)


def test_ddim_step_under_ve_is_edms_euler_step():
  # Karras et al. 2022, algorithm 1 without the second-order correction.
  schedule = SCHEDULES["edm"]
  x_t, x_hat, fresh = jax.random.normal(jax.random.key(0), (3, 2, 3))
  for t, s in [(80.0, 60.0), (1.0, 0.4), (0.003, 0.002)]:
    logsnr = -2 * jnp.log(jnp.array([t, s]))
    got = sampler.step(x_t, x_hat, fresh, *logsnr, schedule, 0.0)
    np.testing.assert_allclose(got, x_t + (s - t) * (x_t - x_hat) / t, atol=1e-5)


# Ancestral: DDPM's posterior.


BETAS = 1e-4 + (0.02 - 1e-4) * np.arange(1000) / 999
ALPHA_BAR = np.cumprod(1 - BETAS)


def ddpm_step(i, x_t, x_hat, fresh):
  """From step i (counted from 1, as in the paper) to i - 1."""
  logsnr = sampler.time_grid(SCHEDULES["linear"], 1000)[1000 - i : 1002 - i]
  x_t, x_hat, fresh = (jnp.full((1, 1), a, jnp.float32) for a in (x_t, x_hat, fresh))
  return sampler.step(x_t, x_hat, fresh, *logsnr, SCHEDULES["linear"], 1.0).item()


@pytest.mark.parametrize("i", [1, 2, 10, 500, 1000])
def test_ddpm_step_has_the_posteriors_mean_and_variance(i):
  # Ho et al. 2020, eq. 7.
  beta, alpha_bar = BETAS[i - 1], ALPHA_BAR[i - 1]
  before = ALPHA_BAR[i - 2] if i > 1 else 1.0
  of_x = np.sqrt(before) * beta / (1 - alpha_bar)
  of_x_t = np.sqrt(1 - beta) * (1 - before) / (1 - alpha_bar)
  variance = (1 - before) / (1 - alpha_bar) * beta
  close = functools.partial(np.testing.assert_allclose, rtol=3e-4, atol=1e-6)
  close(ddpm_step(i, 0, 1, 0), of_x)
  close(ddpm_step(i, 1, 0, 0), of_x_t)
  close(ddpm_step(i, 0, 0, 1), np.sqrt(variance))


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
def test_eta_1_is_bayes_rule_on_every_scaling(name):
  # q(x_s | x_t, x) from the precisions of q(x_s | x) and q(x_t | x_s).
  with jax.enable_x64(True):
    schedule = SCHEDULES[name]
    x_t, x, fresh = jnp.array([[0.7]]), jnp.array([[-0.4]]), jnp.array([[1.3]])
    for t, s in [(1.0, 0.9), (0.6, 0.5), (0.3, 0.05)]:
      logsnr = schedule.logsnr(jnp.array([t, s]))
      (alpha_t, alpha_s), (sigma_t, sigma_s) = (
        np.asarray(a) for a in noise.alpha_sigma(logsnr, schedule.scaling)
      )
      ratio = alpha_t / alpha_s
      added = sigma_t**2 - ratio**2 * sigma_s**2
      variance = 1 / (1 / sigma_s**2 + ratio**2 / added)
      mean = variance * (alpha_s * x / sigma_s**2 + ratio * x_t / added)
      got = sampler.step(x_t, x, fresh, *logsnr, schedule, 1.0)
      np.testing.assert_allclose(got, mean + np.sqrt(variance) * fresh, rtol=1e-7)


def ancestral_moments(schedule, steps):
  """Mean and variance of the samples: each step is affine in x_t."""
  alpha, sigma = levels(schedule, steps)
  mean, var = 0.0, sigma[0] ** 2
  for a, b, c, d in zip(alpha, sigma, alpha[1:], sigma[1:], strict=False):
    gain = a * S**2 / (a**2 * S**2 + b**2)
    share = 1 - (a * d / (b * c)) ** 2
    keep = d * np.sqrt(1 - share) / b
    slope = c * gain + keep * (1 - a * gain)
    mean = slope * mean + (c - keep * a) * M * (1 - a * gain)
    var = slope**2 * var + d**2 * share
  return mean, var


@pytest.mark.parametrize("name", ["linear", "edm", "rectified_flow"])
def test_ancestral_samples_have_the_exact_mean_and_variance(name):
  schedule, keys = SCHEDULES[name], sample_keys(jax.random.key(0), 5000)
  denoise = posterior_mean(schedule.scaling)
  # In a few steps the first noise is not yet forgotten: it must be independent.
  few, more = draw(schedule, (denoise, 2, 1), (denoise, 20, 1), keys=keys, eta=1.0)
  for samples, steps in [(few, 2), (more, 20)]:
    mean, var = ancestral_moments(schedule, steps)
    values = samples.images.astype(np.float64)
    assert abs(values.mean() - mean) < 4 * np.sqrt(var / values.size)
    assert abs(values.var() - var) < 4 * var * np.sqrt(2 / values.size)
  # With many steps these are the data's own.
  mean, var = ancestral_moments(schedule, 1000)
  np.testing.assert_allclose([mean, np.sqrt(var)], [M, S], rtol=0.01)


# What holds for any denoiser.


def test_the_grid_of_ve_is_karras_eq_5():
  steps = 18
  i = np.arange(steps)
  big, small = 80 ** (1 / 7), 0.002 ** (1 / 7)
  want = (big + i / (steps - 1) * (small - big)) ** 7
  sigma = levels(SCHEDULES["edm"], steps)[1]
  np.testing.assert_allclose(sigma, np.append(want, 0), rtol=1e-5)


def test_the_grid_of_ddpm_has_its_noise_levels():
  alpha, _ = levels(SCHEDULES["linear"], 1000)
  np.testing.assert_allclose(alpha[:-1] ** 2, ALPHA_BAR[::-1], rtol=2e-4)


@pytest.mark.parametrize("steps", [1, 2, 50])
@pytest.mark.parametrize("name", SCHEDULES)
def test_the_grid_falls_from_t_1_to_the_clean_end(name, steps):
  schedule = SCHEDULES[name]
  grid = np.asarray(sampler.time_grid(schedule, steps))
  assert grid.shape == (steps + 1,)
  assert np.isfinite(grid[:-1]).all()
  assert (np.diff(grid) > 0).all()
  assert grid[0] == schedule.logsnr(jnp.ones(()))
  assert grid[-1] == np.inf


def test_noise_is_keyed_by_sample():
  run = (posterior_mean("vp"), 5, 1)
  eight, first, last = (
    draw(SCHEDULES["cosine"], run, keys=keys, eta=1.0)[0].images
    for keys in (KEYS, sample_keys(jax.random.key(0), 4), KEYS[4:])
  )
  np.testing.assert_allclose(first, eight[:4], atol=1e-6)
  np.testing.assert_allclose(last, eight[4:], atol=1e-6)
  assert len(np.unique(eight)) == eight.size


@pytest.mark.parametrize(("eta", "moves"), [(0.0, False), (0.5, True), (1.0, True)])
def test_eta_decides_whether_noise_is_added(eta, moves):
  logsnr = SCHEDULES["cosine"].logsnr(jnp.array([0.8, 0.6]))
  one, two = (
    sampler.step(x, x, fresh, *logsnr, SCHEDULES["cosine"], eta)
    for x, fresh in [(jnp.ones((1, 1)), jnp.full((1, 1), a)) for a in (-1.0, 1.0)]
  )
  assert (one != two).item() == moves


@pytest.mark.parametrize(("name", "eta"), [("cosine", 1.0), ("edm", 0.0)])
def test_the_last_frame_is_the_picture(name, eta):
  schedule = SCHEDULES[name]
  (samples,) = draw(
    schedule, (posterior_mean(schedule.scaling), 5, 2), keys=KEYS, eta=eta
  )
  np.testing.assert_array_equal(samples.frames[-1], samples.images)


def test_frames_are_evenly_spaced_estimates():
  schedule = SCHEDULES["rectified_flow"]
  cases = [(10, 4), (7, 3), (8, 1), (3, 9)]

  # Estimates that tell the time at which they were made.
  def tell(x_t, logsnr):
    t = noise.alpha_sigma(logsnr, "rf")[1]
    return jnp.broadcast_to(noise.per_example(t, x_t), x_t.shape)

  for (steps, frames), samples in zip(
    cases, draw(schedule, *((tell, *case) for case in cases), keys=KEYS), strict=True
  ):
    assert samples.frames.shape == (min(frames, steps), 8, *SHAPE)
    made = np.rint(steps * (1 - samples.frames[:, 0, 0, 0, 0])).astype(int) + 1
    gaps = np.diff(np.insert(made, 0, 0))
    assert made[-1] == steps
    assert gaps.min() >= 1
    assert gaps.max() - gaps.min() <= 1
