"""A diffusion whose network knows its data exactly.

Class k is N(MEANS[k], STD^2) in every pixel, so the best estimate is a formula.
"""

import flax.linen as nn
import jax.numpy as jnp
import pytest
from ml_collections import ConfigDict

from configs.diffusion import ddpm as ddpm_config
from core import noise
from core.family import Spec
from diffusion import denoiser
from diffusion.denoiser import Model
from nets import build
from text.cond import Cond

SPEC, STD = Spec((4, 4, 1)), 0.3
MEANS = jnp.array([-0.4, 0.4, 0.0])  # the last: no class


class Exact(nn.Module):
  """The exact output, in the model's own space, for the class that `pooled` tells."""

  scaling: str
  prediction: str
  off: float = 0.0  # added to the estimate, by a worse network

  @nn.compact
  def __call__(self, x, logsnr, cond, ids=None):
    level = noise.per_example(logsnr, x)
    alpha, sigma = noise.alpha_sigma(level, self.scaling)
    if self.prediction == "edm":
      x = x / noise.precondition(level, self.scaling, 0.5)[2]
    else:
      x = x / noise.input_scale(level, self.scaling)
    mean = noise.per_example(cond.pooled[:, 0], x)
    gain = alpha * STD**2 / ((alpha * STD) ** 2 + sigma**2)
    x_hat = mean + gain * (x - alpha * mean) + self.off
    eps = (x - alpha * x_hat) / sigma
    return noise.target(x_hat, eps, logsnr, self.scaling, self.prediction)


class Means(nn.Module):
  """label -> its mean; of a vector instead that of class 0, and of zeros no class."""

  def __call__(self, cond):
    label = cond.label
    if label is None:
      label = jnp.where(cond.embedding.any(1), 0, -1)
    return Cond(pooled=MEANS[label][:, None])


def parts(
  monkeypatch: pytest.MonkeyPatch, off: float = 0.0, **fields: object
) -> tuple[ConfigDict, Model]:
  """(config, Model) around the exact network."""
  config = ddpm_config.get_config("tiny")
  config.noise.schedule, config.noise.timesteps = "cosine", 0
  config.text.encoder, config.text.classes = "label", 2
  config.sample.steps, config.sample.guidance_scale = 20, 1.0
  config.sample.threshold = "none"
  config.sample.sampler = "heun"
  for name, value in fields.items():
    group, field = name.split("__")
    config[group][field] = value
  scaling, prediction = noise.make(config.noise).scaling, config.diffusion.prediction
  monkeypatch.setattr(
    build, "make", lambda model, channels: Exact(scaling, prediction, off)
  )
  monkeypatch.setattr(denoiser.encoders, "make", lambda *args: Means())
  made = Model(config, SPEC).denoiser  # while the stand-ins are there

  class Fixed(Model):
    denoiser = made

  return config, Fixed(config, SPEC)
