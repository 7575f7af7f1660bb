"""What decides the numbers of a sampler: its settings, its grid, what it calls.

After Karras et al. 2022 (EDM), table 1: solver, discretisation, scaling and churn are
settings of their own, and published samplers are points in their product, e.g.

  DDPM             sampler ddpm
  DDIM             sampler ddim, grid time or quadratic, or leading (Stable Diffusion)
  EDM              sampler heun, grid karras, lens ve; with churn > 0 their algorithm 2
  rectified flow   sampler euler, lens rf
  DPM-Solver++ 2M  sampler dpmpp_2m, grid logsnr; its SDE variant dpmpp_2m_sde
  score SDE        sampler pc, or rk45 for the probability-flow ODE
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from core import noise
from core.errors import UserError, unknown
from core.noise import Schedule
from core.ode import TABLEAUS

LOSSES = (*noise.PREDICTIONS, "vlb")
COUPLINGS = ("independent", "optimal")
# Samplers of one evaluation a step and their share of fresh noise; ddim has `eta`.
ETA = {"ddim": None, "ddpm": 1.0, "dpmpp_2m": 0.0, "dpmpp_2m_sde": 1.0}
SAMPLERS = (*ETA, *TABLEAUS, "rk45", "pc")
CHOICES = {
  "sampler": SAMPLERS,
  "grid": ("time", "quadratic", "leading", "logsnr", "karras"),
  "lens": ("own", "ve", "rf", "vp"),
  "variance": ("small", "large", "learned"),
}
# Fields that mean something to some samplers only: their neutral value, and whose.
MEANT_FOR = {
  "eta": (0.0, ("ddim",)),
  "churn": (0.0, tuple(TABLEAUS)),
}


class Estimate(NamedTuple):
  """What a denoiser says of x_t.

  Attributes:
    x: the estimate of the clean image.
    fraction: of a learned variance, in [0, 1] (`solvers.ddpm`); None if not learned.
  """

  x: Float[Array, "n ..."]
  fraction: Float[Array, "n ..."] | None


# (x_t in the model's own scaling, logsnr) -> Estimate.
Denoise = Callable[[Float[Array, "n ..."], Float[Array, " n"]], Estimate]


class Settings(NamedTuple):
  """The fields of `config.sample` that decide the numbers; see configs/base.py."""

  sampler: str = "ddim"
  steps: int = 50
  grid: str = "time"
  sigma_min: float = 0.002
  sigma_max: float = 80.0
  rho: float = 7.0
  lens: str = "own"
  eta: float = 0.0
  variance: str = "small"
  churn: float = 0.0
  churn_min: float = 0.0
  churn_max: float = 1e9
  churn_noise: float = 1.0
  corrector_steps: int = 1
  corrector_snr: float = 0.16
  rtol: float = 1e-5
  atol: float = 1e-5
  frames: int = 8


def make(sample: ConfigDict) -> Settings:
  """The Settings of `config.sample`.

  Raises:
    UserError: an unknown name, or a field that the sampler has no use for.
  """
  found = Settings(**{field: sample[field] for field in Settings._fields})
  for field, known in CHOICES.items():
    if getattr(found, field) not in known:
      raise unknown(f"sample.{field}", getattr(found, field), known)
  for field, (neutral, users) in MEANT_FOR.items():
    value = getattr(found, field)
    if value != neutral and found.sampler not in users:
      raise UserError(
        f"sample.{field}={value!r} means nothing to sample.sampler={found.sampler!r};"
        f" set it to {neutral!r}, or take one of {', '.join(users)}."
      )
  if found.sigma_min >= found.sigma_max:
    raise UserError(
      f"sample.sigma_min={found.sigma_min} must be below"
      f" sample.sigma_max={found.sigma_max}."
    )
  return found


def time_grid(
  schedule: Schedule, settings: Settings
) -> Float[Array, " {settings.steps}+1"]:
  """logsnr at `steps` levels, from noise on, increasing, and where the last step goes.

  That is +inf, the clean end, but for leading.

  time: at t = 1, 1 - 1/steps, ..., 1/steps, since t = 0 is the clean end; under ve it
    is not, sigma(0) is sigma_min > 0, so there down to 0 before it (Karras et al. 2022,
    eq. 5 and table 1).
  quadratic: at the squares of these t (Song et al. 2021, DDIM, appendix D.2).
  leading: with T = `noise.timesteps` at t = (i floor(T / steps) + 2) / T, i < steps,
    and at the end t = 1 / T; in 50 of 1000 timesteps, counted from 0, that is at 981,
    961, ..., 1 and then 0. The code of latent diffusion samples so, and diffusers' DDIM
    with timestep_spacing 'leading', steps_offset 1 and set_alpha_to_one False.
  logsnr: uniform in logsnr (Lu et al. 2022, DPM-Solver, section 3.3).
  karras: uniform in (sigma / alpha)^(1/rho) (Karras et al. 2022, eq. 5).

  The last two, and rk45 whatever its grid, run from sigma / alpha = sigma_max to
  sigma_min, or to the schedule's own ends where these are nearer.
  """
  steps = settings.steps
  if settings.grid == "leading" and settings.sampler != "rk45":
    count = schedule.timesteps
    at = np.arange(steps)[::-1] * (count // steps) + 2
    return schedule.logsnr(jnp.asarray(np.append(np.minimum(at, count), 1) / count))
  if settings.grid in ("time", "quadratic") and settings.sampler != "rk45":
    times = jnp.linspace(1.0, 0.0 if schedule.scaling == "ve" else 1 / steps, steps)
    times = times**2 if settings.grid == "quadratic" else times
    return jnp.append(schedule.logsnr(times), jnp.inf)
  ends = schedule.logsnr(jnp.array([1.0, 0.0]))
  low = jnp.maximum(ends[0], -2 * jnp.log(settings.sigma_max))
  high = jnp.minimum(ends[1], -2 * jnp.log(settings.sigma_min))
  if settings.grid == "logsnr":
    return jnp.append(jnp.linspace(low, high, steps), jnp.inf)
  rho = settings.rho
  roots = jnp.linspace(jnp.exp(-low / (2 * rho)), jnp.exp(-high / (2 * rho)), steps)
  return jnp.append(-2 * rho * jnp.log(roots), jnp.inf)


def check(config: ConfigDict) -> None:
  """Raises UserError for settings of the loss that are unknown or mean nothing."""
  settings = config.diffusion
  for field, known in (("loss", LOSSES), ("coupling", COUPLINGS)):
    if settings[field] not in known:
      raise unknown(f"diffusion.{field}", settings[field], known)
  if settings.learn_variance and not config.noise.timesteps:
    raise UserError(
      "diffusion.learn_variance is of discrete steps: set noise.timesteps, say to 1000."
    )
  own = "uniform" if config.noise.schedule != "edm" else "lognormal"
  density = own if config.noise.density == "own" else config.noise.density
  if density != "uniform" and (settings.loss == "vlb" or settings.learn_variance):
    raise UserError(
      "diffusion.loss='vlb' and diffusion.learn_variance weigh every noise level, and a"
      f" {density} density hardly draws the outermost; set noise.density to 'uniform'."
    )
  if config.noise.schedule == "learned" and settings.loss != "vlb":
    raise UserError(
      f"noise.schedule='learned' is learned by the bound: set diffusion.loss to 'vlb',"
      f" not {settings.loss!r}."
    )
  if config.noise.schedule == "learned" and config.noise.timesteps:
    raise UserError("noise.schedule='learned' needs noise.timesteps=0.")
  if settings.variance not in ("small", "large"):
    raise unknown("diffusion.variance", settings.variance, ("small", "large"))
  steps, timesteps = config.sample.steps, config.noise.timesteps
  if config.sample.grid == "leading" and steps > timesteps:
    raise UserError(
      f"sample.grid='leading' takes sample.steps={steps} of"
      f" noise.timesteps={timesteps}: set that to 1000, or sample.grid to 'time'."
    )
  if config.sample.grid == "leading" and config.sample.threshold != "none":
    raise UserError(
      "sample.grid='leading' ends short of the clean picture, where there is nothing to"
      " threshold: set sample.threshold to 'none', or sample.grid to 'time'."
    )
  early = config.sample.grid in ("time", "quadratic")
  if config.noise.zero_terminal and config.sample.lens == "ve" and early:
    raise UserError(
      "sample.lens='ve' cannot start where there is no signal, as noise.zero_terminal"
      " has it; set sample.lens to 'own', or sample.grid to 'logsnr'."
    )
  if config.data.low_size >= config.data.size:
    raise UserError(
      f"data.low_size={config.data.low_size} must be below data.size="
      f"{config.data.size}."
    )
  if config.sample.variance == "learned" and not settings.learn_variance:
    raise UserError(
      "sample.variance='learned' needs a model trained with diffusion.learn_variance."
    )
