"""The noise schedules against the papers' closed forms, written again in float64."""

from statistics import NormalDist

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from core import noise
from core.errors import UserError

SCALINGS = ("vp", "ve", "rf")
PREDICTIONS = noise.PREDICTIONS
GRID = np.linspace(0, 1, 1001)


def sigmoid_alpha2(t, start, end, tau):
  """The gamma of Chen 2023, algorithm 1."""
  first, last, now = (
    1 / (1 + np.exp(-a / tau)) for a in (start, end, start + t * (end - start))
  )
  return (last - now) / (last - first)


def laplace_logsnr(t):
  """Hang et al. 2024, table 1, with mu = 0 and b = 0.5."""
  with np.errstate(divide="ignore"):
    return -0.5 * np.sign(0.5 - t) * np.log(1 - 2 * np.abs(t - 0.5))


def vp(alpha2):
  return np.sqrt(alpha2), np.sqrt(1 - alpha2)


CLOSED = {  # name -> t -> (alpha, sigma)
  "cosine": lambda t: (np.cos(np.pi * t / 2), np.sin(np.pi * t / 2)),
  "sigmoid": lambda t: vp(sigmoid_alpha2(t, -3, 3, 1)),
  "laplace": lambda t: vp(1 / (1 + np.exp(-laplace_logsnr(t)))),
  "ve": lambda t: (np.ones_like(t), 0.01 * 5000**t),
  "edm": lambda t: (
    np.ones_like(t),
    (0.002 ** (1 / 7) + t * (80 ** (1 / 7) - 0.002 ** (1 / 7))) ** 7,
  ),
  "rectified_flow": lambda t: (1 - t, t),
}


def levels(schedule, t):
  """(alpha, sigma) at times t, as float64."""

  @jax.jit
  def both(t):
    return noise.alpha_sigma(schedule.logsnr(t), schedule.scaling)

  return tuple(np.asarray(a, np.float64) for a in both(jnp.asarray(t, jnp.float32)))


@pytest.mark.parametrize("name", CLOSED)
def test_schedule_is_its_closed_form(name):
  got, want = levels(noise.SCHEDULES[name](), GRID), CLOSED[name](GRID)
  for ours, theirs in zip(got, want, strict=True):
    np.testing.assert_allclose(ours[1:-1], theirs[1:-1], rtol=3e-5)
    # The ends are where logsnr is held at its bound, exp(-10) from the closed form.
    np.testing.assert_allclose(ours, theirs, rtol=3e-5, atol=5e-5)


@pytest.mark.parametrize(
  ("start", "end", "tau"), [(-3.0, 3.0, 0.9), (-3.0, 3.0, 1.1), (0.0, 3.0, 0.3)]
)
def test_sigmoid_schedule_with_other_parameters(start, end, tau):
  schedule = noise.sigmoid(start, end, tau)
  assert np.isfinite(schedule.logsnr(jnp.array([0.0, 1.0]))).all()
  t = GRID[1:-1]
  want = vp(sigmoid_alpha2(t, start, end, tau))
  for ours, theirs in zip(levels(schedule, t), want, strict=True):
    np.testing.assert_allclose(ours, theirs, rtol=3e-5, atol=5e-5)


def test_linear_schedule_is_the_product_of_betas():
  betas = 1e-4 + (0.02 - 1e-4) * np.arange(1000) / 999
  want = vp(np.cumprod(1 - betas))
  for ours, theirs in zip(levels(noise.linear(), GRID[1:]), want, strict=True):
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)


def test_scaled_linear_schedule_is_stable_diffusions():
  betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
  want = vp(np.cumprod(1 - betas))
  for ours, theirs in zip(levels(noise.scaled_linear(), GRID[1:]), want, strict=True):
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)


def test_cosine_schedule_with_iddpms_offset():
  # Nichol & Dhariwal 2021, eq. 17.
  f = lambda t: np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2  # noqa: E731
  alpha, sigma = levels(noise.cosine(0.008), GRID[1:-1])
  np.testing.assert_allclose(alpha**2, f(GRID[1:-1]) / f(0), rtol=1e-4)
  np.testing.assert_allclose(sigma**2, 1 - f(GRID[1:-1]) / f(0), rtol=1e-4)


@pytest.mark.parametrize("name", ["linear", "scaled_linear", "cosine"])
def test_zero_terminal_snr(name):
  # Lin et al. 2023, algorithm 1: all signal stays at the start, none at the end.
  schedule = noise.SCHEDULES[name]()
  moved = noise.zero_terminal(schedule)
  before, after = (levels(s, GRID)[0] for s in (schedule, moved))
  first, last = before[0], before[-1]
  want = (before - last) * first / (first - last)
  np.testing.assert_allclose(after, want, atol=2e-5)
  assert after[-1] == 0
  if name != "linear":  # where the times before the first step have no level
    rest = np.sqrt(1 - np.square(want.astype(np.float64)))
    np.testing.assert_allclose(levels(moved, GRID)[1][20:], rest[20:], rtol=2e-3)
  logsnr = np.asarray(moved.logsnr(jnp.asarray(GRID)))
  assert logsnr[-1] == -np.inf
  assert np.isfinite(logsnr[:-1]).all()
  assert (np.diff(logsnr[1:]) < 0).all()


@pytest.mark.parametrize("timesteps", [1, 4, 24, 1000])
def test_discrete_times_are_hit_equally_often(timesteps):
  schedule = noise.discrete(noise.cosine(), timesteps)
  u = (np.arange(8 * timesteps) + 0.5) / (8 * timesteps)
  found = jax.jit(schedule.density)(jnp.asarray(u))
  assert np.isfinite(jax.jit(schedule.logsnr)(found)).all()
  t = np.asarray(found, np.float64) * timesteps
  values, counts = np.unique(np.rint(t), return_counts=True)
  np.testing.assert_allclose(t, np.rint(t), atol=1e-3)
  np.testing.assert_array_equal(values, np.arange(1, timesteps + 1))
  assert counts.min() >= 7
  assert schedule.density(jnp.zeros(())) > 0


def test_spread_times_are_evenly_apart_and_uniform():
  size, ids = 8, jnp.arange(16, 24, dtype=jnp.uint32)
  draw = jax.jit(jax.vmap(lambda key: noise.spread(key, ids, size)))
  u = np.asarray(draw(jax.random.split(jax.random.key(0), 2000)), np.float64)
  np.testing.assert_allclose(np.diff(np.sort(u, axis=1)), 1 / size, atol=1e-5)
  each = np.sort(u[:, 3])  # one row of the batch, over many batches
  assert np.abs(each - (np.arange(2000) + 0.5) / 2000).max() < 1.95 / np.sqrt(2000)
  # A part of the batch has the same times as in the whole.
  key = jax.random.key(1)
  whole, part = (noise.spread(key, rows, size) for rows in (ids, ids[2:5]))
  np.testing.assert_array_equal(whole[2:5], part)


def test_linear_schedule_is_close_to_the_vp_sde():
  # Song et al. 2021, eq. 33, with beta from 0.1 to 20.
  t = GRID[10:]
  log_alpha2 = -(t**2) / 2 * (20 - 0.1) - t * 0.1
  want = log_alpha2 - np.log(-np.expm1(log_alpha2))
  np.testing.assert_allclose(noise.linear().logsnr(jnp.asarray(t)), want, atol=0.08)


@pytest.mark.parametrize("name", noise.SCHEDULES)
def test_schedule_is_finite_and_strictly_decreasing(name):
  values = np.asarray(jax.jit(noise.SCHEDULES[name]().logsnr)(jnp.asarray(GRID)))
  assert np.isfinite(values).all()
  assert np.abs(values).max() <= noise.LOGSNR_LIMIT
  # Below DDPM's first step there is no other noise level.
  strict = values[1:] if "linear" in name else values
  assert (np.diff(strict) < 0).all()
  assert (np.diff(values) <= 0).all()


@pytest.mark.parametrize("steps", [2, 18, 79])
def test_edm_times_are_karras_eq_5(steps):
  i = np.arange(steps)
  big, small = 80 ** (1 / 7), 0.002 ** (1 / 7)
  want = (big + i / (steps - 1) * (small - big)) ** 7
  got = levels(noise.edm(), 1 - i / (steps - 1))[1]
  np.testing.assert_allclose(got, want, rtol=1e-5)


def test_edm_trains_on_lognormal_noise():
  schedule = noise.edm()
  u = (np.arange(20_000) + 0.5) / 20_000
  log_sigma = np.log(levels(schedule, schedule.density(jnp.asarray(u)))[1])
  quantiles = [-1.2 + 1.2 * NormalDist().inv_cdf(p) for p in u[::500]]
  np.testing.assert_allclose(log_sigma[::500], quantiles, atol=2e-3)
  np.testing.assert_allclose(
    [log_sigma.mean(), log_sigma.std()], [-1.2, 1.2], rtol=2e-3
  )


def test_edm_density_stays_within_the_sampling_times():
  ends = noise.edm().density(jnp.array([1e-7, 1 - 1e-7]))
  np.testing.assert_array_equal(ends, [0.0, 1.0])


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (-0.5, 1.4)])
def test_logit_normal_has_the_density_of_its_paper(mean, std):
  u, h = np.linspace(0.02, 0.98, 25), 1e-3
  low, t, high = (
    np.asarray(noise.logit_normal(jnp.asarray(a), mean, std), np.float64)
    for a in (u - h, u, u + h)
  )
  logit = np.log(t / (1 - t))
  np.testing.assert_allclose(
    logit, [mean + std * NormalDist().inv_cdf(p) for p in u], atol=1e-5
  )
  # Esser et al. 2024, eq. 19; the density is the slope of u in t.
  density = np.exp(-((logit - mean) ** 2) / (2 * std**2)) / (
    std * np.sqrt(2 * np.pi) * t * (1 - t)
  )
  np.testing.assert_allclose(density * (high - low) / (2 * h), 1, rtol=5e-3)


@pytest.mark.parametrize("shift", [0.5, 3.0])
@pytest.mark.parametrize("name", noise.SCHEDULES)
def test_shift_multiplies_the_noise_to_signal_ratio(name, shift):
  schedule = noise.SCHEDULES[name]()
  alpha, sigma = levels(schedule, GRID[10:-10])
  moved = levels(noise.shifted(schedule, shift), GRID[10:-10])
  np.testing.assert_allclose(moved[1] / moved[0], shift * sigma / alpha, rtol=1e-5)


@pytest.mark.parametrize("shift", [0.5, 3.0])
def test_shifted_rectified_flow_is_a_shift_of_time(shift):
  # Esser et al. 2024, eq. 23.
  moved = levels(noise.shifted(noise.rectified_flow(), shift), GRID)
  t = shift * GRID / (1 + (shift - 1) * GRID)
  for ours, theirs in zip(moved, (1 - t, t), strict=True):
    np.testing.assert_allclose(ours, theirs, rtol=3e-5, atol=2e-4)


@pytest.mark.parametrize("scaling", SCALINGS)
def test_alpha_sigma_keep_their_promises(scaling):
  with jax.enable_x64(True):
    logsnr = jnp.linspace(-20, 20, 41)
    alpha, sigma = noise.alpha_sigma(logsnr, scaling)
    total = {"vp": alpha**2 + sigma**2, "ve": alpha, "rf": alpha + sigma}[scaling]
    np.testing.assert_allclose(total, 1, rtol=1e-14)
    np.testing.assert_allclose(np.log(alpha**2 / sigma**2), logsnr, atol=1e-12)


@pytest.mark.parametrize("scaling", ["vp", "ve"])
def test_network_inputs_have_unit_variance(scaling):
  logsnr = jnp.linspace(-9, 9, 19)
  alpha, sigma = noise.alpha_sigma(logsnr, scaling)
  scale = noise.input_scale(logsnr, scaling)
  np.testing.assert_allclose(scale**2 * (alpha**2 + sigma**2), 1, rtol=1e-5)


def example(seed=0, logsnr=(-12.0, -1.5, 0.0, 2.0, 12.0)):
  """x, eps [5, 2, 3] and logsnr [5]."""
  rng = np.random.default_rng(seed)
  x, eps = (jnp.asarray(rng.normal(size=(len(logsnr), 2, 3))) for _ in range(2))
  return x, eps, jnp.asarray(logsnr)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("scaling", SCALINGS)
def test_every_prediction_gives_x_and_eps_back(scaling, prediction):
  with jax.enable_x64(True):
    x, eps, logsnr = example()
    x_t = noise.diffuse(x, eps, logsnr, scaling)
    output = noise.target(x, eps, logsnr, scaling, prediction)
    got = noise.to_x_eps(output, x_t, logsnr, scaling, prediction)
    np.testing.assert_allclose(got[0], x, atol=1e-9)
    np.testing.assert_allclose(got[1], eps, atol=1e-9)
    # And from any output of a network: the pair explains x_t and the output.
    output = x + 0.3
    x_hat, eps_hat = noise.to_x_eps(output, x_t, logsnr, scaling, prediction)
    np.testing.assert_allclose(
      noise.diffuse(x_hat, eps_hat, logsnr, scaling), x_t, atol=1e-9
    )
    again = noise.target(x_hat, eps_hat, logsnr, scaling, prediction)
    np.testing.assert_allclose(again, output, atol=1e-9)


@pytest.mark.parametrize("prediction", ["eps", "v", "velocity"])
@pytest.mark.parametrize("scaling", SCALINGS)
def test_without_noise_the_picture_is_x_t(scaling, prediction):
  x, eps, logsnr = example(logsnr=(np.inf, np.inf))
  alpha, sigma = noise.alpha_sigma(logsnr, scaling)
  np.testing.assert_array_equal(alpha, 1)
  np.testing.assert_array_equal(sigma, 0)
  x_t = noise.diffuse(x, eps, logsnr, scaling)
  np.testing.assert_array_equal(x_t, x)
  output = noise.target(x, eps, logsnr, scaling, prediction)
  x_hat, eps_hat = noise.to_x_eps(output, x_t, logsnr, scaling, prediction)
  np.testing.assert_array_equal(x_hat, x)
  np.testing.assert_allclose(eps_hat, eps, atol=1e-6)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("scaling", SCALINGS)
def test_weights_turn_the_error_of_x_into_that_of_any_prediction(scaling, prediction):
  with jax.enable_x64(True):
    x, eps, logsnr = example()
    x_t = noise.diffuse(x, eps, logsnr, scaling)
    guess = x + 0.1 * eps - 0.2
    eps_guess = noise.eps_of(guess, x_t, logsnr, scaling)
    pairs = ((x, eps), (guess, eps_guess))
    one, two = (noise.target(*p, logsnr, scaling, prediction) for p in pairs)
    weight = np.exp(noise.log_weight(logsnr, scaling, prediction))
    want = weight * np.sum((x - guess) ** 2, axis=(1, 2))
    np.testing.assert_allclose(np.sum((one - two) ** 2, axis=(1, 2)), want, rtol=1e-6)


def test_weights_are_those_of_the_papers():
  with jax.enable_x64(True):
    logsnr = jnp.linspace(-6, 6, 13)
    snr, sigma = np.exp(logsnr), np.exp(-logsnr / 2)
    weight = lambda *args: np.exp(noise.log_weight(logsnr, *args))  # noqa: E731
    np.testing.assert_allclose(weight("vp", "v"), snr + 1)  # Salimans & Ho 2022
    edm = (sigma**2 + 0.25) / (sigma * 0.5) ** 2  # Karras et al. 2022, table 1
    for scaling in SCALINGS:
      np.testing.assert_allclose(weight(scaling, "edm"), edm)
      np.testing.assert_allclose(weight(scaling, "eps"), snr)
    t = noise.alpha_sigma(logsnr, "rf")[1]
    np.testing.assert_allclose(weight("rf", "velocity"), 1 / t**2)


def test_preconditioning_is_edms():
  # Karras et al. 2022, table 1, under ve.
  with jax.enable_x64(True):
    logsnr, data = jnp.linspace(-8, 8, 9), 0.5
    sigma = np.exp(-logsnr / 2)
    skip, out, scale = noise.precondition(logsnr, "ve", data)
    np.testing.assert_allclose(skip, data**2 / (sigma**2 + data**2))
    np.testing.assert_allclose(out, sigma * data / np.sqrt(sigma**2 + data**2))
    np.testing.assert_allclose(scale, 1 / np.sqrt(sigma**2 + data**2))


@pytest.mark.parametrize("scaling", SCALINGS)
def test_edms_output_has_unit_variance_and_is_one_function_in_all_scalings(scaling):
  with jax.enable_x64(True):
    rng, logsnr = np.random.default_rng(0), jnp.linspace(-6, 6, 7)
    x, eps = (jnp.asarray(rng.normal(size=(7, 20_000))) for _ in range(2))
    outputs = noise.target(0.5 * x, eps, logsnr, scaling, "edm")
    np.testing.assert_allclose(np.std(outputs, axis=1), 1, atol=0.03)
    same = noise.target(0.5 * x, eps, logsnr, "ve", "edm")
    np.testing.assert_allclose(outputs, same, rtol=1e-9)


def test_edm_prediction_with_unit_data_is_minus_v():
  with jax.enable_x64(True):
    x, eps, logsnr = example()
    edm = noise.target(x, eps, logsnr, "vp", "edm", 1.0)
    np.testing.assert_allclose(edm, -noise.target(x, eps, logsnr, "vp", "v"))


def test_posterior_variances_are_ddpms():
  # Ho et al. 2020, eq. 7 and section 3.2, from the betas.
  with jax.enable_x64(True):
    schedule, i = noise.linear(), np.array([2, 10, 500, 1000])
    betas = np.linspace(1e-4, 0.02, 1000)
    bars = np.cumprod(1 - betas)
    logsnr_t, logsnr_s = (schedule.logsnr(jnp.asarray(k / 1000)) for k in (i, i - 1))
    small, large = noise.posterior_log_variances(logsnr_t, logsnr_s, "vp")
    np.testing.assert_allclose(np.exp(large), betas[i - 1], rtol=1e-3)
    want = (1 - bars[i - 2]) / (1 - bars[i - 1]) * betas[i - 1]
    np.testing.assert_allclose(np.exp(small), want, rtol=1e-3)


@pytest.mark.parametrize("scaling", SCALINGS)
def test_score_is_the_gradient_of_the_log_density(scaling):
  with jax.enable_x64(True):
    x, eps, logsnr = example()
    alpha, sigma = noise.alpha_sigma(noise.per_example(logsnr, x), scaling)

    def log_density(x_t):
      return jnp.sum(-((x_t - alpha * x) ** 2) / (2 * sigma**2))

    want = jax.grad(log_density)(noise.diffuse(x, eps, logsnr, scaling))
    got = noise.target(x, eps, logsnr, scaling, "score")
    np.testing.assert_allclose(got, want, rtol=1e-6)


def test_velocity_is_the_time_derivative_of_rectified_flow():
  with jax.enable_x64(True):
    x, eps, _ = example()
    schedule, t = noise.rectified_flow(), jnp.linspace(0.1, 0.9, 5)
    path = lambda t: noise.diffuse(x, eps, schedule.logsnr(t), "rf")  # noqa: E731
    slope = jax.jvp(path, (t,), (jnp.ones_like(t),))[1]
    got = noise.target(x, eps, schedule.logsnr(t), "rf", "velocity")
    np.testing.assert_allclose(got, slope, rtol=1e-6)


def test_v_is_the_derivative_in_the_angle():
  # Salimans & Ho 2022, appendix D: v = d x_t / d phi, alpha = cos phi.
  with jax.enable_x64(True):
    x, eps, _ = example()
    phi = jnp.linspace(0.2, 1.4, 5)
    logsnr = lambda phi: -2 * jnp.log(jnp.tan(phi))  # noqa: E731
    path = lambda phi: noise.diffuse(x, eps, logsnr(phi), "vp")  # noqa: E731
    slope = jax.jvp(path, (phi,), (jnp.ones_like(phi),))[1]
    got = noise.target(x, eps, logsnr(phi), "vp", "v")
    np.testing.assert_allclose(got, slope, rtol=1e-6)


def test_scalings_are_lenses_on_one_process():
  with jax.enable_x64(True):
    x, eps, logsnr = example()
    ve = noise.diffuse(x, eps, logsnr, "ve")
    for scaling in SCALINGS:
      alpha = noise.alpha_sigma(noise.per_example(logsnr, x), scaling)[0]
      x_t = noise.diffuse(x, eps, logsnr, scaling)
      np.testing.assert_allclose(x_t / alpha, ve, rtol=1e-9)


def config(**fields):
  noise = base.noise()
  noise.update({"schedule": "cosine", **fields})
  return noise


def test_make_reads_the_config():
  t = jnp.linspace(0.1, 0.9, 9)
  schedule = noise.make(config(schedule="edm", density="uniform", shift=2.0))
  assert schedule.scaling == "ve"
  np.testing.assert_array_equal(schedule.density(t), t)
  want = noise.edm().logsnr(t) - 2 * np.log(2)
  np.testing.assert_allclose(schedule.logsnr(t), want, rtol=1e-6)
  # A schedule's parameters are the group of its name.
  lower = config(schedule="edm")
  lower.edm.sigma_max = 10.0
  np.testing.assert_allclose(noise.make(lower).logsnr(jnp.ones(())), -2 * np.log(10))
  own = noise.make(config(schedule="edm"))
  np.testing.assert_array_equal(own.density(t), noise.edm().density(t))
  logit_normal = noise.make(config(density="logit_normal"))
  np.testing.assert_array_equal(logit_normal.density(t), noise.logit_normal(t))


@pytest.mark.parametrize(
  ("fields", "sentence"),
  [
    ({"schedule": "cosin"}, r"noise.schedule='cosin'.*did you mean 'cosine'"),
    ({"density": "logitnormal"}, r"noise.density=.*did you mean 'logit_normal'"),
    ({"shift": 0.0}, r"noise.shift=0.0 must be positive"),
    ({"schedule": "edm", "zero_terminal": True}, r"zero_terminal is for variance-pres"),
  ],
)
def test_make_refuses(fields, sentence):
  with pytest.raises(UserError, match=sentence):
    noise.make(config(**fields))


@pytest.mark.parametrize("scaling", ["vp", "ve", "rf"])
def test_a_step_and_its_posterior_agree_with_the_marginals(scaling):
  # Of one number x: both ways give x_s and x_t the same means and covariances.
  x, zero, one = jnp.full((1, 1), 0.7), jnp.zeros((1, 1)), jnp.ones((1, 1))
  logsnr_t, logsnr_s = jnp.full(1, -1.0), jnp.full(1, 1.5)

  def part(fn, *args):
    """The constant of an affine function, and its slope by each argument."""
    base = fn(*(zero for _ in args))
    slopes = [
      fn(*(one if i == j else zero for j in range(len(args)))) - base
      for i in range(len(args))
    ]
    return base.item(), *(s.item() for s in slopes)

  known = [zero, zero]
  alpha_s, sigma_s = noise.alpha_sigma(logsnr_s[0], scaling)
  alpha_t, sigma_t = noise.alpha_sigma(logsnr_t[0], scaling)
  step = lambda x_s, eps: noise.transition(x_s, eps, logsnr_t, logsnr_s, scaling)  # noqa: E731
  _, keep, added = part(step, *known)
  back = lambda x_t, eps: noise.posterior(x_t, x, eps, logsnr_t, logsnr_s, scaling)  # noqa: E731
  constant, slope, std = part(back, *known)
  np.testing.assert_allclose(keep * alpha_s, alpha_t, rtol=1e-5)
  np.testing.assert_allclose(keep**2 * sigma_s**2 + added**2, sigma_t**2, rtol=1e-5)
  np.testing.assert_allclose(constant + slope * alpha_t * 0.7, alpha_s * 0.7, rtol=1e-5)
  np.testing.assert_allclose(slope**2 * sigma_t**2 + std**2, sigma_s**2, rtol=1e-5)
  np.testing.assert_allclose(slope * sigma_t**2, keep * sigma_s**2, rtol=1e-5)
  clean = noise.posterior(x + 3, x, one, logsnr_t, jnp.full(1, jnp.inf), scaling)
  np.testing.assert_allclose(clean, x, rtol=1e-6)
