"""p(vector | what is known of its place) by a small diffusion: its loss and its draws.

Li et al. 2024 (arXiv:2406.11838), section 3.2. The noise is that of `core/noise.py`.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key
from ml_collections import ConfigDict

from core import checks, noise
from core.errors import UserError, unknown
from core.family import keys_at

# (noisy vectors, logsnr of each) -> the network's prediction of each.
Denoise = Callable[[Float[Array, "n k v"], Float[Array, "n k"]], Float[Array, "n k v"]]


class Diffusion(NamedTuple):
  """How a vector is noised, and drawn again.

  Attributes:
    schedule: of the noise.
    prediction: what the network tells; eps in the paper.
    steps: DDPM's, of a draw, at even times.
    temperature: what the noise of the steps after the first is multiplied by.
  """

  schedule: noise.Schedule
  prediction: noise.Prediction
  steps: int
  temperature: float | int = 1.0


def make(config: ConfigDict) -> Diffusion:
  """The Diffusion of `config.noise`, `autoregressive.prediction` and `config.sample`.

  Raises:
    UserError: settings that are unknown, that do not go together, or of no use.
  """
  prediction, own = config.autoregressive.prediction, config.noise
  if prediction not in noise.PREDICTIONS:
    raise unknown("autoregressive.prediction", prediction, noise.PREDICTIONS)
  checks.refuse_learned_noise(config)
  checks.refuse(config, "noise", low_discrepancy=False)
  if own.zero_terminal and prediction in ("eps", "score"):
    raise UserError(
      f"autoregressive.prediction={prediction!r} tells nothing where there is no"
      " signal: with noise.zero_terminal set it to 'v', 'x' or 'edm'."
    )
  sample = config.sample
  return Diffusion(noise.make(own), prediction, sample.head_steps, sample.temperature)


def losses(
  diffusion: Diffusion,
  denoise: Denoise,
  x: Float[Array, "b k v"],
  times: Key[Array, " b"],
  noises: Key[Array, " b"],
) -> Float[Array, "b k"]:
  """The mean square of prediction - target of each vector, at a noise level of its own.

  Args:
    diffusion: the noise, and what the target is.
    denoise: the network.
    x: vectors, k of each example.
    times: an example's key for the levels.
    noises: for the noise.
  """
  schedule = diffusion.schedule
  t = jax.vmap(lambda key: jax.random.uniform(key, x.shape[1:2]))(times)
  eps = noise.normals(noises, x.shape[1:])
  # Without the ends, where a density's inverse may be infinite.
  logsnr = schedule.logsnr(schedule.density(jnp.clip(t, 1e-5, 1 - 1e-5)))
  flat = [a.reshape(-1, *a.shape[2:]) for a in (x, eps, logsnr)]
  x_t = noise.diffuse(*flat, schedule.scaling).reshape(x.shape)
  target = noise.target(*flat, schedule.scaling, diffusion.prediction)
  error = denoise(x_t, logsnr) - target.reshape(x.shape)
  return jnp.mean(error**2, axis=-1)


def draw(
  diffusion: Diffusion, denoise: Denoise, keys: Key[Array, "n k"], width: int
) -> Float[Array, "n k {width}"]:
  """A vector of each key, by DDPM's steps with the posterior's variance.

  As in the authors' code `temperature` does not change the noise that they start from;
  its network learns the variance too.
  """
  schedule, flat, shape = diffusion.schedule, keys.reshape(-1), (*keys.shape, width)
  times = 1 - jnp.arange(diffusion.steps) / diffusion.steps
  grid = jnp.append(schedule.logsnr(times), jnp.inf)

  def normal(j: Array | int) -> Float[Array, "a v"]:
    return noise.normals(keys_at(flat, j), (width,))

  def step(x_t: Array, j: Array) -> tuple[Array, None]:
    found = denoise(x_t.reshape(shape), jnp.full(keys.shape, grid[j]))
    logsnr, later = (jnp.full(len(x_t), grid[j + k]) for k in (0, 1))
    args = found.reshape(x_t.shape), x_t, logsnr, schedule.scaling, diffusion.prediction
    x_hat, _ = noise.to_x_eps(*args)
    fresh = diffusion.temperature * normal(j + 1)
    x_s = noise.posterior(x_t, x_hat, fresh, logsnr, later, schedule.scaling)
    return jnp.where(jnp.isposinf(grid[j + 1]), x_hat, x_s), None

  start = noise.prior_std(grid[0], schedule.scaling) * normal(0)
  return jax.lax.scan(step, start, jnp.arange(diffusion.steps))[0].reshape(shape)
