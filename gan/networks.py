"""The generator and the critic of a config."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Key
from ml_collections import ConfigDict

from core.errors import unknown
from core.family import Spec
from nets import build, dcgan, patch_critic, r3gan, resnet_gan, stylegan2
from nets.embeddings import NoiseEmbedding
from text import encoders
from text.cond import Cond

GENERATORS = ("dcgan", "resnet", "stylegan2", "r3gan")
CRITICS = (*GENERATORS, "patch")


class Generator(nn.Module):
  """Text encoder and generator, trained as one: (z, raw cond) -> pictures."""

  text: nn.Module
  net: nn.Module

  def __call__(
    self,
    z: Float[Array, "b k"],
    cond: Cond,
    keys: Key[Array, " b"] | None = None,
    training: bool = False,
    axis: str | None = None,
  ) -> Float[Array, "b h w c"]:
    """As `net` has it."""
    return self.net(z, self.text(cond).pooled, keys, training, axis)

  def styles(
    self, z: Float[Array, "b k"], cond: Cond, share: Float[Array, ""] | float | int = 1
  ) -> Float[Array, "b layers d"]:
    """StyleGAN2's w for every layer, w_mean + share (w - w_mean)."""
    w, mean = self.net.mapping(z, self.text(cond).pooled), self.net.mean.value
    w = mean + share * (w - mean)
    return jnp.broadcast_to(w[:, None], (len(w), self.net.styles, w.shape[-1]))

  def synthesis(
    self, w: Float[Array, "b layers d"], keys: Key[Array, " b"]
  ) -> Float[Array, "b h w c"]:
    """StyleGAN2's pictures of styles."""
    return self.net.synthesis(w, keys)


class Critic(nn.Module):
  """Text encoder and critic, trained as one: (pictures, raw cond) -> logits."""

  text: nn.Module
  net: nn.Module
  noise: nn.Module | None = None  # logsnr -> vec

  def __call__(
    self,
    x: Float[Array, "b h w c"],
    cond: Cond,
    logsnr: Float[Array, " b"] | None = None,
    axis: str | None = None,
  ) -> Float[Array, "b ..."]:
    """As `net` has it."""
    vec = self.text(cond).pooled
    if self.noise is not None:
      told = self.noise(logsnr)
      vec = told if vec is None else vec + told
    return self.net(x, vec, axis=axis)


def generator(config: ConfigDict, spec: Spec) -> Generator:
  """The generator of `gan.generator`, as wide as `model.widths`.

  Raises:
    UserError: it is unknown, or does not fit the picture.
  """
  gan, model = config.gan, config.model
  check_init(gan)
  common = {"shape": spec.shape, "widths": tuple(model.widths)}
  common["dtype"] = build.dtype(model)
  match gan.generator:
    case "dcgan":
      net = dcgan.Generator(**common)
    case "resnet":
      net = resnet_gan.Generator(
        attention=tuple(model.attention),
        chunks=gan.chunks,
        kernel_init=gan.init,
        **common,
      )
    case "stylegan2":
      net = stylegan2.Generator(
        dim=gan.style_dim, layers=gan.mapping_layers, mixing=gan.mixing, **common
      )
    case "r3gan":
      net = r3gan.Generator(blocks=model.blocks, **common)
    case other:
      raise unknown("gan.generator", other, GENERATORS)
  return Generator(encoders.make(config.text, common["dtype"]), net)


def check_init(gan: ConfigDict) -> None:
  """Raises UserError for a `gan.init` that no network knows."""
  if gan.init not in resnet_gan.INITS:
    raise unknown("gan.init", gan.init, resnet_gan.INITS)


def critic(config: ConfigDict, noisy: bool) -> Critic:
  """The critic of `gan.critic`, as wide as `gan.widths`; told a logsnr if `noisy`.

  Raises:
    UserError: it is unknown.
  """
  gan, dtype = config.gan, build.dtype(config.model)
  check_init(gan)
  common = {"widths": tuple(gan.widths), "dtype": dtype}
  match gan.critic:
    case "dcgan":
      net = dcgan.Critic(norm=gan.norm, **common)
    case "resnet":
      attention = tuple(config.model.attention)
      net = resnet_gan.Critic(
        extra=gan.extra, attention=attention, kernel_init=gan.init, **common
      )
    case "stylegan2":
      net = stylegan2.Critic(layers=gan.mapping_layers, **common)
    case "r3gan":
      net = r3gan.Critic(blocks=config.model.blocks, **common)
    case "patch":
      net = patch_critic.Critic(**common)
    case other:
      raise unknown("gan.critic", other, CRITICS)
  noise = NoiseEmbedding(config.text.dim, dtype=dtype) if noisy else None
  return Critic(encoders.make(config.text, dtype), net, noise)
