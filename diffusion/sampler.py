"""Sampling from a diffusion: ancestral (DDPM) and DDIM steps, one compiled scan."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from core import noise
from core.family import Samples
from core.noise import Schedule, alpha_sigma

ETA = {"ddim": 0.0, "ddpm": 1.0}  # sampler's name -> share of fresh noise


def step(
  x_t: Float[Array, "n ..."],
  x_hat: Float[Array, "n ..."],
  fresh: Float[Array, "n ..."],
  logsnr_t: Float[Array, ""],
  logsnr_s: Float[Array, ""],
  schedule: Schedule,
  eta: float,
) -> Float[Array, "n ..."]:
  """From time t to an earlier time s, given the estimate x_hat of the clean image.

  x_s = alpha_s x_hat + sqrt(sigma_s^2 - d^2) eps_hat + d fresh,
  d = eta sigma_s sqrt(1 - exp(logsnr_t - logsnr_s)),
  eps_hat = (x_t - alpha_t x_hat) / sigma_t.

  Song et al. 2021 (DDIM), eqs. 12 and 16, on any scaling. eta = 1 draws from
  DDPM's posterior q(x_s | x_t, x_hat) (Ho et al. 2020, eqs. 6 and 7); eta = 0 is
  deterministic, and under the rectified-flow scaling exactly Euler's method.
  logsnr_s may be +inf (no noise): then x_s = x_hat.
  """
  logsnr = jnp.full(x_t.shape[:1], logsnr_t)
  eps_hat = noise.eps_of(x_hat, x_t, logsnr, schedule.scaling)
  alpha_s, sigma_s = alpha_sigma(logsnr_s, schedule.scaling)
  share = -jnp.expm1(logsnr_t - logsnr_s)  # of the noise at s that is new
  keep = sigma_s * jnp.sqrt(jnp.maximum(1 - eta**2 * share, 0))
  return alpha_s * x_hat + keep * eps_hat + eta * sigma_s * jnp.sqrt(share) * fresh


def time_grid(schedule: Schedule, steps: int) -> Float[Array, " {steps}+1"]:
  """logsnr at `steps` times from t = 1 down, and +inf for the clean end.

  The times are 1, 1 - 1/steps, ..., 1/steps: t = 0 is the clean end. Under ve it is
  not, sigma(0) is sigma_min > 0, so there they run down to 0 before it (Karras et
  al. 2022, eq. 5 and table 1).
  """
  last = 0.0 if schedule.scaling == "ve" else 1 / steps
  times = jnp.linspace(1.0, last, steps)
  return jnp.append(schedule.logsnr(times), jnp.inf)


def sample(
  denoise: Callable[[Float[Array, "n ..."], Float[Array, " n"]], Float[Array, "n ..."]],
  keys: Key[Array, " n"],
  shape: tuple[int, ...],
  schedule: Schedule,
  *,
  steps: int,
  eta: float,
  frames: int,
) -> Samples:
  """Runs `step` over `time_grid` from x_1 = sigma_1 eps, as one `lax.scan`.

  Args:
    denoise: (x_t, logsnr) -> x_hat, the estimate of the clean image.
    keys: one key a sample; all its noise comes from it.
    shape: of one image.
    schedule: the noise schedule the network was trained with.
    steps: calls of `denoise`.
    eta: 0 deterministic, 1 ancestral.
    frames: how many of the x_hat to keep, evenly spaced, the last one included.
  """
  frames = min(frames, steps)
  grid = time_grid(schedule, steps)

  def draw(i: Array) -> Float[Array, "n ..."]:
    own = jax.vmap(jax.random.fold_in, (0, None))(keys, i)
    return jax.vmap(lambda key: jax.random.normal(key, shape))(own)

  def body(carry: tuple, i: Array) -> tuple[tuple, None]:
    x_t, film = carry
    x_hat = denoise(x_t, jnp.full(keys.shape, grid[i]))
    # A later estimate overwrites an earlier one of the same frame.
    film = film.at[i * frames // steps].set(x_hat)
    fresh = draw(i + 1) if eta > 0 else jnp.zeros_like(x_t)
    return (step(x_t, x_hat, fresh, grid[i], grid[i + 1], schedule, eta), film), None

  start = alpha_sigma(grid[0], schedule.scaling)[1] * draw(jnp.asarray(0))
  film = jnp.zeros((frames, *start.shape))
  (images, film), _ = jax.lax.scan(body, (start, film), jnp.arange(steps))
  return Samples(images, film)
