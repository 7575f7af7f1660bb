"""Small layers that every network shares."""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Integer

from core.parallel import tensor_ways, whole
from nets.convolution import conv


def _dot_2d(
  x: Array, kernel: Array, *_: Any, cut: int | None = None, **__: Any
) -> Array:
  """x @ kernel over the last axis of x, as one matrix product."""
  y = jax.lax.dot(x.reshape(-1, x.shape[-1]), whole(kernel, cut))
  return y.reshape(*x.shape[:-1], kernel.shape[-1])


# Flattened, the weights' gradient is a product XLA does without a transposed copy of
# its operands: on a CPU twice as fast as with nn.Dense's own dot_general.
Dense = functools.partial(nn.Dense, dot_general=_dot_2d)
# A pair of layers: the devices of the tensor axis compute some outputs each of the
# first, and sum over these inputs of the second (`core.parallel.TENSOR`).
DenseIn = functools.partial(nn.Dense, dot_general=functools.partial(_dot_2d, cut=-1))
DenseOut = functools.partial(nn.Dense, dot_general=functools.partial(_dot_2d, cut=-2))


class DenseParts(nn.Module):
  """`parts` linear maps of x, with the parameters of one `Dense` that has them all.

  Where the tensor axis divides `groups`, such as heads, each of its devices computes
  some of them.
  """

  parts: int
  features: int
  groups: int
  bias: bool = True
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "b l d"]) -> tuple[Float[Array, "b l f"], ...]:
    d, n = x.shape[-1], self.parts
    shape = (d, n * self.features)
    kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
    bias = self.param("bias", nn.initializers.zeros, shape[1:]) if self.bias else None
    x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
    if self.groups % tensor_ways() or tensor_ways() == 1:
      y = _dot_2d(x, kernel)
      return tuple(jnp.split(y if bias is None else y + bias, n, axis=-1))
    # Cut within each part.
    kernel = whole(kernel.reshape(d, n, -1), -1)
    ys = [_dot_2d(x, kernel[:, i], cut=-1) for i in range(n)]
    if bias is None:
      return tuple(ys)
    return tuple(y + b for y, b in zip(ys, jnp.split(bias, n), strict=True))


def _conv(
  x: Array, kernel: Array, strides: Any, padding: Any, **settings: Any
) -> Array:
  if max(strides) == 1:
    return conv(x, whole(kernel))
  return jax.lax.conv_general_dilated(x, whole(kernel), strides, padding, **settings)


# 3x3, of the same size or with a stride.
Conv = functools.partial(
  nn.Conv, kernel_size=(3, 3), padding=1, conv_general_dilated=_conv
)


def _table(*arrays: Array, **settings: Any) -> list[Array]:
  *query, table = arrays
  return promote_dtype(*query, whole(table), **settings)


Embed = functools.partial(nn.Embed, promote_dtype=_table)


def unit(x: Float[Array, "b d"]) -> Float[Array, "b d"]:
  """x / |x|, and 0 for 0."""
  return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, -1, keepdims=True), 1e-24))


def masked_mean(
  seq: Float[Array, "b l d"], mask: Bool[Array, "b l"] | None
) -> Float[Array, "b d"]:
  """The mean of the tokens where `mask` is True, or of all; zeros where it never is."""
  if mask is None:
    return jnp.mean(seq, 1)
  weight = mask[..., None].astype(seq.dtype)
  return jnp.sum(seq * weight, 1) / jnp.maximum(jnp.sum(weight, 1), 1)


def squeeze(x: Float[Array, "b h w c"], by: int = 2) -> Float[Array, "b h2 w2 c2"]:
  """Each square of by x by pixels becomes one pixel, row by row.

  RealNVP (Dinh et al. 2017, arXiv:1605.08803), section 3.6. A linear map of the result
  is a convolution with this stride.
  """
  b, h, w, c = x.shape
  x = x.reshape(b, h // by, by, w // by, by, c).transpose(0, 1, 3, 2, 4, 5)
  return x.reshape(b, h // by, w // by, by * by * c)


def unsqueeze(x: Float[Array, "b h w c"], by: int = 2) -> Float[Array, "b h2 w2 c2"]:
  """The inverse of `squeeze`."""
  b, h, w, c = x.shape
  x = x.reshape(b, h, w, by, by, c // by**2).transpose(0, 1, 3, 2, 4, 5)
  return x.reshape(b, h * by, w * by, c // by**2)


def neighbours(x: Float[Array, "b h w c"]) -> Float[Array, "b h w c9"]:
  """Each pixel with the eight around it, 0 beyond the picture; row by row."""
  b, h, w, c = x.shape
  padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
  views = [padded[:, i : i + h, j : j + w] for i in range(3) for j in range(3)]
  return jnp.concatenate(views, axis=-1)


@jax.custom_vjp
def overlaid(parts: Float[Array, "b h w c9"]) -> Float[Array, "b h w c"]:
  """Sums over the neighbours of each pixel: part i of the i-th.

  The transpose of `neighbours` of the reversed parts. XLA would write its gradient as a
  sum of nine padded arrays; it is `neighbours` again.
  """
  b, h, w, c9 = parts.shape
  padded = jnp.pad(parts, ((0, 0), (1, 1), (1, 1), (0, 0)))
  each = jnp.split(padded, 9, axis=-1)
  return sum(
    part[:, i // 3 : i // 3 + h, i % 3 : i % 3 + w] for i, part in enumerate(each)
  )


def _reversed_neighbours(_: None, slope: Array) -> tuple[Array]:
  b, h, w, c = slope.shape
  parts = neighbours(slope).reshape(b, h, w, 9, c)[..., ::-1, :]
  return (parts.reshape(b, h, w, 9 * c),)


overlaid.defvjp(lambda parts: (overlaid(parts), None), _reversed_neighbours)


def _conv_gathered(x: Array, kernel: Array, *_: Any, **__: Any) -> Array:
  """A 3x3 convolution: the neighbours first, then a product."""
  return _dot_2d(neighbours(x), kernel.reshape(-1, kernel.shape[-1]))


def _conv_overlaid(x: Array, kernel: Array, *_: Any, **__: Any) -> Array:
  """A 3x3 convolution: a product first, then a sum over the neighbours."""
  flat = kernel.reshape(9, *kernel.shape[2:]).swapaxes(0, 1)
  return overlaid(_dot_2d(x, flat.reshape(x.shape[-1], -1)))


# 3x3 convolutions as products, for CPUs: the first from few channels to hundreds, the
# second from hundreds to few. For others `Conv` is as fast or faster.
_AS_PRODUCT = {"kernel_size": (3, 3), "padding": 1}
ConvOfFew = functools.partial(
  nn.Conv, **_AS_PRODUCT, conv_general_dilated=_conv_gathered
)
ConvToFew = functools.partial(
  nn.Conv, **_AS_PRODUCT, conv_general_dilated=_conv_overlaid
)


class Dropout(nn.Module):
  """x * keep / (1 - rate), with one random key an example.

  The mask of an example follows from the step's 'dropout' key and the example's
  id alone, so it does not depend on how a batch is cut over devices. Without
  `ids` nothing is dropped, and no random key is needed. Srivastava et al. 2014.
  """

  rate: float

  @nn.compact
  def __call__(
    self, x: Float[Array, "b ..."], ids: Integer[Array, " b"] | None
  ) -> Float[Array, "b ..."]:
    if ids is None or self.rate == 0:
      return x
    keys = jax.vmap(jax.random.fold_in, (None, 0))(self.make_rng("dropout"), ids)
    keep = jax.vmap(lambda k: jax.random.bernoulli(k, 1 - self.rate, x.shape[1:]))(keys)
    return jnp.where(keep, x / (1 - self.rate), 0).astype(x.dtype)


class GroupNorm(nn.Module):
  """(x - mean) / std over each group of channels, then scale and shift.

  Wu & He 2018 (arXiv:1803.08494), eq. 7. There are `groups`, a divisor of c, or with 0
  gcd(32, c), or as many fewer as leave `least` (1 or 4) channels in each. A given
  `scale_shift` [b, 2c] modulates the result: y (1 + scale) + shift (ADM, Dhariwal
  & Nichol 2021, arXiv:2105.05233, section 3.1). `eps` is added to the variance.

  One pass over x gives the sums a channel; all that follows them is one
  multiply-add an element, which XLA fuses with the activation behind it.
  Statistics are float32; the result has the type of x.
  """

  least: int = 1
  groups: int = 0
  eps: float = 1e-6

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "b *size c"],
    scale_shift: Float[Array, "b c2"] | None = None,
  ) -> Float[Array, "b *size c"]:
    b, *size, c = x.shape
    groups = self.groups or min(math.gcd(32, c), max(1, c // self.least))
    gain = self.param("scale", nn.initializers.ones, (c,))
    bias = self.param("bias", nn.initializers.zeros, (c,))
    y = x.astype(jnp.float32).reshape(b, -1, c)

    def grouped(a: Float[Array, "b c"]) -> Float[Array, "b g"]:
      return a.reshape(b, groups, -1).mean(-1)

    mean = grouped(y.mean(1))
    var = jnp.maximum(grouped((y * y).mean(1)) - mean**2, 0)
    mean, rstd = (
      jnp.repeat(a, c // groups, axis=-1) for a in (mean, jax.lax.rsqrt(var + self.eps))
    )
    if scale_shift is not None:
      scale, shift = jnp.split(scale_shift.astype(jnp.float32), 2, axis=-1)
      gain, bias = gain * (1 + scale), bias * (1 + scale) + shift
    gain = rstd * gain
    bias = bias - mean * gain
    y = y * gain[:, None] + bias[:, None]
    return y.reshape(b, *size, c).astype(x.dtype)
