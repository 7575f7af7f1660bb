"""Every sampler against diffusers' scheduler, step for step: one model, one noise.

Where they choose other noise levels we are given theirs. All estimates of the clean
image on the way, and the picture, must agree to 1e-4 of their size.
"""

import functools
import math
from typing import NamedTuple

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from core import noise
from core.family import sample_keys
from diffusion import sampler, solvers
from diffusion.settings import Estimate, Settings, time_grid

# numpy 2 asks of tensors what PyTorch's do not say yet.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")

SCHEDULE = noise.linear()
SHAPE = (3, 4, 4, 2)
KEYS = sample_keys(jax.random.key(0), SHAPE[0])
LINEAR = {"beta_start": 1e-4, "beta_end": 0.02}
TRAILING = {**LINEAR, "timestep_spacing": "trailing"}


@functools.cache
def draw(i: int) -> torch.Tensor:
  """The noise of our step i, and with 0 where all start."""
  return torch.from_numpy(np.array(sampler.draw(KEYS, i, SHAPE[1:])))


@pytest.fixture
def queue(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
  """What diffusers draws: our noise, in order of our steps."""
  noises = [draw(i) for i in range(1, 40)]
  for name in ("ddpm", "euler_discrete", "edm_euler", "edm_dpmsolver_multistep"):
    module = getattr(diffusers.schedulers, f"scheduling_{name}")
    monkeypatch.setattr(module, "randn_tensor", lambda *args, **_: noises.pop(0))
  return noises


def network(xp: object, x: object, logsnr: object) -> object:
  """Any smooth function of x and the level serves; x in vp scaling, or rf."""
  return xp.tanh(0.7 * x) + 0.1 * xp.cos(xp.clip(logsnr, -20, 20) / 3)


class Path(NamedTuple):
  """The estimates of a sampler at each step, and its picture."""

  estimates: list[np.ndarray]
  picture: np.ndarray


def ours(
  settings: Settings,
  sigmas: np.ndarray,
  scaling: noise.Scaling,
  start: torch.Tensor,
  clip: bool = False,
) -> Path:
  """Our sampler over the levels sigma / alpha, 0 the clean end."""
  with np.errstate(divide="ignore"):
    grid = -2 * np.log(np.asarray(sigmas, np.float64))
  grid = jnp.asarray(grid, jnp.float32)

  def denoise(x_t: jax.Array, logsnr: jax.Array) -> Estimate:
    prediction = "velocity" if scaling == "rf" else "eps"
    x_in = x_t if scaling == "rf" else solvers.lensed(x_t, logsnr, scaling, "vp")
    output = network(jnp, x_in, noise.per_example(logsnr, x_t))
    x_hat, _ = noise.to_x_eps(output, x_t, logsnr, scaling, prediction)
    return Estimate(jnp.clip(x_hat, -1, 1) if clip else x_hat, fraction(jnp, x_in))

  settings = settings._replace(frames=len(sigmas) - 1)
  run = jax.jit(lambda x: sampler.solve(denoise, KEYS, x, grid, scaling, settings)[:2])
  picture, film = jax.device_get(run(jnp.asarray(start.numpy())))
  return Path(list(film), picture)


def fraction(xp: object, x: object) -> object:
  """A learned variance, in [0, 1]."""
  return 0.5 + 0.5 * xp.sin(3 * x)


def compare(ours: Path, theirs: Path) -> None:
  assert len(ours.estimates) == len(theirs.estimates)
  for one, other in zip(
    [*ours.estimates, ours.picture], [*theirs.estimates, theirs.picture], strict=True
  ):
    other = np.asarray(other)
    scale = max(1.0, float(np.abs(other).max()))
    np.testing.assert_allclose(one / scale, other / scale, atol=1e-4)


def eps_at(x_vp: torch.Tensor, sigma: float) -> torch.Tensor:
  """The network's eps at a level sigma / alpha."""
  return network(torch, x_vp, torch.tensor(-2 * math.log(sigma)))


def ratio(alpha_bar: torch.Tensor) -> np.ndarray:
  """sigma / alpha of diffusers' alphas_cumprod."""
  alpha_bar = alpha_bar.double().numpy()
  return np.sqrt((1 - alpha_bar) / alpha_bar)


def test_linear_betas() -> None:
  theirs = diffusers.DDPMScheduler(**LINEAR).alphas_cumprod.numpy()
  logsnr = SCHEDULE.logsnr(jnp.arange(1, 1001) / 1000)
  alpha, sigma = noise.alpha_sigma(logsnr, "vp")
  np.testing.assert_allclose(np.square(alpha), theirs, rtol=1e-4, atol=1e-7)
  np.testing.assert_allclose(np.square(sigma), 1 - theirs, rtol=1e-4, atol=1e-7)


def test_the_grid_of_time_is_trailing() -> None:
  scheduler = diffusers.DDIMScheduler(**TRAILING)
  for steps in (10, 50, 1000):
    scheduler.set_timesteps(steps)
    theirs = -2 * np.log(ratio(scheduler.alphas_cumprod[scheduler.timesteps]))
    grid = time_grid(SCHEDULE, Settings(steps=steps))[:-1]
    np.testing.assert_allclose(grid, theirs, atol=2e-3)


def test_the_grid_of_karras_is_theirs() -> None:
  scheduler = diffusers.EDMEulerScheduler(sigma_min=0.002, sigma_max=80.0)
  scheduler.set_timesteps(18)
  grid = time_grid(noise.edm(), Settings(steps=18, grid="karras"))
  np.testing.assert_allclose(np.exp(-grid / 2), scheduler.sigmas, rtol=1e-4)


def ancestral(
  scheduler: object, steps: int, **arguments: object
) -> tuple[np.ndarray, Path]:
  """(sigma / alpha, path) of a scheduler with discrete times and vp scaling."""
  scheduler.set_timesteps(steps)
  times = scheduler.timesteps
  sigmas = np.append(ratio(scheduler.alphas_cumprod[times]), 0)
  x, estimates = draw(0), []
  for i, (time, sigma) in enumerate(zip(times.tolist(), sigmas, strict=False)):
    out = eps_at(x, sigma)
    if scheduler.config.get("variance_type") == "learned_range":
      out = torch.cat([out, 2 * fraction(torch, x) - 1], dim=1)
    if arguments.get("eta"):
      arguments["variance_noise"] = draw(i + 1)
    out = scheduler.step(out, time, x, **arguments)
    x, _ = out.prev_sample, estimates.append(out.pred_original_sample)
  return sigmas, Path(estimates, x)


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("steps", [10, 25])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim(eta: float, steps: int, clip: bool) -> None:
  scheduler = diffusers.DDIMScheduler(**TRAILING, clip_sample=clip)
  sigmas, theirs = ancestral(scheduler, steps, eta=eta, use_clipped_model_output=True)
  settings = Settings(sampler="ddim", eta=eta)
  compare(ours(settings, sigmas, "vp", draw(0), clip), theirs)


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize(
  ("variance", "name"),
  [("small", "fixed_small"), ("large", "fixed_large"), ("learned", "learned_range")],
)
def test_ddpm(variance: str, name: str, clip: bool, queue: list) -> None:
  # "leading" ends at their time 0. From a later time they add noise even to the last
  # step, unlike Ho et al. 2020, algorithm 2.
  scheduler = diffusers.DDPMScheduler(
    **LINEAR, timestep_spacing="leading", variance_type=name, clip_sample=clip
  )
  sigmas, theirs = ancestral(scheduler, 20)
  settings = Settings(sampler="ddpm", variance=variance)
  compare(ours(settings, sigmas, "vp", draw(0), clip), theirs)


@pytest.mark.parametrize("steps", [8, 25])
def test_ddim_inverse(steps: int) -> None:
  # Their first step goes nowhere: it leaves the level of time 0 for that of time 0.
  scheduler = diffusers.DDIMInverseScheduler(
    **LINEAR, set_alpha_to_one=False, clip_sample=False
  )
  scheduler.set_timesteps(steps)
  times = scheduler.timesteps
  sigmas = ratio(scheduler.alphas_cumprod[torch.cat([times[:1], times])])
  x, estimates = 0.5 * draw(0), []
  for time, sigma in zip(times.tolist(), sigmas, strict=False):
    out = scheduler.step(eps_at(x, sigma), time, x)
    x, _ = out.prev_sample, estimates.append(out.pred_original_sample)
  compare(ours(Settings(), sigmas, "vp", 0.5 * draw(0)), Path(estimates, x))


def on_sigma(
  scheduler: object, steps: int, churn: float = 0.0, bounds: tuple = (0.0, 1e9)
) -> tuple[np.ndarray, torch.Tensor, Path]:
  """(sigma, start, path) of a scheduler under ve.

  They add churn to x after the network has seen it; EDM's algorithm 2 shows the network
  the noisier x, and so do we: it gets their next noise ahead of them.
  """
  scheduler.set_timesteps(steps)
  edm = isinstance(scheduler, diffusers.EDMEulerScheduler)
  sigmas = scheduler.sigmas.numpy()
  start = x = float(sigmas[0]) * draw(0)
  estimates = []
  for i, (time, sigma) in enumerate(zip(scheduler.timesteps, sigmas, strict=False)):
    scheduler.scale_model_input(x, time)
    arguments, seen = {}, x
    if churn > 0:
      names = ("s_churn", "s_tmin", "s_tmax", "s_noise")
      arguments = dict(zip(names, (churn, *bounds, 1.1), strict=True))
      inside = bounds[0] <= sigma <= bounds[1]
      gamma = min(churn / steps, 2**0.5 - 1) if inside else 0.0
      level = sigma * (1 + gamma)
      seen, sigma = x + 1.1 * (level**2 - sigma**2) ** 0.5 * draw(i + 1), level
    eps = eps_at(seen / math.hypot(sigma, 1), sigma)
    if edm:
      arguments["pred_original_sample"] = seen - sigma * eps
    out = scheduler.step(eps, time, x, **arguments)
    x, _ = out.prev_sample, estimates.append(out.pred_original_sample)
  return sigmas, start, Path(estimates, x)


@pytest.mark.parametrize("karras", [False, True])
@pytest.mark.parametrize("churn", [0.0, 6.0])
def test_euler(karras: bool, churn: float, queue: list) -> None:
  scheduler = diffusers.EulerDiscreteScheduler(**LINEAR, use_karras_sigmas=karras)
  sigmas, start, theirs = on_sigma(scheduler, 20, churn)
  settings = Settings(sampler="euler", steps=20, churn=churn, churn_noise=1.1)
  compare(ours(settings, sigmas, "ve", start), theirs)
  # The same under vp, through their lens.
  alpha = 1 / math.hypot(float(sigmas[0]), 1)
  under_vp = ours(settings._replace(lens="ve"), sigmas, "vp", alpha * start)
  compare(under_vp, theirs)


@pytest.mark.parametrize("churn", [0.0, 6.0])
def test_edm_euler(churn: float, queue: list) -> None:
  # Up to a bound: they draw noise from the first step to the last that has some.
  bounds = (0.05, 1e9)
  sigmas, start, theirs = on_sigma(diffusers.EDMEulerScheduler(), 18, churn, bounds)
  settings = Settings(
    sampler="euler", steps=18, churn=churn, churn_noise=1.1, churn_min=0.05
  )
  compare(ours(settings, sigmas, "ve", start), theirs)


@pytest.mark.parametrize("karras", [False, True])
def test_heun(karras: bool) -> None:
  scheduler = diffusers.HeunDiscreteScheduler(**LINEAR, use_karras_sigmas=karras)
  scheduler.set_timesteps(15)
  # They list each level but the first and the last twice.
  sigmas = scheduler.sigmas.numpy()
  start = x = float(sigmas[0]) * draw(0)
  estimates = []
  for i, time in enumerate(scheduler.timesteps):
    sigma = float(sigmas[i])
    first = scheduler.state_in_first_order
    out = scheduler.step(eps_at(x / math.hypot(sigma, 1), sigma), time, x)
    x = out.prev_sample
    if first:
      estimates.append(out.pred_original_sample)
  levels = np.append(sigmas[::2], 0)
  compare(ours(Settings(sampler="heun"), levels, "ve", start), Path(estimates, x))


@pytest.mark.parametrize("steps", [6, 20])  # they treat fewer than 15 differently
@pytest.mark.parametrize("karras", [False, True])
@pytest.mark.parametrize("name", ["dpmpp_2m", "dpmpp_2m_sde"])
def test_dpm_solver_multistep(name: str, karras: bool, steps: int) -> None:
  scheduler = diffusers.DPMSolverMultistepScheduler(
    **LINEAR,
    algorithm_type="sde-dpmsolver++" if name.endswith("sde") else "dpmsolver++",
    use_karras_sigmas=karras,
  )
  scheduler.set_timesteps(steps)
  sigmas = scheduler.sigmas.numpy()
  x, estimates = draw(0), []
  for i, (time, sigma) in enumerate(zip(scheduler.timesteps, sigmas, strict=False)):
    eps = eps_at(x, float(sigma))
    alpha = 1 / math.hypot(float(sigma), 1)
    estimates.append(x / alpha - float(sigma) * eps)
    x = scheduler.step(eps, time, x, variance_noise=draw(i + 1)).prev_sample
  compare(ours(Settings(sampler=name), sigmas, "vp", draw(0)), Path(estimates, x))


@pytest.mark.parametrize("steps", [6, 20])
@pytest.mark.parametrize("name", ["dpmpp_2m", "dpmpp_2m_sde"])
def test_edm_dpm_solver_multistep(name: str, steps: int, queue: list) -> None:
  scheduler = diffusers.EDMDPMSolverMultistepScheduler(
    algorithm_type="sde-dpmsolver++" if name.endswith("sde") else "dpmsolver++"
  )
  scheduler.set_timesteps(steps)
  sigmas = scheduler.sigmas.numpy()
  start = x = float(sigmas[0]) * draw(0)
  estimates = []
  for time, sigma in zip(scheduler.timesteps, sigmas, strict=False):
    x_hat = x - float(sigma) * eps_at(x / math.hypot(float(sigma), 1), float(sigma))
    estimates.append(x_hat)
    # The output that their preconditioning (sigma_data 0.5) turns into x_hat.
    total = float(sigma) ** 2 + 0.25
    out = (x_hat - 0.25 / total * x) / (float(sigma) * 0.5 / total**0.5)
    x = scheduler.step(out, time, x).prev_sample
  compare(ours(Settings(sampler=name), sigmas, "ve", start), Path(estimates, x))


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("name", ["euler", "heun"])
def test_flow_matching(name: str, shift: float) -> None:
  # From sigma = 1, where there is no signal.
  kind = "Euler" if name == "euler" else "Heun"
  scheduler = getattr(diffusers, f"FlowMatch{kind}DiscreteScheduler")(shift=shift)
  scheduler.set_timesteps(12)
  sigmas = scheduler.sigmas.numpy().astype(np.float64)
  levels = sigmas if name == "euler" else np.append(sigmas[::2], 0)
  x, estimates = draw(0), []
  for i, time in enumerate(scheduler.timesteps):
    sigma = sigmas[i]
    with np.errstate(divide="ignore"):
      logsnr = torch.tensor(2 * np.log((1 - sigma) / sigma), dtype=torch.float32)
    velocity = network(torch, x, logsnr)
    if name == "euler" or scheduler.state_in_first_order:
      estimates.append(x - sigma * velocity)
    x = scheduler.step(velocity, time, x).prev_sample
  with np.errstate(divide="ignore"):
    ratios = levels / (1 - levels)
  compare(ours(Settings(sampler=name), ratios, "rf", draw(0)), Path(estimates, x))


def test_score_sde_ve_predictor_and_corrector(monkeypatch: pytest.MonkeyPatch) -> None:
  # Their corrector takes the norms' mean over the batch, so it gets one picture. Their
  # pipeline corrects before it predicts; algorithm 4, and we, predict first.
  scheduler = diffusers.ScoreSdeVeScheduler(snr=0.16)
  steps = 30
  scheduler.set_timesteps(steps)
  scheduler.set_sigmas(steps)
  module = diffusers.schedulers.scheduling_sde_ve
  sigmas = scheduler.discrete_sigmas.flip(0)
  x = float(sigmas[0]) * draw(0)[:1]
  for i in range(steps - 1):
    fresh = draw(i + 1)[:1]
    monkeypatch.setattr(module, "randn_tensor", lambda *a, fresh=fresh, **k: fresh)
    sigma = float(sigmas[i])
    eps = eps_at(x / math.hypot(sigma, 1), sigma)
    t, s = (jnp.asarray(-2 * math.log(float(a))) for a in sigmas[i : i + 2])
    noises = jnp.asarray(fresh.numpy())
    args = (jnp.asarray(x.numpy()), jnp.asarray((x - sigma * eps).numpy()), noises)
    predicted = solvers.ddpm(*args, t, s, "ve", fraction=1.0)
    corrected = solvers.langevin(*args, t, "ve", 0.16)
    corrects = scheduler.step_correct(-eps / sigma, x).prev_sample
    time = (steps - 1 - i + 1e-3) / (steps - 1)  # they round down
    x = scheduler.step_pred(-eps / sigma, time, x).prev_sample
    for one, other in ((predicted, x), (corrected, corrects)):
      scale = float(other.abs().max())
      np.testing.assert_allclose(one / scale, other / scale, atol=1e-4)
