"""The layers of StyleGAN2: Karras et al. 2020, arXiv:1912.04958.

All have an equalised learning rate (Karras et al. 2018, arXiv:1710.10196, section 4.1):
weights are N(0, 1) and are divided by sqrt(fan in) where they are used, so that Adam's
steps are as large for all of them.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from nets.convolution import conv
from nets.resample import doubled_conv, halved, halved_conv

# The mapping's learning rate as a part of the others' (Karras et al. 2019, appendix C).
MAPPING_RATE = 0.01

NORMAL, ZEROS = nn.initializers.normal(1.0), nn.initializers.zeros


def leaky(x: Float[Array, "..."]) -> Float[Array, "..."]:
  """sqrt(2) leaky_relu(x, 0.2): keeps the second moment of N(0, 1) at about 1."""
  return jax.nn.leaky_relu(x, 0.2) * jnp.asarray(math.sqrt(2), x.dtype)


def normalized(x: Float[Array, "b d"]) -> Float[Array, "b d"]:
  """x / sqrt(mean(x^2)) of each row."""
  return x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-8)


class EqualDense(nn.Module):
  """x W rate / sqrt(d) + rate b, with W ~ N(0, 1) / rate; of float32.

  Attributes:
    features: channels of the output.
    rate: the learning rate as a part of the optimizer's.
    bias: the bias's first value.
  """

  features: int
  rate: float = 1.0
  bias: float = 0.0

  @nn.compact
  def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b f"]:
    d = x.shape[-1]
    draw = nn.initializers.normal(1 / self.rate)
    kernel = self.param("kernel", draw, (d, self.features))
    start = nn.initializers.constant(self.bias)
    bias = self.param("bias", start, (self.features,))
    return x.astype(jnp.float32) @ (kernel * (self.rate / math.sqrt(d))) + (
      bias * self.rate
    )


class EqualConv(nn.Module):
  """leaky(conv(x) + b), or conv(x) alone.

  Attributes:
    features: channels of the output.
    size: the kernel's side.
    down: the output has half the size, by the filter of `nets/resample.py`.
    active: bias and leaky ReLU follow.
    dtype: type of the computation; parameters are float32.
  """

  features: int
  size: int = 3
  down: bool = False
  active: bool = True
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 f"]:
    shape = (self.size, self.size, x.shape[-1], self.features)
    kernel = self.param("kernel", NORMAL, shape) / math.sqrt(math.prod(shape[:3]))
    x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
    if self.down and self.size == 1:
      y = conv(halved(x), kernel)
    else:
      y = (halved_conv if self.down else conv)(x, kernel)
    if not self.active:
      return y
    bias = self.param("bias", ZEROS, (self.features,))
    return leaky(y + bias.astype(self.dtype))


class Mapping(nn.Module):
  """z and the condition to w: normalised, then dense layers with leaky ReLU.

  `vec` is mapped to `features` numbers, normalised and put beside z. The critic maps a
  condition alone, as Karras et al. 2020 do (arXiv:2006.06676). Float32.

  Attributes:
    features: of each layer.
    layers: how many.
  """

  features: int
  layers: int = 8

  @nn.compact
  def __call__(
    self, z: Float[Array, "b k"] | None, vec: Float[Array, "b e"] | None
  ) -> Float[Array, "b {self.features}"]:
    parts = [] if z is None else [normalized(z.astype(jnp.float32))]
    if vec is not None:
      parts.append(normalized(EqualDense(self.features, name="embed")(vec)))
    x = jnp.concatenate(parts, axis=-1)
    for i in range(self.layers):
      x = leaky(EqualDense(self.features, MAPPING_RATE, name=f"dense_{i}")(x))
    return x


def modulated(
  x: Float[Array, "b h w i"],
  kernel: Float[Array, "k k i o"],
  style: Float[Array, "b i"],
  demodulate: bool = True,
  up: bool = False,
) -> Float[Array, "b h2 w2 o"]:
  """The convolution with each example's own kernel d_o s_i K_kio.

  d_o = 1 / sqrt(sum_ki (s_i K_kio)^2 + 1e-8), or 1 without demodulation (eq. 1 and 3).
  Scaling the channels of the input by s and those of the output by d is the same, and
  the kernel stays that of the whole batch. `up` doubles the size (`doubled_conv`).
  """
  y = x * style[:, None, None].astype(x.dtype)
  y = (doubled_conv if up else conv)(y, kernel.astype(x.dtype))
  if not demodulate:
    return y
  power = (style * style) @ (kernel * kernel).sum((0, 1))
  return y * jax.lax.rsqrt(power + 1e-8)[:, None, None].astype(x.dtype)


class StyledConv(nn.Module):
  """leaky(modulated 3x3 convolution + strength * noise + b); s = A(w), biased to 1.

  One strength for all pixels and channels, which starts at zero.

  Attributes:
    features: channels of the output.
    up: the output has twice the size.
    dtype: type of the computation; parameters are float32.
  """

  features: int
  up: bool = False
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "b h w c"],
    w: Float[Array, "b d"],
    noise: Float[Array, "b h2 w2 1"] | None = None,
  ) -> Float[Array, "b h2 w2 f"]:
    style = EqualDense(x.shape[-1], bias=1.0, name="style")(w)
    kernel = self.param("kernel", NORMAL, (3, 3, x.shape[-1], self.features))
    strength = self.param("noise", ZEROS, ())
    bias = self.param("bias", ZEROS, (self.features,))
    y = modulated(x.astype(self.dtype), kernel, style, up=self.up)
    if noise is not None:
      y = y + (strength * noise).astype(self.dtype)
    return leaky(y + bias.astype(self.dtype))


class ToPicture(nn.Module):
  """A modulated 1x1 convolution without demodulation, and a bias; float32 comes out.

  Attributes:
    features: channels of the picture.
    dtype: type of the computation; parameters are float32.
  """

  features: int
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self, x: Float[Array, "b h w c"], w: Float[Array, "b d"]
  ) -> Float[Array, "b h w {self.features}"]:
    c = x.shape[-1]
    style = EqualDense(c, bias=1.0, name="style")(w) / math.sqrt(c)
    kernel = self.param("kernel", NORMAL, (1, 1, c, self.features))
    bias = self.param("bias", ZEROS, (self.features,))
    y = modulated(x.astype(self.dtype), kernel, style, demodulate=False)
    return y.astype(jnp.float32) + bias


def minibatch_std(
  x: Float[Array, "b h w c"], group: int
) -> Float[Array, "b h w c_plus_1"]:
  """One more channel: how much the examples of a group differ.

  The standard deviation over the group of each number, and the mean of these (Karras
  et al. 2018, arXiv:1710.10196, section 3). A group is `group` rows that follow one
  another, or as many as divide the batch, so cutting a batch between groups changes
  nothing.
  """
  b, h, w, _ = x.shape
  group = math.gcd(group, b)
  y = x.astype(jnp.float32).reshape(b // group, group, -1)
  y = jnp.sqrt(y.var(1) + 1e-8).mean(-1)
  y = jnp.broadcast_to(y.repeat(group)[:, None, None, None], (b, h, w, 1))
  return jnp.concatenate([x, y.astype(x.dtype)], axis=-1)
