"""The network of a diffusion and what its outputs mean."""

import dataclasses
import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer, Key, PyTree
from ml_collections import ConfigDict

from core import noise
from core.errors import UserError, unknown
from core.family import Batch, Spec
from core.noise import Schedule
from diffusion import augmentation
from nets import build
from nets.embeddings import NoiseEmbedding
from nets.monotone import MonotoneLogsnr
from text import encoders
from text.cond import Cond, guide


class Denoiser(nn.Module):
  """A text encoder and the network that reads its output, trained as one.

  Attributes:
    encoder: raw `Cond` -> encoded.
    net: (input, logsnr, encoded `Cond`, ids) -> prediction.
    level: embeds how noisy a small picture in the condition is.
    learned: logsnr(t), where the schedule is learned.
    augmented: whether it learns from transformed pictures, and is told how.
  """

  encoder: nn.Module
  net: nn.Module
  level: nn.Module | None = None
  learned: nn.Module | None = None
  augmented: bool = False

  def __call__(
    self, x: Float[Array, "b h w c"], logsnr: Float[Array, " b"], cond: Cond
  ) -> Float[Array, "b h w o"]:
    """Runs every part once, to make the parameters."""
    if self.learned is not None:
      self.learned(logsnr)
    return self.predict(x, logsnr, self.encode(cond, x.shape))

  def encode(self, cond: Cond, shape: tuple[int, ...]) -> Cond:
    """Raw condition -> encoded; sampling does it once for all steps.

    A small picture becomes as large as `shape`, and its noise level a part of `pooled`.
    """
    encoded = self.encoder(cond)
    if cond.image is None:
      return encoded
    large = jax.image.resize(cond.image, (len(cond.image), *shape[-3:]), "bilinear")
    level = self.level(cond.image_logsnr)
    if encoded.pooled is not None:
      level = jnp.concatenate([encoded.pooled, level], axis=-1)
    return encoded.replace(pooled=level, image=large)

  def predict(
    self,
    x: Float[Array, "b h w c"],
    logsnr: Float[Array, " b"],
    cond: Cond,
    ids: Integer[Array, " b"] | None = None,
  ) -> Float[Array, "b h w o"]:
    """The network's output for an encoded condition; `x` is scaled already."""
    if cond.image is not None:
      x = jnp.concatenate([x, cond.image], axis=-1)
    if self.augmented:
      pooled = cond.transformed
      if pooled is None:  # what is drawn is as the data are
        pooled = jnp.zeros((len(x), augmentation.LABELS))
      if cond.pooled is not None:
        pooled = jnp.concatenate([cond.pooled, pooled], axis=-1)
      cond = cond.replace(pooled=pooled, transformed=None)
    return self.net(x, logsnr, cond.replace(image=None), ids)

  def logsnr(self, t: Float[Array, "..."]) -> Float[Array, "..."]:
    """The learned schedule."""
    return self.learned(t)


class Output(NamedTuple):
  """What the network says at x_t.

  Attributes:
    value: in the space of the model's prediction.
    fraction: learned log variance, between the posterior's (0) and the larger one (1);
      None where it is not learned.
  """

  value: Float[Array, "b h w c"]
  fraction: Float[Array, "b h w c"] | None


@dataclasses.dataclass(frozen=True)
class Model:
  """The denoiser of a config, as pure functions of its parameters.

  Attributes:
    config: the whole config; reads `noise`, `diffusion`, `model`, `text`, `data`.
    spec: of what is generated.

  Raises:
    UserError: unknown prediction, network or encoder, or a schedule without signal at
      its end where the prediction cannot tell the picture there.
  """

  config: ConfigDict
  spec: Spec

  def __post_init__(self) -> None:
    config, prediction = self.config, self.prediction
    if prediction not in noise.PREDICTIONS:
      raise unknown("diffusion.prediction", prediction, noise.PREDICTIONS)
    if config.noise.zero_terminal and prediction in ("eps", "score"):
      raise UserError(
        f"diffusion.prediction={prediction!r} tells nothing of the picture where there"
        " is no signal: with noise.zero_terminal set it to 'v', 'x' or 'edm'."
      )
    noise.make(config.noise)
    build.make(config.model, self.spec.shape[-1])
    encoders.make(config.text, build.dtype(config.model))

  @property
  def prediction(self) -> str:
    """What the network outputs."""
    return self.config.diffusion.prediction

  @property
  def sigma_data(self) -> float:
    """The data's standard deviation, for the 'edm' prediction."""
    return self.config.diffusion.sigma_data

  @property
  def low_size(self) -> int:
    """Side of the small picture it is conditioned on, or 0."""
    return self.config.data.low_size

  @property
  def variance(self) -> str:
    """Of the discrete bound's steps."""
    own = self.config.diffusion
    return "learned" if own.learn_variance else own.variance

  @functools.cached_property
  def denoiser(self) -> Denoiser:
    """The module."""
    config, dtype = self.config, build.dtype(self.config.model)
    channels = self.spec.shape[-1] * (1 + config.diffusion.learn_variance)
    learned = config.noise.schedule == "learned"
    return Denoiser(
      encoders.make(config.text, dtype),
      build.make(config.model, channels),
      NoiseEmbedding(config.text.dim, dtype=dtype) if self.low_size else None,
      MonotoneLogsnr(**config.noise.learned) if learned else None,
      augmented=config.diffusion.augment > 0,
    )

  def init(self, rng: Array, batch: Batch) -> PyTree:
    """The parameters."""
    x, cond = jnp.asarray(batch["x"]), batch["cond"]
    logsnr = jnp.zeros(x.shape[0])
    if self.low_size:
      small = x[:, : self.low_size, : self.low_size]
      cond = cond.replace(image=small, image_logsnr=logsnr)
    return self.denoiser.init(rng, x, logsnr, cond)["params"]

  def schedule(self, params: PyTree) -> Schedule:
    """The noise schedule, which may be learned."""
    return noise.make(
      self.config.noise,
      lambda t: self.denoiser.apply({"params": params}, t, method="logsnr"),
    )

  @functools.cached_property
  def scaling(self) -> noise.Scaling:
    """Of the schedule."""
    return noise.make(self.config.noise).scaling

  def encode(self, params: PyTree, cond: Cond) -> Cond:
    """Raw condition -> encoded."""
    return self.denoiser.apply(
      {"params": params}, cond, self.spec.shape, method="encode"
    )

  def predict(
    self,
    params: PyTree,
    x_t: Float[Array, "b h w c"],
    logsnr: Float[Array, " b"],
    cond: Cond,
    ids: Integer[Array, " b"] | None = None,
    rng: Array | None = None,
  ) -> Output:
    """The output at x_t for an encoded condition; dropout where `ids` are given."""
    level = noise.per_example(logsnr, x_t)
    if self.prediction == "edm":
      scale = noise.precondition(level, self.scaling, self.sigma_data)[2]
    else:
      scale = noise.input_scale(level, self.scaling)
    output = self.denoiser.apply(
      {"params": params},
      scale * x_t,
      logsnr,
      cond,
      ids,
      method="predict",
      rngs=None if rng is None else {"dropout": rng},
    )
    if not self.config.diffusion.learn_variance:
      return Output(output, None)
    value, fraction = jnp.split(output, 2, axis=-1)
    return Output(value, (fraction + 1) / 2)

  def estimate(
    self,
    params: PyTree,
    x_t: Float[Array, "b h w c"],
    logsnr: Float[Array, " b"],
    cond: Cond,
    scale: float | int = 1,
  ) -> Float[Array, "b h w c"]:
    """x_hat at x_t for a raw condition, without dropout; scale 1 is no guidance."""
    if scale == 1:
      value = self.predict(params, x_t, logsnr, self.encode(params, cond)).value
    else:
      pair = (jnp.concatenate([a, a]) for a in (x_t, logsnr))
      both = self.predict(params, *pair, self.encode(params, cond.with_null()))
      value = guide(both.value, scale)
    return self.x_eps(value, x_t, logsnr)[0]

  def x_eps(
    self,
    value: Float[Array, "b h w c"],
    x_t: Float[Array, "b h w c"],
    logsnr: Float[Array, " b"],
  ) -> tuple[Float[Array, "b h w c"], Float[Array, "b h w c"]]:
    """(x, eps) from an output's value."""
    return noise.to_x_eps(
      value, x_t, logsnr, self.scaling, self.prediction, self.sigma_data
    )

  def target(
    self,
    x: Float[Array, "b h w c"],
    eps: Float[Array, "b h w c"],
    logsnr: Float[Array, " b"],
  ) -> Float[Array, "b h w c"]:
    """What the value should be."""
    return noise.target(x, eps, logsnr, self.scaling, self.prediction, self.sigma_data)


def degraded(
  cond: Cond, keys: Key[Array, " b"], t: Float[Array, " b"], size: int
) -> Cond:
  """`cond.image` as super-resolution sees it: small, with noise of a known level.

  Shrunk to `size` and noised to level t of the cosine schedule, 0 being none: noise
  conditioning augmentation (Ho et al. 2022, arXiv:2106.15282, section 4.2; Saharia et
  al. 2022, Imagen, algorithm 1).
  """
  b, *_, c = cond.image.shape
  small = jax.image.resize(cond.image, (b, size, size, c), "linear")
  eps = noise.normals(keys, small.shape[1:])
  logsnr = noise.cosine().logsnr(t)
  return cond.replace(
    image=noise.diffuse(small, eps, logsnr, "vp"), image_logsnr=logsnr
  )
