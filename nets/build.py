"""A denoising network from `config.model`."""

import flax.linen as nn
import jax.numpy as jnp
from ml_collections import ConfigDict

from core.errors import unknown
from nets.dit import DiT
from nets.unet import UNet


def dtype(model: ConfigDict) -> jnp.dtype:
  """The type of the computation, `model.dtype`; parameters stay float32.

  Raises:
    UserError: unknown dtype.
  """
  if model.dtype not in ("float32", "bfloat16"):
    raise unknown("model.dtype", model.dtype, ("float32", "bfloat16"))
  return jnp.dtype(model.dtype)


def make(model: ConfigDict, out_channels: int) -> nn.Module:
  """The network named by `model.net`: 'dit' or 'unet'.

  Raises:
    UserError: unknown network or dtype.
  """
  common = {
    "out_channels": out_channels,
    "dropout": model.dropout,
    "dtype": dtype(model),
    "remat": model.remat,
  }
  match model.net:
    case "dit":
      return DiT(
        dim=model.dim,
        depth=model.depth,
        heads=model.heads,
        patch=model.patch,
        scan=model.scan,
        **common,
      )
    case "unet":
      return UNet(
        widths=tuple(model.widths),
        blocks=model.blocks,
        attention=tuple(model.attention),
        head_dim=model.head_dim,
        **common,
      )
  raise unknown("model.net", model.net, ("dit", "unet"))
