"""The samplers against exact solutions: data x ~ N(m, s^2), denoiser E[x | x_t]."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from core import noise
from core.errors import UserError
from core.family import sample_keys
from core.noise import Schedule
from diffusion import sampler
from diffusion.settings import CHOICES, SAMPLERS, Estimate, Settings, time_grid
from diffusion.settings import make as make_settings

M, S = 0.3, 0.5
SHAPE = (2, 2, 1)
SCHEDULES = {name: make() for name, make in noise.SCHEDULES.items()}
DETERMINISTIC = ("ddim", "dpmpp_2m", "euler", "heun", "rk4", "rk45")


@functools.cache
def posterior_mean(scaling):
  """E[x | x_t] of x ~ N(M, S^2)."""

  def denoise(x_t, logsnr):
    alpha, sigma = noise.alpha_sigma(noise.per_example(logsnr, x_t), scaling)
    gain = alpha * S**2 / (alpha**2 * S**2 + sigma**2)
    return Estimate(M + gain * (x_t - alpha * M), None)

  return denoise


def itself(x_t, logsnr):
  """A denoiser with which one step returns x_1."""
  return Estimate(x_t, None)


@functools.cache
def compiled(schedule, runs, shape):
  """keys -> Samples of each (denoise, settings) in `runs`."""

  def samples(keys):
    return [sampler.sample(d, keys, shape, schedule, s) for d, s in runs]

  return jax.jit(samples)


def draw(schedule, *runs, keys, shape=SHAPE):
  """Samples as numpy, for each (denoise, settings)."""
  return jax.device_get(compiled(schedule, runs, shape)(keys))


KEYS = sample_keys(jax.random.key(0), 8)


def levels(schedule, steps):
  """(alpha, sigma) at each point of the sampler's grid, float64, clean end included."""
  logsnr = time_grid(schedule, Settings(steps=steps))
  snr = np.exp(np.asarray(logsnr, np.float64)[:-1])
  alpha, sigma = {
    "vp": (np.sqrt(snr / (1 + snr)), np.sqrt(1 / (1 + snr))),
    "ve": (np.ones_like(snr), snr**-0.5),
    "rf": (snr**0.5 / (1 + snr**0.5), 1 / (1 + snr**0.5)),
  }[schedule.scaling]
  return np.append(alpha, 1.0), np.append(sigma, 0.0)


# Deterministic: the probability flow.


def flow(x, logsnr_t, logsnr_s, scaling):
  """Gaussians are carried to Gaussians by the one increasing map, which is affine."""
  (a, b), (c, d) = (
    noise.alpha_sigma(jnp.asarray(level), scaling) for level in (logsnr_t, logsnr_s)
  )
  spread = jnp.sqrt(c**2 * S**2 + d**2) / jnp.sqrt(a**2 * S**2 + b**2)
  return c * M + spread * (x - a * M)


START = np.random.default_rng(0).normal(size=(3, 2, 2, 1))


@functools.cache
def walk(scaling, settings, *grids):
  """START -> what `solve` makes of it over each grid in turn; compiled, float64."""

  def run(x):
    out = []
    for ends in grids:
      grid, keys = jnp.linspace(*ends), sample_keys(jax.random.key(0), 3)
      out.append(
        sampler.solve(posterior_mean(scaling), keys, x, grid, scaling, settings)
      )
    return out

  with jax.enable_x64(True):
    return jax.device_get(jax.jit(run)(jnp.asarray(START)))


@pytest.mark.parametrize(
  ("name", "lens", "order"),
  [
    ("ddim", "own", 1),
    ("dpmpp_2m", "own", 2),
    *[
      (name, lens, order)
      for name, order in [("euler", 1), ("heun", 2), ("rk4", 4)]
      for lens in ("ve", "rf", "vp")
    ],
  ],
)
@pytest.mark.parametrize("ends", [(-3.0, 2.5), (2.5, -3.0)])
def test_order_of_convergence(name, lens, order, ends):
  # To less noise, and to more.
  steps = 16 if order == 4 else 64
  settings = Settings(sampler=name, lens=lens, frames=1)
  grids = [(*ends, steps + 1), (*ends, 2 * steps + 1)]
  coarse, fine = walk("vp", settings, *grids)
  with jax.enable_x64(True):
    exact = np.asarray(flow(START, *ends, "vp"))
  errors = [np.abs(out[0] - exact).max() for out in (coarse, fine)]
  measured = np.log2(errors[0] / errors[1])
  assert abs(measured - order) < 0.2, (errors, measured)


@pytest.mark.parametrize("lens", ["ve", "rf", "vp"])
def test_rk45_is_as_near_as_its_tolerance(lens):
  ends = (-3.0, 2.5)
  errors, calls = [], []
  with jax.enable_x64(True):
    exact = np.asarray(flow(START, *ends, "vp"))
  for tolerance in (1e-4, 1e-8):
    settings = Settings(sampler="rk45", lens=lens, rtol=tolerance, atol=tolerance)
    ((x, _, nfe),) = walk("vp", settings, (*ends, 2))
    errors.append(np.abs(x - exact).max())
    calls.append(nfe.mean())
  assert errors[0] < 1e-3
  assert errors[1] < 1e-7
  order = np.log(errors[0] / errors[1]) / np.log(calls[1] / calls[0])
  assert order > 4, (errors, calls)


@pytest.mark.parametrize("scaling", ["ve", "rf"])
def test_the_lens_alone_decides_the_numbers(scaling):
  # The same process in another scaling, through the same lens.
  ends, settings = (-3.0, 2.5), Settings(sampler="heun", lens="rf", frames=1)
  with jax.enable_x64(True):
    first, last = (
      [noise.alpha_sigma(jnp.asarray(level), s)[0] for s in ("vp", scaling)]
      for level in ends
    )
  ((x, _, _),) = walk("vp", settings, (*ends, 17))

  def other(x):
    grid = jnp.linspace(*ends, 17)
    keys = sample_keys(jax.random.key(0), 3)
    start = x * first[1] / first[0]
    denoise = posterior_mean(scaling)
    return sampler.solve(denoise, keys, start, grid, scaling, settings)[0]

  with jax.enable_x64(True):
    got = jax.jit(other)(jnp.asarray(START)) * last[0] / last[1]
    np.testing.assert_allclose(got, x, rtol=1e-9)


@pytest.mark.parametrize(
  ("name", "steps", "tolerance"),
  [("ddim", 400, 0.02), ("heun", 100, 1e-3), ("rk4", 30, 1e-4), ("rk45", 1, 1e-3)],
)
def test_inversion_then_sampling_returns_the_start(name, steps, tolerance):
  settings = Settings(sampler=name, frames=1)

  def there_and_back(x):
    grid = jnp.linspace(4.0, -6.0, steps + 1)
    for levels in (grid, grid[::-1]):
      x, *_ = sampler.solve(posterior_mean("vp"), KEYS[:3], x, levels, "vp", settings)
    return x

  x = jnp.asarray(START, jnp.float32)
  np.testing.assert_allclose(jax.jit(there_and_back)(x), x, atol=tolerance)


@pytest.mark.parametrize("name", ["linear", "cosine", "ve", "rectified_flow"])
def test_samples_of_every_schedule_come_by_the_exact_flow(name):
  schedule = SCHEDULES[name]
  runs = [
    (posterior_mean(schedule.scaling), Settings(sampler=sampler, steps=steps))
    for sampler, steps in [("ddim", 128), ("heun", 32), ("dpmpp_2m", 128)]
  ]
  start, *got = draw(schedule, (itself, Settings(steps=1)), *runs, keys=KEYS)
  alpha, sigma = (level[0] for level in levels(schedule, 1))
  spread = np.sqrt(alpha**2 * S**2 + sigma**2)
  exact = M + S * (start.images - alpha * M) / spread
  for samples in got:
    np.testing.assert_allclose(samples.images, exact, atol=0.05)


def test_ddim_on_rectified_flow_is_euler_on_the_velocity():
  schedule, steps = SCHEDULES["rectified_flow"], 10
  start, ddim, euler = draw(
    schedule,
    (itself, Settings(steps=1)),
    (posterior_mean("rf"), Settings(steps=steps)),
    (posterior_mean("rf"), Settings(steps=steps, sampler="euler")),
    keys=KEYS,
  )
  x = start.images.astype(np.float64)
  for i in range(steps):
    t = 1 - i / steps
    # E[eps - x | x_t] for t > 0, where sigma = t and alpha = 1 - t.
    gain = (1 - t) * S**2 / ((1 - t) ** 2 * S**2 + t**2)
    x_hat = M + gain * (x - (1 - t) * M)
    velocity = (x - (1 - t) * x_hat) / t - x_hat
    x = x - velocity / steps
  np.testing.assert_allclose(ddim.images, x, atol=2e-4)
  np.testing.assert_allclose(euler.images, x, atol=2e-4)


def test_euler_through_ve_is_ddim():
  first = Settings(steps=7, grid="logsnr")
  runs = [first, first._replace(sampler="euler", lens="ve")]
  ddim, euler = draw(
    SCHEDULES["cosine"], *((posterior_mean("vp"), run) for run in runs), keys=KEYS
  )
  np.testing.assert_allclose(euler.images, ddim.images, atol=1e-4)


# With noise.


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
  runs = [(denoise, Settings(sampler="ddpm", steps=steps)) for steps in (2, 20)]
  for samples, (_, settings) in zip(
    draw(schedule, *runs, keys=keys), runs, strict=True
  ):
    mean, var = ancestral_moments(schedule, settings.steps)
    values = samples.images.astype(np.float64)
    assert abs(values.mean() - mean) < 4 * np.sqrt(var / values.size)
    assert abs(values.var() - var) < 4 * var * np.sqrt(2 / values.size)
  # With many steps these are the data's own.
  mean, var = ancestral_moments(schedule, 1000)
  np.testing.assert_allclose([mean, np.sqrt(var)], [M, S], rtol=0.01)


@pytest.mark.parametrize(
  ("name", "settings"),
  [
    ("cosine", Settings(sampler="ddim", eta=0.5)),
    ("linear", Settings(sampler="ddpm", variance="large")),
    ("cosine", Settings(sampler="dpmpp_2m_sde", grid="logsnr")),
    ("edm", Settings(sampler="heun", churn=30.0)),
    ("cosine", Settings(sampler="rk4", lens="vp", churn=10.0)),
    ("ve", Settings(sampler="pc", grid="karras", corrector_snr=0.05)),
  ],
)
def test_samples_with_noise_have_the_datas_mean_and_variance(name, settings):
  # Pictures of some size, and a small ratio: the corrector is exact for endless ones,
  # and leaves a variance too large by snr^2 + 4 / size (here 0.018).
  schedule, keys = SCHEDULES[name], sample_keys(jax.random.key(1), 100)
  run = (posterior_mean(schedule.scaling), settings._replace(steps=200, frames=1))
  (samples,) = draw(schedule, run, keys=keys, shape=(16, 16, 1))
  values = samples.images.astype(np.float64)
  assert abs(values.mean() - M) < 0.015
  assert abs(values.std() / S - 1) < 0.02
  # The pixels, and the pictures, are independent.
  for axes, count in [((1, 2, 3), 256), (0, 100)]:
    assert abs(values.mean(axes).std() * np.sqrt(count) / S - 1) < 0.25


def test_noise_is_keyed_by_sample():
  for settings in (
    Settings(sampler="pc", steps=3),
    Settings(sampler="rk45", grid="logsnr"),
  ):
    run = (posterior_mean("vp"), settings)
    eight, first, last = (
      draw(SCHEDULES["cosine"], run, keys=keys)[0]
      for keys in (KEYS, sample_keys(jax.random.key(0), 4), KEYS[4:])
    )
    np.testing.assert_allclose(first.images, eight.images[:4], atol=1e-6)
    np.testing.assert_allclose(last.images, eight.images[4:], atol=1e-6)
    np.testing.assert_array_equal(last.nfe, eight.nfe[4:])
    assert len(np.unique(eight.images)) == eight.images.size


def test_churn_stays_within_its_bounds():
  # A bound nowhere on the grid, and none at all, against no churn.
  runs = [
    Settings(sampler="heun", steps=5),
    Settings(sampler="heun", steps=5, churn=5.0, churn_min=100.0),
    Settings(sampler="heun", steps=5, churn=5.0, churn_min=50.0),
  ]
  none, outside, inside = draw(
    SCHEDULES["edm"], *((posterior_mean("ve"), run) for run in runs), keys=KEYS
  )
  np.testing.assert_allclose(outside.images, none.images, rtol=1e-5)
  assert np.abs(inside.images - none.images).min() > 0


def test_a_learned_variance_is_the_one_it_says():
  def saying(fraction):
    def denoise(x_t, logsnr):
      x_hat, _ = posterior_mean("vp")(x_t, logsnr)
      return Estimate(x_hat, jnp.full_like(x_t, fraction))

    return denoise

  runs = [
    (saying(fraction), Settings(sampler="ddpm", variance=variance, steps=6))
    for fraction, variance in [
      (0.0, "learned"),
      (0.5, "small"),
      (1.0, "learned"),
      (0.5, "large"),
    ]
  ]
  low, small, high, large = draw(SCHEDULES["cosine"], *runs, keys=KEYS)
  np.testing.assert_allclose(low.images, small.images, atol=1e-5)
  np.testing.assert_allclose(high.images, large.images, atol=1e-5)
  assert np.abs(small.images - large.images).min() > 1e-4


def test_a_variance_that_no_network_learned_is_refused():
  settings = Settings(sampler="ddpm", variance="learned", steps=2)
  with pytest.raises(UserError, match="sample.variance='learned' needs a network"):
    sampler.sample(posterior_mean("vp"), KEYS, SHAPE, SCHEDULES["cosine"], settings)


# The grid.


def test_the_grid_of_ve_is_karras_eq_5():
  steps = 18
  i = np.arange(steps)
  big, small = 80 ** (1 / 7), 0.002 ** (1 / 7)
  want = (big + i / (steps - 1) * (small - big)) ** 7
  sigma = levels(SCHEDULES["edm"], steps)[1]
  np.testing.assert_allclose(sigma, np.append(want, 0), rtol=1e-5)
  # And so is the grid of that name, on any schedule that reaches as far.
  for name, sigma_max in [("edm", 80.0), ("cosine", 80.0), ("rectified_flow", 80.0)]:
    settings = Settings(steps=steps, grid="karras", sigma_max=sigma_max)
    grid = time_grid(SCHEDULES[name], settings)
    np.testing.assert_allclose(np.exp(-np.asarray(grid) / 2)[:-1], want[:], rtol=1e-4)


def test_the_grid_of_ddpm_has_its_noise_levels():
  betas = 1e-4 + (0.02 - 1e-4) * np.arange(1000) / 999
  alpha, _ = levels(SCHEDULES["linear"], 1000)
  np.testing.assert_allclose(alpha[:-1] ** 2, np.cumprod(1 - betas)[::-1], rtol=2e-4)


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_grid_falls_to_the_clean_end(name):
  schedule = SCHEDULES[name]
  own = np.asarray(schedule.logsnr(jnp.array([1.0, 0.0])))
  bounds = -2 * np.log(np.array([80.0, 0.002]))
  inside = np.array([max(own[0], bounds[0]), min(own[1], bounds[1])])
  kinds = [Settings(grid=kind) for kind in CHOICES["grid"] if kind != "leading"]
  sizes = (1, 2, 50)
  grids = jax.jit(
    lambda: [
      time_grid(schedule, kind._replace(steps=n)) for kind in kinds for n in sizes
    ]
  )()
  for i, grid in enumerate(grids):
    kind, steps = kinds[i // 3].grid, sizes[i % 3]
    assert grid.shape == (steps + 1,)
    assert np.isfinite(grid[:-1]).all()
    assert (np.diff(grid) > 0).all()
    assert grid[-1] == np.inf
    narrow = kind in ("logsnr", "karras")
    np.testing.assert_allclose(grid[0], (inside if narrow else own)[0], rtol=1e-5)
    if narrow and steps > 1:
      np.testing.assert_allclose(grid[-2], inside[1], rtol=1e-5)


def test_the_spacing_of_each_grid():
  schedule, steps = noise.discrete(SCHEDULES["rectified_flow"], 100), 9
  grids = {
    kind: np.asarray(time_grid(schedule, Settings(steps=steps, grid=kind)))[:-1]
    for kind in CHOICES["grid"]
  }
  t = {kind: 1 / (1 + np.exp(grid.astype(float) / 2)) for kind, grid in grids.items()}
  i = np.arange(steps, 0, -1)
  np.testing.assert_allclose(t["time"], i / steps, atol=1e-4)
  np.testing.assert_allclose(t["quadratic"], (i / steps) ** 2, atol=1e-4)
  np.testing.assert_allclose(np.diff(grids["logsnr"], 2), 0, atol=1e-4)
  np.testing.assert_allclose(t["leading"], np.arange(90, 0, -11) / 100, atol=1e-4)
  end = time_grid(schedule, Settings(steps=steps, grid="leading"))[-1]
  np.testing.assert_allclose(end, 2 * np.log(0.99 / 0.01), rtol=1e-5)


# What holds for any denoiser.


@pytest.mark.parametrize(
  ("settings", "calls"),
  [
    (Settings(sampler="ddpm", steps=5), 5),
    (Settings(sampler="heun", steps=5), 2 * 5 - 1),
    (Settings(sampler="heun", steps=1), 1),
    (Settings(sampler="rk4", steps=5, lens="vp"), 4 * 4 + 1),
    (Settings(sampler="pc", steps=5, corrector_steps=2), 5 + 2 * 4),
    (Settings(sampler="rk45", grid="logsnr"), None),
  ],
)
def test_evaluations_are_counted_and_no_others_made(settings, calls):
  made = []

  def counting(x_t, logsnr):
    jax.debug.callback(made.append, logsnr[0])
    return posterior_mean("vp")(x_t, logsnr)

  (samples,) = draw(SCHEDULES["cosine"], (counting, settings), keys=KEYS[:1])
  jax.effects_barrier()
  assert samples.nfe.tolist() == [len(made)]
  assert calls is None or len(made) == calls
  if calls is None:  # two calls for the first step, six for each, one for the last
    assert len(made) % 6 == 3


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("steps", [1, 3])
def test_the_last_step_is_the_estimate(name, steps):
  def constant(x_t, logsnr):
    return Estimate(jnp.full_like(x_t, 0.25), None)

  settings = Settings(sampler=name, steps=steps, grid="logsnr", frames=2)
  (samples,) = draw(SCHEDULES["cosine"], (constant, settings), keys=KEYS)
  np.testing.assert_allclose(samples.images, 0.25, atol=1e-6)
  np.testing.assert_array_equal(samples.frames[-1], samples.images)


@pytest.mark.parametrize("name", SAMPLERS)
def test_sampling_may_start_where_there_is_no_signal(name):
  # Lin et al. 2023: zero terminal SNR.
  cosine = SCHEDULES["cosine"].logsnr
  schedule = Schedule(lambda t: jnp.where(t == 1, -jnp.inf, cosine(t)))
  settings = Settings(sampler=name, steps=12)
  denoise = posterior_mean("vp")
  start, samples = draw(
    schedule, (itself, Settings(steps=1)), (denoise, settings), keys=KEYS
  )
  assert np.isfinite(samples.images).all()
  if name in DETERMINISTIC:
    np.testing.assert_allclose(samples.images, M + S * start.images, atol=0.3)


@pytest.mark.parametrize("name", ["ddim", "heun", "dpmpp_2m", "rk45", "pc", "ddpm"])
def test_a_grid_may_end_before_the_clean_end(name):
  grid, x = jnp.array([-2.0, -1.0, 0.5]), jnp.asarray(START, jnp.float32)
  settings = Settings(sampler=name, frames=2)

  def run(x):
    return sampler.solve(posterior_mean("vp"), KEYS[:3], x, grid, "vp", settings)

  got, frames, nfe = jax.jit(run)(x)
  assert frames.shape == (2, *x.shape)
  assert np.abs(got - frames[-1]).max() > 0.01 or name == "rk45"
  calls = {"ddim": 2, "heun": 4, "dpmpp_2m": 2, "pc": 4, "ddpm": 2}
  if name in calls:
    np.testing.assert_array_equal(nfe, calls[name])
  if name in DETERMINISTIC:
    np.testing.assert_allclose(got, flow(x, -2.0, 0.5, "vp"), atol=0.3)


def test_frames_are_evenly_spaced_estimates():
  schedule = SCHEDULES["rectified_flow"]
  cases = [(10, 4), (7, 3), (8, 1), (3, 9)]

  # Estimates that tell the time at which they were made.
  def tell(x_t, logsnr):
    t = noise.alpha_sigma(logsnr, "rf")[1]
    return Estimate(jnp.broadcast_to(noise.per_example(t, x_t), x_t.shape), None)

  runs = [(tell, Settings(steps=steps, frames=frames)) for steps, frames in cases]
  for (steps, frames), samples in zip(
    cases, draw(schedule, *runs, keys=KEYS), strict=True
  ):
    assert samples.frames.shape == (min(frames, steps), 8, *SHAPE)
    made = np.rint(steps * (1 - samples.frames[:, 0, 0, 0, 0])).astype(int) + 1
    gaps = np.diff(np.insert(made, 0, 0))
    assert made[-1] == steps
    assert gaps.min() >= 1
    assert gaps.max() - gaps.min() <= 1


def test_frames_of_rk45_follow_its_clock():
  def tell(x_t, logsnr):
    t = noise.alpha_sigma(logsnr, "rf")[1]
    return Estimate(jnp.broadcast_to(noise.per_example(t, x_t), x_t.shape), None)

  settings = Settings(sampler="rk45", frames=4, rtol=1e-6, atol=1e-6)
  (samples,) = draw(SCHEDULES["rectified_flow"], (tell, settings), keys=KEYS)
  times = samples.frames[:, :, 0, 0, 0]
  # The k-th frame is the last estimate in the k-th quarter, if there was one.
  ends = 1 - np.arange(1, 5)[:, None] / 4
  assert (times[:-1] > ends[:-1] - 0.03).all()
  assert (np.diff(times, axis=0) <= 0).all()
  np.testing.assert_array_equal(samples.frames[-1], samples.images)


# Settings.


def config(**fields):
  c = base.get_config()
  c.sample.update(fields)
  return c.sample


def test_settings_are_the_configs_fields():
  assert make_settings(config()) == Settings()
  found = make_settings(config(sampler="heun", lens="ve", churn=40.0))
  assert found == Settings(sampler="heun", lens="ve", churn=40.0)


@pytest.mark.parametrize(
  ("fields", "sentence"),
  [
    ({"sampler": "dimm"}, "sample.sampler='dimm' is unknown; did you mean 'ddim'"),
    ({"grid": "karas"}, "did you mean 'karras'"),
    ({"lens": "vpp"}, "did you mean 'vp'"),
    ({"variance": "larger"}, "did you mean 'large'"),
    ({"sampler": "rk45", "churn": 1.0}, "sample.churn=1.0 means nothing to .*'rk45'"),
    ({"sampler": "dpmpp_2m", "churn": 1.0}, "take one of euler, heun, rk4"),
    ({"sampler": "ddpm", "eta": 0.5}, "sample.eta=0.5 means nothing"),
    ({"sigma_min": 2.0, "sigma_max": 1.0}, "sample.sigma_min=2.0 must be below"),
  ],
)
def test_refusals(fields, sentence):
  with pytest.raises(UserError, match=sentence):
    make_settings(config(**fields))
