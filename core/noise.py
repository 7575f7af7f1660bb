"""The noise-schedule module: how much signal and how much noise at time t.

Every Gaussian process here is written

    x_t = alpha x + sigma eps,   eps ~ N(0, I),   logsnr = log(alpha^2 / sigma^2),

with t in [0, 1], 0 clean and 1 noise. A `Schedule` is logsnr(t), decreasing,
plus the *scaling* that turns a logsnr into alpha and sigma:

    vp   alpha^2 + sigma^2 = 1   variance preserving (Ho et al. 2020, DDPM)
    ve   alpha = 1               variance exploding  (Song et al. 2021)
    rf   alpha + sigma = 1       rectified flow      (Liu et al. 2022)

The same logsnr under two scalings is the same process seen through another
lens (Kingma et al. 2021, VDM, section 5.1), so networks are conditioned on
logsnr and nothing else.
"""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtri
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from core.errors import UserError, unknown

Scaling = Literal["vp", "ve", "rf"]
Prediction = Literal["x", "eps", "v", "score", "velocity"]

LOGSNR_LIMIT = 20.0  # both ends stay finite: they are inputs of a network


def _identity(u: Float[Array, "..."]) -> Float[Array, "..."]:
  return u


class Schedule(NamedTuple):
  """logsnr(t), the scaling, and the density of t in training.

  Attributes:
    logsnr: t in [0, 1] -> log(alpha^2 / sigma^2), finite and strictly decreasing,
      but for slivers at the ends where it is held at a bound.
    scaling: 'vp', 've' or 'rf', see the module's docstring.
    density: u ~ U(0, 1) -> t, the inverse of the training density's
      distribution function.
  """

  logsnr: Callable[[Float[Array, "..."]], Float[Array, "..."]]
  scaling: Scaling = "vp"
  density: Callable[[Float[Array, "..."]], Float[Array, "..."]] = _identity


def alpha_sigma(
  logsnr: Float[Array, "..."], scaling: Scaling
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
  """(alpha, sigma) of a logsnr, +inf (no noise) included.

  vp: alpha^2 = sigmoid(logsnr); ve: sigma = exp(-logsnr / 2);
  rf: alpha = sigmoid(logsnr / 2).
  """
  if scaling == "vp":
    return jnp.sqrt(jax.nn.sigmoid(logsnr)), jnp.sqrt(jax.nn.sigmoid(-logsnr))
  if scaling == "ve":
    return jnp.ones_like(logsnr), jnp.exp(-logsnr / 2)
  return jax.nn.sigmoid(logsnr / 2), jax.nn.sigmoid(-logsnr / 2)


def input_scale(logsnr: Float[Array, "..."], scaling: Scaling) -> Float[Array, "..."]:
  """What x_t is multiplied by before a network sees it.

  1 for vp and rf, whose x_t is of order one at every t, and 1/sqrt(1 + sigma^2)
  for ve, whose x_t grows with sigma (Karras et al. 2022, table 1, c_in with
  unit data variance).
  """
  if scaling == "ve":
    return jnp.sqrt(jax.nn.sigmoid(logsnr))
  return jnp.ones_like(logsnr)


def per_example(
  a: Float[Array, " b"], x: Float[Array, "b ..."]
) -> Float[Array, "b ..."]:
  """`a`, one number an example, shaped to broadcast over `x`."""
  return a.reshape(a.shape + (1,) * (x.ndim - a.ndim))


def diffuse(
  x: Float[Array, "b ..."],
  eps: Float[Array, "b ..."],
  logsnr: Float[Array, " b"],
  scaling: Scaling,
) -> Float[Array, "b ..."]:
  """x_t = alpha x + sigma eps."""
  alpha, sigma = alpha_sigma(per_example(logsnr, x), scaling)
  return alpha * x + sigma * eps


def target(
  x: Float[Array, "b ..."],
  eps: Float[Array, "b ..."],
  logsnr: Float[Array, " b"],
  scaling: Scaling,
  prediction: Prediction,
) -> Float[Array, "b ..."]:
  """What a network of that prediction type should output.

  x; eps; v = alpha eps - sigma x (Salimans & Ho 2022, section 4);
  score = -eps / sigma; velocity = eps - x (d x_t / d t of rectified flow).
  """
  alpha, sigma = alpha_sigma(per_example(logsnr, x), scaling)
  match prediction:
    case "x":
      return x
    case "eps":
      return eps
    case "v":
      return alpha * eps - sigma * x
    case "score":
      return -eps / sigma
    case "velocity":
      return eps - x
  raise ValueError(f"unknown prediction {prediction!r}")


def to_x_eps(
  output: Float[Array, "b ..."],
  x_t: Float[Array, "b ..."],
  logsnr: Float[Array, " b"],
  scaling: Scaling,
  prediction: Prediction,
) -> tuple[Float[Array, "b ..."], Float[Array, "b ..."]]:
  """(x, eps) from a network's output at x_t: the inverse of `target`.

  Each pair solves x_t = alpha x + sigma eps together with the definition of
  the prediction; e.g. v: x = (alpha x_t - sigma v) / (alpha^2 + sigma^2).
  """
  alpha, sigma = alpha_sigma(per_example(logsnr, x_t), scaling)
  match prediction:
    case "x":
      return output, (x_t - alpha * output) / sigma
    case "eps":
      return (x_t - sigma * output) / alpha, output
    case "v":
      norm = alpha**2 + sigma**2
      return (alpha * x_t - sigma * output) / norm, (
        sigma * x_t + alpha * output
      ) / norm
    case "score":
      eps = -sigma * output
      return (x_t - sigma * eps) / alpha, eps
    case "velocity":
      norm = alpha + sigma
      return (x_t - sigma * output) / norm, (x_t + alpha * output) / norm
  raise ValueError(f"unknown prediction {prediction!r}")


def eps_of(
  x: Float[Array, "b ..."],
  x_t: Float[Array, "b ..."],
  logsnr: Float[Array, " b"],
  scaling: Scaling,
) -> Float[Array, "b ..."]:
  """eps = (x_t - alpha x) / sigma, the noise that goes with a (clipped) x."""
  return to_x_eps(x, x_t, logsnr, scaling, "x")[1]


# The schedules, each a closed form of logsnr(t).


def _bounded(logsnr: Float[Array, "..."]) -> Float[Array, "..."]:
  return jnp.clip(logsnr, -LOGSNR_LIMIT, LOGSNR_LIMIT)


def linear(
  beta_start: float = 1e-4, beta_end: float = 0.02, timesteps: int = 1000
) -> Schedule:
  """DDPM's linear betas (Ho et al. 2020, section 4).

  alpha^2 at t = i / timesteps is prod_{j<=i} (1 - beta_j), beta linear in j
  from beta_start to beta_end; logsnr is interpolated between these times and
  constant before the first.
  """
  betas = jnp.linspace(beta_start, beta_end, timesteps)
  log_alpha2 = jnp.cumsum(jnp.log1p(-betas))
  table = log_alpha2 - jnp.log(-jnp.expm1(log_alpha2))
  knots = jnp.arange(1, timesteps + 1) / timesteps
  return Schedule(lambda t: jnp.interp(t, knots, table))


def cosine() -> Schedule:
  """alpha = cos(pi t / 2), so logsnr = -2 log tan(pi t / 2).

  Nichol & Dhariwal 2021 (iDDPM), eq. 17 without its offset s, the continuous
  form of Hoogeboom et al. 2023 (simple diffusion), section 2.
  """

  def log_sin(t: Float[Array, "..."]) -> Float[Array, "..."]:
    return jnp.log(jnp.sin(jnp.pi * t / 2))

  # The cosine as the sine of 1 - t: in float32, cos and tan of pi / 2 are negative.
  return Schedule(lambda t: _bounded(2 * (log_sin(1 - t) - log_sin(t))))


def sigmoid(start: float = -3.0, end: float = 3.0, tau: float = 1.0) -> Schedule:
  """alpha^2 = (S(end) - S(start + t (end - start))) / (S(end) - S(start)).

  S(a) = sigmoid(a / tau); Jabri et al. 2022 (RIN) and Chen 2023, algorithm 1. With
  S(a) - S(b) = sinh((a - b) / 2 tau) / (2 cosh(a / 2 tau) cosh(b / 2 tau)) and
  h = (end - start) / 2 tau,

    logsnr = log sinh(h (1 - t)) - log sinh(h t)
             + log cosh(start / 2 tau) - log cosh(end / 2 tau),

  which does not cancel near the ends as the difference of two sigmoids does.
  """
  h = (end - start) / (2 * tau)
  low, high = (math.log(math.cosh(a / (2 * tau))) for a in (start, end))

  def log_sinh(a: Float[Array, "..."]) -> Float[Array, "..."]:
    return a + jnp.log(-jnp.expm1(-2 * a))  # and - log 2, which the difference drops

  return Schedule(
    lambda t: _bounded(log_sinh(h * (1 - t)) - log_sinh(h * t) + low - high)
  )


def ve(sigma_min: float = 0.01, sigma_max: float = 50.0) -> Schedule:
  """sigma = sigma_min (sigma_max / sigma_min)^t (Song et al. 2021, eq. 31)."""
  low, high = math.log(sigma_min), math.log(sigma_max)
  return Schedule(lambda t: -2 * (low + t * (high - low)), scaling="ve")


def edm(
  sigma_min: float = 0.002,
  sigma_max: float = 80.0,
  rho: float = 7.0,
  p_mean: float = -1.2,
  p_std: float = 1.2,
) -> Schedule:
  """Karras et al. 2022: sampling times of eq. 5, training noise of table 1.

  sigma(t) = (sigma_min^(1/rho) + t (sigma_max^(1/rho) - sigma_min^(1/rho)))^rho
  at t = 1 - i / (N - 1), i < N, and log sigma ~ N(p_mean, p_std^2) in training,
  clipped to [sigma_min, sigma_max].
  """
  low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)

  def logsnr(t: Float[Array, "..."]) -> Float[Array, "..."]:
    return -2 * rho * jnp.log(low + t * (high - low))

  def density(u: Float[Array, "..."]) -> Float[Array, "..."]:
    sigma = jnp.exp(p_mean + p_std * ndtri(u))
    return jnp.clip((sigma ** (1 / rho) - low) / (high - low), 0, 1)

  return Schedule(logsnr, scaling="ve", density=density)


def rectified_flow() -> Schedule:
  """alpha = 1 - t, sigma = t: straight paths (Liu et al. 2022, eq. 1)."""
  return Schedule(lambda t: _bounded(2 * (jnp.log1p(-t) - jnp.log(t))), scaling="rf")


def shifted(schedule: Schedule, shift: float) -> Schedule:
  """logsnr - 2 log(shift): a shift above 1 keeps large pictures noisy for longer.

  Hoogeboom et al. 2023, section 3.1 (shift = size / 64); for rectified flow it is
  the time shift of Esser et al. 2024 (Stable Diffusion 3), eq. 23:
  t -> shift t / (1 + (shift - 1) t). The density of t stays, so the noise levels seen
  in training move as those of sampling do.
  """
  offset = 2 * math.log(shift)
  return schedule._replace(logsnr=lambda t: _bounded(schedule.logsnr(t) - offset))


def logit_normal(
  u: Float[Array, "..."], mean: float = 0.0, std: float = 1.0
) -> Float[Array, "..."]:
  """t = sigmoid(mean + std * ndtri(u)) (Esser et al. 2024, eq. 19)."""
  return jax.nn.sigmoid(mean + std * ndtri(u))


SCHEDULES = {
  "linear": linear,
  "cosine": cosine,
  "sigmoid": sigmoid,
  "ve": ve,
  "edm": edm,
  "rectified_flow": rectified_flow,
}


def make(config: ConfigDict) -> Schedule:
  """The schedule of `config.noise`: `schedule`, `density` and `shift`.

  `density` is 'own' (what the schedule brings: uniform, or EDM's lognormal),
  'uniform' or 'logit_normal'.

  Raises:
    UserError: unknown schedule or density, or a shift that is not positive.
  """
  if config.schedule not in SCHEDULES:
    raise unknown("noise.schedule", config.schedule, SCHEDULES)
  if config.shift <= 0:
    raise UserError(f"noise.shift={config.shift} must be positive; 1 changes nothing.")
  schedule = SCHEDULES[config.schedule]()
  match config.density:
    case "own":
      pass
    case "uniform":
      schedule = schedule._replace(density=_identity)
    case "logit_normal":
      schedule = schedule._replace(density=logit_normal)
    case other:
      raise unknown("noise.density", other, ("own", "uniform", "logit_normal"))
  return schedule if config.shift == 1 else shifted(schedule, config.shift)
