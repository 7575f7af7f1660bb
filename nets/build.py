"""A denoising network from `config.model`."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer
from ml_collections import ConfigDict

from core.errors import unknown
from nets.dit import DiT
from nets.efficient_unet import EfficientUNet
from nets.embeddings import fourier
from nets.prior import Prior
from nets.unet import UNet
from text.cond import Cond


def dtype(model: ConfigDict) -> jnp.dtype:
  """The type of the computation, `model.dtype`; parameters stay float32.

  Raises:
    UserError: unknown dtype.
  """
  if model.dtype not in ("float32", "bfloat16"):
    raise unknown("model.dtype", model.dtype, ("float32", "bfloat16"))
  return jnp.dtype(model.dtype)


CHOICES = {
  "modulation": ("scale_shift", "shift"),
  "resample": ("conv", "block", "block_1x1"),
  "attention_up": ("every", "last"),
  "clock": ("logsnr", "linear", "scaled_linear"),
  "text_attention": ("cross", "joint"),
}


class WithFourier(nn.Module):
  """A network that sees the input and `fourier` features of it as more channels."""

  net: nn.Module
  exponents: tuple[int, ...]

  def __call__(
    self,
    x: Float[Array, "b h w c"],
    logsnr: Float[Array, " b"],
    cond: Cond,
    ids: Integer[Array, " b"] | None = None,
  ) -> Float[Array, "b h w d"]:
    x = jnp.concatenate([x, fourier(x, self.exponents)], axis=-1)
    return self.net(x, logsnr, cond, ids)


def make(model: ConfigDict, out_channels: int) -> nn.Module:
  """The network named by `model.net`: 'dit', 'unet', 'efficient_unet' or 'prior'.

  Raises:
    UserError: unknown network, dtype or other choice.
  """
  for field, known in CHOICES.items():
    if model[field] not in known:
      raise unknown(f"model.{field}", model[field], known)
  net = _make(model, out_channels)
  return WithFourier(net, tuple(model.fourier)) if model.fourier else net


def _make(model: ConfigDict, out_channels: int) -> nn.Module:
  common = {
    "out_channels": out_channels,
    "dropout": model.dropout,
    "dtype": dtype(model),
    "remat": model.remat,
  }
  blocks = model.blocks if isinstance(model.blocks, int) else tuple(model.blocks)
  unet = {
    "widths": tuple(model.widths),
    "blocks": blocks,
    "head_dim": model.head_dim,
    "text_attention": model.text_attention,
    **common,
  }
  match model.net:
    case "dit":
      return DiT(
        dim=model.dim,
        depth=model.depth,
        heads=model.heads,
        patch=model.patch,
        scan=model.scan,
        text_attention=model.text_attention,
        **common,
      )
    case "unet":
      return UNet(
        attention=tuple(model.attention),
        middle_attention=model.middle_attention,
        stem=model.stem,
        modulation=model.modulation,
        skip_scale=model.skip_scale,
        resample=model.resample,
        attention_up=model.attention_up,
        heads=0 if model.head_dim else model.heads,
        transformer=model.transformer,
        groups=model.groups,
        eps=model.norm_eps,
        clock=model.clock,
        **unet,
      )
    case "efficient_unet":
      return EfficientUNet(
        attention_levels=tuple(model.attention_levels),
        text_levels=tuple(model.text_levels),
        attention_width=model.attention_width,
        project=model.project,
        embedding=model.embedding,
        **unet,
      )
    case "prior":
      return Prior(
        dim=model.dim, depth=model.depth, heads=model.heads, scan=model.scan, **common
      )
  raise unknown("model.net", model.net, ("dit", "unet", "efficient_unet", "prior"))
