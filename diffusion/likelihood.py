"""How likely a picture is under a diffusion: bounds on it, and its exact value.

All are in nats an example, of a denoiser and a schedule.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from core import noise
from core.levels import BIN, total
from core.noise import Schedule, alpha_sigma, per_example
from core.ode import rk45
from diffusion import solvers
from diffusion.settings import Denoise


def prior(x: Float[Array, "b ..."], schedule: Schedule) -> Float[Array, " b"]:
  """KL(q(x_1 | x) || N(0, s^2)), s the deviation that sampling starts from.

  (alpha^2 x^2 + sigma^2) / s^2 - 1 - log(sigma^2 / s^2), halved and summed: L_T of Ho
  et al. 2020, eq. 5; VDM, eq. 11.
  """
  logsnr = schedule.logsnr(jnp.ones(()))
  alpha, sigma = alpha_sigma(logsnr, schedule.scaling)
  std = noise.prior_std(logsnr, schedule.scaling)
  ratio = (sigma / std) ** 2
  return total((alpha * x / std) ** 2 + ratio - 1 - jnp.log(ratio)) / 2


# Discrete time: Ho et al. 2020.


def decoder(
  x: Float[Array, "b ..."],
  mean: Float[Array, "b ..."],
  log_variance: Float[Array, "b ..."],
) -> Float[Array, "b ..."]:
  """-log p(x | x_1) of 256 pixel values: a normal, integrated over x's bin.

  Ho et al. 2020, eq. 13: the outermost bins reach to infinity.
  """
  scale = jnp.exp(-log_variance / 2)
  high = jax.scipy.stats.norm.logcdf((x - mean + BIN / 2) * scale)
  low = jax.scipy.stats.norm.logcdf((x - mean - BIN / 2) * scale)
  above = jax.scipy.stats.norm.logcdf(-(x - mean - BIN / 2) * scale)
  # The difference of two CDFs, taken in the tail where it does not cancel.
  mirrored = jax.scipy.stats.norm.logcdf(-(x - mean + BIN / 2) * scale)
  left = high + jnp.log(-jnp.expm1(jnp.minimum(low - high, -1e-6)))
  right = above + jnp.log(-jnp.expm1(jnp.minimum(mirrored - above, -1e-6)))
  inside = jnp.where(x > mean, right, left)
  edge = 1 - BIN / 4
  return -jnp.where(x < -edge, high, jnp.where(x > edge, above, inside))


def step(
  x: Float[Array, "b ..."],
  x_hat: Float[Array, "b ..."],
  fraction: Float[Array, "b ..."] | None,
  t: Float[Array, " b"],
  schedule: Schedule,
  variance: str,
) -> Float[Array, " b"]:
  """The term of the discrete bound at t = i / T, i = 1, ..., T.

  i > 1: KL(q(x_s | x_t, x) || p(x_s | x_t)), s = t - 1/T; i = 1: `decoder`. p has the
  posterior's mean at x_hat and one of three variances (Ho et al. 2020, section 3.2;
  Nichol & Dhariwal 2021, eq. 15): small, the posterior's own (at i = 1 that of i = 2);
  large; learned, the geometric mean of both by `fraction`. The means differ by
  alpha_s share (x - x_hat), share = 1 - SNR_t / SNR_s.
  """
  steps, scaling = schedule.timesteps, schedule.scaling
  first = t < 1.5 / steps
  logsnr_t = schedule.logsnr(t)
  # At i = 1 what follows must be finite, though it is not used.
  logsnr_s = jnp.where(first, logsnr_t + 30, schedule.logsnr(t - 1 / steps))
  small, large = noise.posterior_log_variances(logsnr_t, logsnr_s, scaling)
  second = noise.posterior_log_variances(
    *schedule.logsnr(jnp.array([2.0, 1.0]) / steps), scaling
  )[0]
  log_q, log_small, log_large = (
    per_example(a, x) for a in (small, jnp.where(first, second, small), large)
  )
  match variance:
    case "small":
      log_p = jnp.broadcast_to(log_small, x.shape)
    case "large":
      log_p = jnp.broadcast_to(log_large, x.shape)
    case _:
      log_p = fraction * log_large + (1 - fraction) * log_small
  share = per_example(-jnp.expm1(logsnr_t - logsnr_s), x)
  off = per_example(alpha_sigma(logsnr_s, scaling)[0], x) * share * (x - x_hat)
  kl = (log_p - log_q + jnp.exp(log_q - log_p) + off**2 * jnp.exp(-log_p) - 1) / 2
  return jnp.where(first, total(decoder(x, x_hat, log_p)), total(kl))


# Continuous time: Kingma et al. 2021 (VDM).


def continuous_weight(
  u: Float[Array, " b"], schedule: Schedule
) -> tuple[Float[Array, " b"], Float[Array, " b"]]:
  """(logsnr, w) with the diffusion loss = E_u[w |eps - eps_hat|^2], u ~ U(0, 1).

  VDM, eq. 17: w = -1/2 d logsnr / d t, divided by the density of t where that is not
  uniform: both are one derivative in u.
  """

  def level(u: Float[Array, " b"]) -> Float[Array, " b"]:
    return schedule.logsnr(schedule.density(u))

  logsnr, slope = jax.jvp(level, (u,), (jnp.ones_like(u),))
  return logsnr, -slope / 2


def reconstruction(
  x: Float[Array, "b ..."], eps: Float[Array, "b ..."], logsnr: Float[Array, ""]
) -> Float[Array, " b"]:
  """-log p(x | x_0), a draw of it: the softmax of q(x_0 | value) over 256 values.

  VDM, section 3.3 and appendix: -SNR_0 / 2 (x + eps / SNR_0^(1/2) - value)^2, with
  the logsnr at which the picture is read off.
  """
  seen = x + eps * jnp.exp(-logsnr / 2)

  def logit(value: Float[Array, "..."]) -> Float[Array, "..."]:
    return -jnp.exp(logsnr) / 2 * (seen - value) ** 2

  def add(sofar: Float[Array, "..."], k: Array) -> tuple[Float[Array, "..."], None]:
    return jnp.logaddexp(sofar, logit(k * BIN - 1)), None

  @jax.checkpoint
  def add_row(
    sofar: Float[Array, "..."], row: Array
  ) -> tuple[Float[Array, "..."], None]:
    return jax.lax.scan(add, sofar, row)

  # Value by value, and 16 rows of 16 recomputed in the backward pass: all 256 at once
  # would need as many times the memory.
  rows = jnp.arange(256).reshape(16, 16)
  norm, _ = jax.lax.scan(add_row, jnp.full_like(x, -jnp.inf), rows)
  return total(norm - logit(jnp.round((x + 1) / BIN) * BIN - 1))


# Exact: the probability flow.


def ode_nats(
  denoise: Denoise,
  x: Float[Array, "b ..."],
  keys: Key[Array, " b"],
  schedule: Schedule,
  *,
  probes: int,
  tolerance: float,
) -> tuple[Float[Array, " b"], Array]:
  """(-log p(x), evaluations of the denoiser), x continuous.

  The flow dy / d phi = v of the variance-preserving process with alpha = cos(phi)
  (Salimans & Ho 2022, appendix D) carries x from logsnr(0) to logsnr(1), where it is
  standard normal, and log p changes by the integral of its divergence (Song et al.
  2021, eq. 39). The divergence is estimated with `probes` random signs (Hutchinson;
  Song et al., eq. 40), or exact with one derivative a dimension if `probes` is 0.
  """
  shape, dims = x.shape, math.prod(x.shape[1:])
  high, low = schedule.logsnr(jnp.array([0.0, 1.0], x.dtype))
  start, end = (solvers.clock(level, "vp") for level in (high, low))

  def velocity(
    y: Float[Array, "b ..."], phi: Float[Array, " b"]
  ) -> Float[Array, "b ..."]:
    logsnr = solvers.logsnr_at(phi, "vp")
    x_t = solvers.unlensed(y, logsnr, schedule.scaling, "vp")
    x_hat, _ = denoise(x_t, logsnr)
    return solvers.slope(x_hat, x_t, logsnr, schedule.scaling, "vp")

  if probes:
    signs = jax.vmap(
      lambda key: jax.random.rademacher(key, (probes, *shape[1:]), x.dtype)
    )(keys).swapaxes(0, 1)
  else:
    signs = jnp.eye(dims, dtype=x.dtype).reshape(dims, 1, *shape[1:])
    signs = jnp.broadcast_to(signs, (dims, *shape))

  def slope(
    state: tuple[Float[Array, "b ..."], Float[Array, " b"]], phi: Float[Array, " b"]
  ) -> tuple[Float[Array, "b ..."], Float[Array, " b"]]:
    value, pull = jax.vjp(lambda y: velocity(y, phi), state[0])
    traces = jax.lax.map(lambda sign: total(sign * pull(sign)[0]), signs)
    return value, traces.mean(0) if probes else traces.sum(0)

  # At logsnr(0) what is left of the noise is ignored: y = alpha x.
  scale = jnp.cos(start)
  blank = jnp.zeros(len(x), x.dtype)
  (y, change), calls = rk45(
    slope,
    (scale * x, blank),
    jnp.full_like(blank, start),
    jnp.full_like(blank, end),
    rtol=tolerance,
    atol=tolerance,
    max_steps=10_000,
  )
  log_normal = -total(y**2) / 2 - dims / 2 * math.log(2 * math.pi)
  return -(log_normal + change + dims * jnp.log(scale)), calls


def dims(shape: tuple[int, ...]) -> int:
  """How many numbers an example has."""
  return math.prod(shape)
