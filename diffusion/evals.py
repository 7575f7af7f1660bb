"""Bits a dimension of held-out pictures, as a family's evals."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree
from ml_collections import ConfigDict

from core import levels, noise
from core.family import Batch, example_keys, keys_at
from core.noise import Schedule
from diffusion import likelihood
from diffusion.denoiser import Model, degraded
from diffusion.settings import Estimate

Eval = Callable[[PyTree, Batch, Array], Float[Array, " b"]]
# Not taken unless named: they cost more, or mean nothing of latents.
ON_REQUEST = (
  "bpd",
  "bpd_prior",
  "bpd_diffusion",
  "bpd_reconstruction",
  "bpd_ode",
)


def bounds(config: ConfigDict, model: Model) -> dict[str, Eval]:
  """bpd, the variational bound, and its three terms; bpd_ode, from the exact flow.

  With `noise.timesteps` the bound is of discrete steps (Ho et al. 2020, eq. 5) with the
  variance `diffusion.variance` or a learned one, else continuous (VDM, eq. 11), from
  `eval.bound_logsnr` on, where the pixels are read off: networks that never saw less
  noise than that cannot tell the last bits of a pixel, and each level below costs.
  `eval.bound_times` noise
  levels an example estimate bpd_diffusion without bias, spread evenly; 0 takes all of
  the discrete steps. bpd_ode is of pictures with uniform noise in their pixels' bins,
  so a bound too (Theis et al. 2016), with `eval.ode_probes` probes of the divergence.
  """
  settings, dims = config.eval, likelihood.dims(model.spec.shape)

  def prepare(params: PyTree, batch: Batch, rng: Array) -> tuple:
    """(schedule, denoiser, keys [b, 4]): what all terms start from."""
    keys = jax.vmap(lambda key: jax.random.split(key, 4))(
      example_keys(rng, batch["_id"])
    )
    cond = batch["cond"]
    if model.low_size:
      cond = cond.replace(image=jnp.asarray(batch["x"]))
      level = jnp.zeros(len(batch["x"]))
      cond = degraded(cond, keys[:, 3], level, model.low_size)
    encoded = model.encode(params, cond)

    def denoise(x_t: Float[Array, "b h w c"], logsnr: Float[Array, " b"]) -> Estimate:
      output = model.predict(params, x_t, logsnr, encoded)
      return Estimate(model.x_eps(output.value, x_t, logsnr)[0], output.fraction)

    return model.schedule(params), denoise, keys

  def normal(keys: Array) -> Float[Array, "b h w c"]:
    return jax.vmap(lambda key: jax.random.normal(key, model.spec.shape))(keys)

  def discrete(params: PyTree, batch: Batch, rng: Array, first: bool) -> Array:
    """The term of t = 1/T, or the sum of all others."""
    schedule, denoise, keys = prepare(params, batch, rng)
    x, steps = batch["x"], schedule.timesteps
    count = settings.bound_times or steps - 1

    def at(i: Array, index: Float[Array, " b"]) -> Float[Array, " b"]:
      t = jnp.minimum(index / steps, 1)  # compiled, T / T may be just above
      eps = normal(keys_at(keys[:, 1], i))
      logsnr = schedule.logsnr(t)
      x_t = noise.diffuse(x, eps, logsnr, schedule.scaling)
      x_hat, fraction = denoise(x_t, logsnr)
      return likelihood.step(x, x_hat, fraction, t, schedule, model.variance)

    if first:
      return at(jnp.asarray(0), jnp.ones(len(x)))
    shift = jax.vmap(jax.random.uniform)(keys[:, 0])

    def stratum(i: Array) -> Float[Array, " b"]:
      # The i-th of `count` equal parts of 2, ..., T.
      place = jnp.floor((i + shift) / count * (steps - 1))
      return at(i, 2 + jnp.minimum(place, steps - 2))

    return (steps - 1) * jax.lax.map(stratum, jnp.arange(count)).mean(0)

  def ends(schedule: Schedule) -> tuple[Float[Array, ""], Float[Array, ""]]:
    high, low = schedule.logsnr(jnp.array([0.0, 1.0]))
    # Below it there is next to no signal, but without end.
    low = jnp.maximum(low, -noise.LOGSNR_LIMIT)
    return jnp.minimum(high, settings.bound_logsnr), low

  def continuous(params: PyTree, batch: Batch, rng: Array) -> Array:
    schedule, denoise, keys = prepare(params, batch, rng)
    x, count = batch["x"], settings.bound_times or 1000
    shift = jax.vmap(jax.random.uniform)(keys[:, 0])
    high, low = ends(schedule)

    def stratum(i: Array) -> Float[Array, " b"]:
      # Evenly in logsnr: only its ends matter (VDM, eq. 18), and no level is too rare.
      logsnr = low + (high - low) * (i + shift) / count
      eps = normal(keys_at(keys[:, 1], i))
      x_t = noise.diffuse(x, eps, logsnr, schedule.scaling)
      x_hat, _ = denoise(x_t, logsnr)
      # |eps - eps_hat|^2 = SNR |x - x_hat|^2
      error = jnp.exp(logsnr) * levels.total((x - x_hat) ** 2)
      return (high - low) / 2 * error

    return jax.lax.map(stratum, jnp.arange(count)).mean(0)

  def prior(params: PyTree, batch: Batch, rng: Array) -> Array:
    return likelihood.prior(batch["x"], model.schedule(params))

  def diffusion(params: PyTree, batch: Batch, rng: Array) -> Array:
    if config.noise.timesteps:
      return discrete(params, batch, rng, first=False)
    return continuous(params, batch, rng)

  def reconstruction(params: PyTree, batch: Batch, rng: Array) -> Array:
    if config.noise.timesteps:
      return discrete(params, batch, rng, first=True)
    schedule, _, keys = prepare(params, batch, rng)
    high, _ = ends(schedule)
    return likelihood.reconstruction(batch["x"], normal(keys[:, 2]), high)

  def ode(params: PyTree, batch: Batch, rng: Array) -> Array:
    schedule, denoise, keys = prepare(params, batch, rng)
    nats, _ = likelihood.ode_nats(
      denoise,
      levels.dequantized(batch["x"], keys[:, 0]),
      keys[:, 1],
      schedule,
      probes=settings.ode_probes,
      tolerance=settings.ode_tolerance,
    )
    # From the density of a pixel to the probability of its bin.
    return nats - dims * math.log(levels.BIN)

  terms = {
    "bpd_prior": prior,
    "bpd_diffusion": diffusion,
    "bpd_reconstruction": reconstruction,
  }

  def bound(params: PyTree, batch: Batch, rng: Array) -> Array:
    return sum(term(params, batch, rng) for term in terms.values())

  def in_bits(fn: Eval) -> Eval:
    return lambda *args: levels.bits(fn(*args), dims)

  found = {"bpd": bound, **terms, "bpd_ode": ode}
  return {name: in_bits(fn) for name, fn in found.items()}
