"""The steps that samplers take: from one noise level to the next, as pure functions.

All know the clean image only by its estimate x_hat, and
eps_hat = (x_t - alpha_t x_hat) / sigma_t. t is the level a step leaves, s the level it
goes to; logsnr_s = +inf is the clean end. `share` = 1 - exp(logsnr_t - logsnr_s) is the
part of the noise variance at s that a step of DDPM renews.
"""

from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float

from core import noise
from core.noise import Scaling, alpha_sigma, per_example
from core.ode import Tableau


def ddim(
  x_t: Float[Array, "n ..."],
  x_hat: Float[Array, "n ..."],
  fresh: Float[Array, "n ..."] | None,
  logsnr_t: Float[Array, ""],
  logsnr_s: Float[Array, ""],
  scaling: Scaling,
  eta: float = 0.0,
) -> Float[Array, "n ..."]:
  """DDIM, and with eta = 1 DDPM.

  x_s = alpha_s x_hat + sqrt(sigma_s^2 - d^2) eps_hat + d fresh,
  d = eta sigma_s sqrt(share).

  Song et al. 2021 (DDIM), eqs. 12 and 16, on any scaling. eta = 1 draws from DDPM's
  posterior q(x_s | x_t, x_hat) (Ho et al. 2020, eqs. 6 and 7). eta = 0 needs no
  `fresh` noise, may go either way, and is Euler's method in sigma / alpha, so under
  the rectified-flow scaling in time too. At logsnr_s = +inf, x_s = x_hat.
  """
  logsnr = jnp.full(x_t.shape[:1], logsnr_t)
  eps_hat = noise.eps_of(x_hat, x_t, logsnr, scaling)
  alpha_s, sigma_s = alpha_sigma(logsnr_s, scaling)
  if eta == 0:
    return alpha_s * x_hat + sigma_s * eps_hat
  share = -jnp.expm1(logsnr_t - logsnr_s)
  keep = sigma_s * jnp.sqrt(jnp.maximum(1 - eta**2 * share, 0))
  return alpha_s * x_hat + keep * eps_hat + eta * sigma_s * jnp.sqrt(share) * fresh


def ddpm(
  x_t: Float[Array, "n ..."],
  x_hat: Float[Array, "n ..."],
  fresh: Float[Array, "n ..."],
  logsnr_t: Float[Array, ""],
  logsnr_s: Float[Array, ""],
  scaling: Scaling,
  fraction: Float[Array, "n ..."] | float = 0.0,
) -> Float[Array, "n ..."]:
  """DDPM: the posterior's mean, and noise between its variance and a larger one.

  log variance = fraction log(large) + (1 - fraction) log(small) (Nichol & Dhariwal
  2021, eq. 15), small = sigma_s^2 share the posterior's, large = sigma_t^2 share that
  of q(x_t | x_s): beta_t under vp (Ho et al. 2020, section 3.2), and under ve
  sigma_t^2 - sigma_s^2, the reverse-diffusion predictor (Song et al. 2021, eq. 46).
  The step to the clean end adds none.
  """
  mean = ddim(x_t, x_hat, jnp.zeros_like(x_t), logsnr_t, logsnr_s, scaling, eta=1.0)
  share = -jnp.expm1(logsnr_t - logsnr_s)
  sigma_t, sigma_s = (
    alpha_sigma(logsnr, scaling)[1] for logsnr in (logsnr_t, logsnr_s)
  )
  std = jnp.sqrt(share) * sigma_t**fraction * sigma_s ** (1 - fraction)
  return mean + jnp.where(jnp.isposinf(logsnr_s), 0.0, std) * fresh


def extrapolate(
  x_hat: Float[Array, "n ..."],
  before: Float[Array, "n ..."],
  logsnr_before: Float[Array, ""],
  logsnr_t: Float[Array, ""],
  logsnr_s: Float[Array, ""],
) -> Float[Array, "n ..."]:
  """DPM-Solver++ 2M: x_hat as it will be in the middle of the step.

  D = (1 + 1/2r) x_hat - 1/2r before, r = (logsnr_t - logsnr_before) /
  (logsnr_s - logsnr_t); `before` is the estimate at the step before this one.

  Lu et al. 2022 (DPM-Solver++), algorithm 2. `ddim` from D in place of x_hat is their
  step, and with eta = 1 that of SDE-DPM-Solver++ 2M (their section 5). The step to the
  clean end, one from pure noise, and one after no step at all are of first order:
  D = x_hat.
  """
  last, this = logsnr_t - logsnr_before, logsnr_s - logsnr_t
  known = jnp.isfinite(this) & (last != 0)
  half = jnp.where(known, this / (2 * jnp.where(last == 0, 1.0, last)), 0.0)
  return x_hat + half * (x_hat - before)


def churn(
  x_t: Float[Array, "n ..."],
  fresh: Float[Array, "n ..."],
  logsnr_t: Float[Array, ""],
  gamma: Float[Array, ""],
  scaling: Scaling,
  churn_noise: float = 1.0,
) -> tuple[Float[Array, "n ..."], Float[Array, ""]]:
  """(x, logsnr) at the noisier level sigma/alpha (1 + gamma), by adding noise.

  x = sigma' / (sigma (1 + gamma)) x_t + sigma' sqrt(1 - (1 + gamma)^-2) S_noise fresh,
  sigma' the new sigma: Karras et al. 2022, algorithm 2, lines 5 and 6, on any scaling
  and finite at logsnr = -inf. gamma = 0 changes nothing.
  """
  logsnr = logsnr_t - 2 * jnp.log1p(gamma)
  sigma_t, sigma = (alpha_sigma(level, scaling)[1] for level in (logsnr_t, logsnr))
  added = sigma * jnp.sqrt(-jnp.expm1(-2 * jnp.log1p(gamma)))
  return sigma / sigma_t / (1 + gamma) * x_t + added * churn_noise * fresh, logsnr


def langevin(
  x_t: Float[Array, "n ..."],
  x_hat: Float[Array, "n ..."],
  fresh: Float[Array, "n ..."],
  logsnr_t: Float[Array, ""],
  scaling: Scaling,
  snr: float,
) -> Float[Array, "n ..."]:
  """A corrector: x = x_t + e score + sqrt(2 e) fresh, at the same level.

  score = -eps_hat / sigma_t, e = 2 (snr |fresh| / |score|)^2: Song et al. 2021,
  algorithms 4 and 5, with the norms of each example by itself, not their mean over the
  batch, and without algorithm 5's factor 1 - beta_t, which is between 0.98 and 1.
  """
  logsnr = jnp.full(x_t.shape[:1], logsnr_t)
  eps_hat = noise.eps_of(x_hat, x_t, logsnr, scaling)
  score = -eps_hat / alpha_sigma(logsnr_t, scaling)[1]
  axes = tuple(range(1, x_t.ndim))
  squares = [jnp.sum(a**2, axis=axes, keepdims=True) for a in (fresh, score)]
  # A network that has learned nothing yet may give no score at all.
  some = squares[1] > 0
  e = jnp.where(some, 2 * snr**2 * squares[0] / jnp.where(some, squares[1], 1), 0)
  return x_t + e * score + jnp.sqrt(2 * e) * fresh


# The probability flow as an ODE. Through each lens it has a clock and a state
# y = x_t / norm such that dy/dclock is what a network may predict.

Lens = Scaling
SLOPES: dict[Lens, Literal["eps", "velocity", "v"]] = {
  "ve": "eps",
  "rf": "velocity",
  "vp": "v",
}


def clock(logsnr: Float[Array, "..."], lens: Lens) -> Float[Array, "..."]:
  """ve: sigma / alpha; rf: sigma / (alpha + sigma); vp: the angle atan(sigma / alpha).

  0 at the clean end. In [0, inf) under ve (Karras et al. 2022, eq. 4), [0, 1] under
  rf, [0, pi/2] under vp (Salimans & Ho 2022, appendix D).
  """
  alpha, sigma = alpha_sigma(logsnr, lens)
  return jnp.arctan2(sigma, alpha) if lens == "vp" else sigma


def logsnr_at(clock: Float[Array, "..."], lens: Lens) -> Float[Array, "..."]:
  """The inverse of `clock`."""
  if lens == "ve":
    return -2 * jnp.log(clock)
  if lens == "rf":
    return 2 * (jnp.log1p(-clock) - jnp.log(clock))
  # In float32 the cosine of pi / 2 is negative.
  cos = jnp.maximum(jnp.cos(clock), 0)
  return 2 * (jnp.log(cos) - jnp.log(jnp.sin(clock)))


def norm(
  logsnr: Float[Array, "..."], scaling: Scaling, lens: Lens
) -> Float[Array, "..."]:
  """What x_t is divided by to be seen through the lens.

  ve: alpha; rf: alpha + sigma; vp: sqrt(alpha^2 + sigma^2). Exactly 1 if the lens is
  the scaling itself. Pure noise (alpha = 0) can't be seen through ve.
  """
  if lens == scaling:
    return jnp.ones_like(logsnr)
  alpha, sigma = alpha_sigma(logsnr, scaling)
  if lens == "ve":
    return alpha
  return alpha + sigma if lens == "rf" else jnp.sqrt(alpha**2 + sigma**2)


def slope(
  x_hat: Float[Array, "n ..."],
  x_t: Float[Array, "n ..."],
  logsnr: Float[Array, " n"],
  scaling: Scaling,
  lens: Lens,
) -> Float[Array, "n ..."]:
  """dy / dclock of the probability flow, y = x_t / norm.

  ve: eps_hat (Karras et al. 2022, eq. 3); rf: eps_hat - x_hat (Liu et al. 2022, eq. 1);
  vp: v = cos eps_hat - sin x_hat of the angle (Salimans & Ho 2022, eq. 36).
  """
  eps_hat = noise.eps_of(x_hat, x_t, logsnr, scaling)
  return noise.target(x_hat, eps_hat, logsnr, lens, SLOPES[lens])


def estimate(
  slope: Float[Array, "n ..."],
  y: Float[Array, "n ..."],
  logsnr: Float[Array, " n"],
  lens: Lens,
) -> Float[Array, "n ..."]:
  """x_hat from `slope` and the state y: its inverse."""
  return noise.to_x_eps(slope, y, logsnr, lens, SLOPES[lens])[0]


def levels(
  logsnr_t: Float[Array, ""], logsnr_s: Float[Array, ""], tableau: Tableau, lens: Lens
) -> Float[Array, " k"]:
  """logsnr at each stage of a Runge-Kutta step; both ends exactly."""
  c, t, s = jnp.asarray(tableau.c), clock(logsnr_t, lens), clock(logsnr_s, lens)
  inside = logsnr_at(t + c * (s - t), lens)
  return jnp.where(c == 0, logsnr_t, jnp.where(c == 1, logsnr_s, inside))


def lensed(
  x: Float[Array, "n ..."], logsnr: Float[Array, " n"], scaling: Scaling, lens: Lens
) -> Float[Array, "n ..."]:
  """y = x / norm."""
  return x / per_example(norm(logsnr, scaling, lens), x)


def unlensed(
  y: Float[Array, "n ..."], logsnr: Float[Array, " n"], scaling: Scaling, lens: Lens
) -> Float[Array, "n ..."]:
  """x = norm y."""
  return y * per_example(norm(logsnr, scaling, lens), y)
