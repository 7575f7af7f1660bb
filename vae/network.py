"""The networks of a variational autoencoder."""

import dataclasses
import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer, PyTree
from ml_collections import ConfigDict

from core.family import Batch, Spec
from nets import build
from nets.autoencoder import Decoder, Encoder
from nets.groups import Vec
from text import encoders
from text.cond import Cond
from vae import likelihoods
from vae.bounds import Posterior
from vae.likelihoods import Likelihood


class Net(nn.Module):
  """Text encoder, picture encoder and decoder, trained as one.

  Attributes:
    text: raw `Cond` -> encoded, whose `pooled` modulates both others.
    encoder: (x, vec, ids) -> a map, twice the channels of a map of latents.
    decoder: (map, vec, ids) -> raw output of the likelihood.
    place: (h, w, c) of that map; the decoder's has as many channels as latents.
    latent_dim: above 0, the latents are one vector [1, 1, latent_dim], and a linear map
      leads there from the encoder's and from there to the decoder's.
  """

  text: nn.Module
  encoder: nn.Module
  decoder: nn.Module
  place: tuple[int, int, int]
  latent_dim: int

  def setup(self) -> None:
    """The linear maps around a vector."""
    if self.latent_dim:
      self.to_vector = nn.Dense(2 * self.latent_dim)
      self.to_map = nn.Dense(math.prod(self.place))

  def __call__(self, x: Float[Array, "b h w c"], cond: Cond) -> Float[Array, "b h w r"]:
    """Runs every part once, to make the parameters."""
    vec = self.embed(cond)
    return self.decode(self.encode(x, vec).mean, vec)

  def embed(self, cond: Cond) -> Vec:
    """Raw condition -> the vector that both networks read; None if there is none."""
    return self.text(cond).pooled

  def encode(
    self,
    x: Float[Array, "b h w c"],
    vec: Vec,
    ids: Integer[Array, " b"] | None = None,
  ) -> Posterior:
    """q(z|x, y)."""
    moments = self.encoder(x, vec, ids)
    if self.latent_dim:
      moments = self.to_vector(moments.reshape(len(x), 1, 1, -1))
    return Posterior.of(moments)

  def decode(
    self,
    z: Float[Array, "b h w c"],
    vec: Vec,
    ids: Integer[Array, " b"] | None = None,
  ) -> Float[Array, "b h2 w2 r"]:
    """What the likelihood makes p(x|z, y) of."""
    if self.latent_dim:
      z = self.to_map(z).reshape(len(z), *self.place)
    return self.decoder(z, vec, ids)


@dataclasses.dataclass(frozen=True)
class Networks:
  """The networks of a config, `net`, as pure functions of their parameters.

  Attributes:
    config: the whole config; reads `vae`, `model`, `text`.
    spec: of the pictures.

  Raises:
    UserError: settings that are unknown or do not fit the picture or one another.
  """

  config: ConfigDict
  spec: Spec

  def __post_init__(self) -> None:
    _ = self.net  # refuses what does not exist

  @functools.cached_property
  def likelihood(self) -> Likelihood:
    """p(x|z)."""
    return likelihoods.make(self.config.vae, self.spec.shape[-1])

  def init(self, rng: Array, batch: Batch) -> PyTree:
    """The parameters."""
    return self.net.init(rng, jnp.asarray(batch["x"]), batch["cond"])["params"]

  def run(
    self, params: PyTree, part: str, *args: object, dropout: Array | None = None
  ) -> PyTree:
    """A method of `net`, by its name."""
    rngs = None if dropout is None else {"dropout": dropout}
    return self.net.apply({"params": params}, *args, method=part, rngs=rngs)


class Model(Networks):
  """embed(cond), encode(x, vec, ids) and decode(z, vec, ids)."""

  @functools.cached_property
  def net(self) -> Net:
    """The module."""
    config, model = self.config, self.config.model
    channels, vector = config.vae.latent_channels, config.vae.latent_dim
    factor, dtype = 2 ** (len(model.widths) - 1), build.dtype(model)
    parts = {
      "widths": tuple(model.widths),
      "blocks": model.blocks,
      "attention": tuple(model.attention),
      "head_dim": model.head_dim,
      "dropout": model.dropout,
      "dtype": dtype,
      "remat": model.remat,
    }
    height, width, _ = self.spec.shape
    return Net(
      encoders.make(config.text, dtype),
      Encoder(channels if vector else 2 * channels, **parts),
      Decoder(self.likelihood.channels, **parts),
      (height // factor, width // factor, channels),
      vector,
    )

  @property
  def latents(self) -> tuple[int, int, int]:
    """The shape of z: a map, or a vector [1, 1, c]."""
    vector = self.config.vae.latent_dim
    return (1, 1, vector) if vector else self.net.place

  def decoded(
    self, params: PyTree, z: Float[Array, "b ..."], vec: Vec
  ) -> Float[Array, "b h w c"]:
    """The expected picture, in [-1, 1]."""
    return self.likelihood.mean(self.run(params, "decode", z, vec))

  def null(self, n: int) -> Cond:
    """n raw null conditions."""
    one = encoders.raw(self.config.text)("", 0)
    return jax.tree.map(lambda a: jnp.stack([a] * n), one).null_like()
