"""R3GAN: Huang et al. 2024, arXiv:2501.05441, configuration E.

Residual blocks without normalisation in both networks, which mirror each other. Numbers
that the paper leaves open are those of its published code.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

from core.errors import UserError
from nets.layers import Dense
from nets.resample import doubled, grouped_conv, halved
from nets.sizes import check_size

# What a leaky ReLU of slope 0.2 leaves of the second moment of N(0, 1), undone.
GAIN = math.sqrt(2 / (1 + 0.2**2))


def _scaled(gain: float = 1.0) -> nn.initializers.Initializer:
  """N(0, gain^2 / fan in)."""
  return nn.initializers.variance_scaling(gain**2, "fan_in", "normal")


class Block(nn.Module):
  """x + conv_1x1(f(conv_3x3(f(conv_1x1(x))))), f a bias and a leaky ReLU.

  The 3x3 convolution, in groups of channels, is `expansion` times as wide as x. The
  last layer starts at zero and the others at L^(-1/4) of what would keep the variance,
  L blocks in the network: Fixup (Zhang et al. 2019, arXiv:1901.09321) for branches of
  three layers.

  Attributes:
    blocks: L.
    expansion: how much wider the branch is.
    group: channels of a group.
    dtype: type of the computation; parameters are float32.
  """

  blocks: int
  expansion: int
  group: int
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    wide, init = self.expansion * x.shape[-1], _scaled(GAIN * self.blocks**-0.25)
    if wide % self.group:
      raise UserError(
        f"R3GAN's width {x.shape[-1]}, times {self.expansion}, does not divide into"
        f" groups of {self.group} channels; change `widths`."
      )

    def active(y: Array, name: str) -> Array:
      bias = self.param(name, nn.initializers.zeros, (wide,))
      return jax.nn.leaky_relu(y + bias.astype(self.dtype), 0.2)

    y = _linear(wide, self.dtype, init, "conv_0")(x)
    kernel = self.param("conv_1", init, (3, 3, self.group, wide)).astype(self.dtype)
    y = active(grouped_conv(active(y, "bias_0"), kernel), "bias_1")
    zeros = nn.initializers.zeros
    return x + _linear(x.shape[-1], self.dtype, zeros, "conv_2")(y)


class Generator(nn.Module):
  """A learned map times a linear function of z, then blocks and doubling.

  `vec` is mapped to as many numbers as z has and put beside it. Where the width changes
  a 1x1 convolution precedes the doubling. The output is without bounds.

  Attributes:
    shape: [h, w, c] of the picture.
    widths: channels at each resolution, from the picture's own down; each next one
      halves it.
    blocks: residual blocks a resolution.
    expansion, group: as in `Block`.
    dtype: type of the computation; parameters and output are float32.
  """

  shape: tuple[int, int, int]
  widths: tuple[int, ...]
  blocks: int = 2
  expansion: int = 2
  group: int = 16
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self,
    z: Float[Array, "b k"],
    vec: Float[Array, "b e"] | None = None,
    keys: Key[Array, " b"] | None = None,
    training: bool = False,
    axis: str | None = None,
  ) -> Float[Array, "b h w c"]:
    """Pictures of z; `keys`, `training` and `axis` change nothing.

    Raises UserError if the picture cannot be halved as often as `widths` asks, or
    widths and groups do not fit together.
    """
    height, width, channels = self.shape
    last = len(self.widths) - 1
    check_size(height, width, last, self.widths)
    if vec is not None:
      own = _linear(z.shape[-1], self.dtype, name="embed")(vec)
      z = jnp.concatenate([z, own], axis=-1)
    bottom = (height >> last, width >> last, self.widths[-1])
    basis = self.param("basis", nn.initializers.normal(1.0), bottom)
    x = (
      basis.astype(self.dtype)
      * (_linear(self.widths[-1], self.dtype, name="in")(z)[:, None, None])
    )
    for level in reversed(range(len(self.widths))):
      x = _to_width(x, self.widths[level], self.dtype, f"up_{level}_width")
      if level < last:
        x = doubled(x)
      x = _blocks(self, x, f"up_{level}")
    return _linear(channels, jnp.float32, name="out")(x)


class Critic(nn.Module):
  """Blocks and halving, then a weighted sum of the small map and a linear layer.

  With a condition the output is the inner product of as many features as the last width
  with a linear function of `vec`, divided by the root of that width when it starts
  (Miyato & Koyama 2018, arXiv:1802.05637, without their unconditional term).

  Attributes:
    widths: channels at each resolution, from the picture's own down; each next one
      halves it.
    blocks: residual blocks a resolution.
    expansion, group: as in `Block`.
    dtype: type of the computation; parameters and output are float32.
  """

  widths: tuple[int, ...]
  blocks: int = 2
  expansion: int = 2
  group: int = 16
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "b h w c"],
    vec: Float[Array, "b e"] | None = None,
    training: bool = True,
    axis: str | None = None,
  ) -> Float[Array, " b"]:
    """One number a picture; `training` and `axis` change nothing.

    Raises UserError as the generator does.
    """
    check_size(x.shape[1], x.shape[2], len(self.widths) - 1, self.widths)
    x = _linear(self.widths[0], self.dtype, name="in")(x)
    for level, features in enumerate(self.widths):
      if level:
        x = _to_width(halved(x), features, self.dtype, f"down_{level}_width")
      x = _blocks(self, x, f"down_{level}")
    x = x.astype(jnp.float32)
    # A convolution of each channel that leaves one pixel.
    init = nn.initializers.normal(1 / math.sqrt(x.shape[1] * x.shape[2]))
    basis = self.param("basis", init, x.shape[1:])
    x = (x * basis).sum((1, 2))
    if vec is None:
      return _linear(1, jnp.float32, name="out")(x)[:, 0]
    last = self.widths[-1]
    init = _scaled(1 / math.sqrt(last))
    told = _linear(last, jnp.float32, init, name="embed")(vec)
    return (_linear(last, jnp.float32, name="out")(x) * told).sum(-1)


def _linear(
  features: int,
  dtype: DTypeLike,
  init: nn.initializers.Initializer | None = None,
  name: str | None = None,
) -> nn.Module:
  """A 1x1 convolution or dense layer without bias."""
  init = init or _scaled()
  return Dense(features, use_bias=False, dtype=dtype, kernel_init=init, name=name)


def _to_width(x: Array, width: int, dtype: DTypeLike, name: str) -> Array:
  """A 1x1 convolution where the width changes."""
  return x if x.shape[-1] == width else _linear(width, dtype, name=name)(x)


def _blocks(net: Generator | Critic, x: Array, name: str) -> Array:
  """The blocks of one resolution."""
  total = net.blocks * len(net.widths)
  for i in range(net.blocks):
    options = (total, net.expansion, net.group, net.dtype)
    x = Block(*options, name=f"{name}_{i}")(x)
  return x
