"""Denoising diffusion: one network that tells signal from noise, at every level.

Ho et al. 2020 (arXiv:2006.11239) with any schedule of `core/noise.py` and any
prediction; rectified flow (Liu et al. 2022) is `noise.schedule='rectified_flow'`
with `diffusion.prediction='velocity'`.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer, PyTree
from ml_collections import ConfigDict

from core import noise
from core.errors import unknown
from core.family import (
  Batch,
  Family,
  Metrics,
  Samples,
  Spec,
  example_keys,
  from_loss,
  sample_keys,
)
from diffusion import sampler
from nets import build
from text import encoders
from text.cond import Cond, guide

PREDICTIONS = ("x", "eps", "v", "velocity")


class Denoiser(nn.Module):
  """A text encoder and the network that reads its output, trained as one."""

  encoder: nn.Module
  net: nn.Module

  def __call__(
    self,
    x_t: Float[Array, "b h w c"],
    logsnr: Float[Array, " b"],
    cond: Cond,
    ids: Integer[Array, " b"] | None = None,
  ) -> Float[Array, "b h w c"]:
    """The prediction at x_t for a raw condition."""
    return self.predict(x_t, logsnr, self.encode(cond), ids)

  def encode(self, cond: Cond) -> Cond:
    """Raw condition -> encoded; sampling does it once for all steps."""
    return self.encoder(cond)

  def predict(
    self,
    x_t: Float[Array, "b h w c"],
    logsnr: Float[Array, " b"],
    cond: Cond,
    ids: Integer[Array, " b"] | None = None,
  ) -> Float[Array, "b h w c"]:
    """The prediction at x_t for an encoded condition."""
    return self.net(x_t, logsnr, cond, ids)


def make(config: ConfigDict, spec: Spec) -> Family:
  """The family of `config.diffusion`, `config.noise` and `config.model`.

  loss = mean over pixels of (estimate - target)^2 in the space `diffusion.loss`,
  whatever the network predicts: eps gives L_simple of Ho et al. 2020, eq. 14, for
  an eps-prediction; x-prediction with velocity loss is Li & He 2025
  (arXiv:2511.13720), table 1.

  Raises:
    UserError: unknown prediction, sampler, schedule or network, or guidance without a
      trained null condition.
  """
  schedule = noise.make(config.noise)
  prediction, space = config.diffusion.prediction, config.diffusion.loss
  for field in ("prediction", "loss"):
    if config.diffusion[field] not in PREDICTIONS:
      raise unknown(f"diffusion.{field}", config.diffusion[field], PREDICTIONS)
  settings, steps = config.sample, sampler.settings(config.sample)
  encoders.check_guidance(config.text, settings.guidance_scale)
  denoiser = Denoiser(
    encoders.make(config.text, build.dtype(config.model)),
    build.make(config.model, spec.shape[-1]),
  )

  def init(rng: Array, batch: Batch) -> PyTree:
    x, cond = batch["x"], batch["cond"]
    return denoiser.init(rng, x, jnp.zeros(x.shape[0]), cond)["params"]

  def losses(
    params: PyTree, batch: Batch, rng: Array, training: bool
  ) -> tuple[Float[Array, " b"], Metrics]:
    x, cond, ids = batch["x"], batch["cond"], batch["_id"]
    keys = jax.vmap(lambda key: jax.random.split(key, 3))(example_keys(rng, ids))
    t = schedule.density(jax.vmap(uniform)(keys[:, 0]))
    eps = jax.vmap(lambda key: jax.random.normal(key, spec.shape))(keys[:, 1])
    logsnr = schedule.logsnr(t)
    x_t = noise.diffuse(x, eps, logsnr, schedule.scaling)
    if training and config.text.drop > 0:
      cond = cond.drop(keys[:, 2], config.text.drop)
    output = denoiser.apply(
      {"params": params},
      scaled(x_t, logsnr),
      logsnr,
      cond,
      ids if training else None,
      rngs={"dropout": rng},
    )
    estimate = noise.to_x_eps(output, x_t, logsnr, schedule.scaling, prediction)
    off = noise.target(*estimate, logsnr, schedule.scaling, space) - noise.target(
      x, eps, logsnr, schedule.scaling, space
    )
    return jnp.mean(off**2, axis=tuple(range(1, x.ndim))), {}

  def scaled(
    x_t: Float[Array, "b h w c"], logsnr: Float[Array, " b"]
  ) -> Float[Array, "b h w c"]:
    return x_t * noise.per_example(noise.input_scale(logsnr, schedule.scaling), x_t)

  def sample(params: PyTree, rng: Array, cond: Cond, n: int) -> Samples:
    variables, scale = {"params": params}, settings.guidance_scale
    guided = scale != 1 and bool(jax.tree.leaves(cond))
    encoded = denoiser.apply(
      variables, cond.with_null() if guided else cond, method="encode"
    )

    def denoise(
      x_t: Float[Array, "n h w c"], logsnr: Float[Array, " n"]
    ) -> sampler.Estimate:
      twice = (lambda a: jnp.concatenate([a, a])) if guided else (lambda a: a)
      output = denoiser.apply(
        variables, twice(scaled(x_t, logsnr)), twice(logsnr), encoded, method="predict"
      )
      output = guide(output, scale) if guided else output
      x_hat, _ = noise.to_x_eps(output, x_t, logsnr, schedule.scaling, prediction)
      x_hat = jnp.clip(x_hat, -1, 1) if settings.clip else x_hat
      return sampler.Estimate(x_hat, None)

    return sampler.sample(denoise, sample_keys(rng, n), spec.shape, schedule, steps)

  return from_loss(
    config,
    init=init,
    loss=lambda params, batch, rng: losses(params, batch, rng, True),
    sample=sample,
    evals={"loss": lambda params, batch, rng: losses(params, batch, rng, False)[0]},
  )


def uniform(key: Array) -> Float[Array, ""]:
  """U(0, 1) without its ends, where a density's inverse may be infinite."""
  return jax.random.uniform(key, minval=1e-5, maxval=1 - 1e-5)
