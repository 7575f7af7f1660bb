"""Convolutions from one size to twice or half of it.

A 3x3 convolution of a doubled picture, or whose result is halved, is a 4x4 one of
stride 2, transposed or not: 16 products for 36. Accelerators get that. On a CPU XLA
takes several times longer for gradients of strides; so there it is one matrix product:
a 4x4 convolution of stride 2 reads 2x2 squares of squares of pixels, and a transposed
one makes a square of each four pixels that touch.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from nets.convolution import by_parts


def transposed(
  x: Float[Array, "b h w i"], kernel: Float[Array, "4 4 i o"]
) -> Float[Array, "b h2 w2 o"]:
  """nn.ConvTranspose's of stride 2, padding "SAME"."""

  def product(x: Array, kernel: Array) -> Array:
    b, h, w, c = x.shape
    kernel = kernel.reshape(2, 2, 2, 2, c, -1).transpose(0, 2, 4, 1, 3, 5)
    y = _fours(_framed(x)) @ kernel.reshape(4 * c, -1)
    y = y.reshape(b, h + 1, w + 1, 2, 2, -1)
    # The pixel (i, j) of a square is seen from the i-th row and j-th column on.
    pixel = lambda i, j: y[:, i : i + h, j : j + w, i, j]  # noqa: E731
    rows = [jnp.stack([pixel(i, j) for j in (0, 1)], 3) for i in (0, 1)]
    return jnp.stack(rows, 2).reshape(b, 2 * h, 2 * w, -1)

  def spread(x: Array, kernel: Array) -> Array:
    return _conv(x, kernel, 2, lhs_dilation=(2, 2))

  parts = functools.partial(by_parts, product)
  return jax.lax.platform_dependent(x, kernel, cpu=parts, default=spread)


def strided(
  x: Float[Array, "b h w i"], kernel: Float[Array, "4 4 i o"]
) -> Float[Array, "b h2 w2 o"]:
  """The convolution of stride 2 with a row of zeros around."""

  def product(x: Array, kernel: Array) -> Array:
    b, h, w, c = x.shape
    x = _framed(x).reshape(b, h // 2 + 1, 2, w // 2 + 1, 2, c)
    x = x.transpose(0, 1, 3, 2, 4, 5).reshape(b, h // 2 + 1, w // 2 + 1, 4 * c)
    kernel = kernel.reshape(2, 2, 2, 2, c, -1).transpose(0, 2, 1, 3, 4, 5)
    return _fours(x) @ kernel.reshape(16 * c, -1)

  def stepped(x: Array, kernel: Array) -> Array:
    return _conv(x, kernel, 1, window_strides=(2, 2))

  parts = functools.partial(by_parts, product)
  return jax.lax.platform_dependent(x, kernel, cpu=parts, default=stepped)


class Resized(nn.Module):
  """A 3x3 convolution as nn.Conv's, of the doubled picture or halved after it.

  Doubled as by `unet.double`, the nearest pixel; halved as by `unet.halve`, the mean.

  Attributes:
    features: channels of the output.
    up: doubled, or else halved.
    kernel_init: of the kernel.
    dtype: of the computation; parameters are float32.
  """

  features: int
  up: bool
  kernel_init: nn.initializers.Initializer
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 f"]:
    shape = (3, 3, x.shape[-1], self.features)
    kernel = self.param("kernel", self.kernel_init, shape)
    bias = self.param("bias", nn.initializers.zeros, (self.features,))
    # What it does to all four pixels of a square, added up.
    around = lambda i, j: jnp.pad(kernel, ((i, 1 - i), (j, 1 - j), (0, 0), (0, 0)))  # noqa: E731
    kernel = sum(around(i, j) for i in (0, 1) for j in (0, 1))
    x = x.astype(self.dtype)
    if self.up:
      y = transposed(x, kernel.astype(self.dtype))
    else:
      y = strided(x, (kernel / 4).astype(self.dtype))
    return y + bias.astype(y.dtype)


def _framed(x: Array) -> Array:
  return jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))


def _fours(x: Array) -> Array:
  """Each 2x2 pixels' channels in one vector, a row and a column fewer."""
  h, w = x.shape[1] - 1, x.shape[2] - 1
  return jnp.concatenate(
    [x[:, i : i + h, j : j + w] for i in (0, 1) for j in (0, 1)], axis=-1
  )


def _conv(x: Array, kernel: Array, frame: int, **options: tuple[int, int]) -> Array:
  options = {"window_strides": (1, 1), **options}
  form = ("NHWC", "HWIO", "NHWC")
  padding = ((frame, frame),) * 2
  return jax.lax.conv_general_dilated(
    x, kernel, padding=padding, dimension_numbers=form, **options
  )
