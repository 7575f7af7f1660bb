"""Twice or half the size by the filter [1, 3, 3, 1], alone or with a convolution.

The resampling of StyleGAN2 (Karras et al. 2020, arXiv:1912.04958, appendix B) and of
R3GAN (Huang et al. 2024, arXiv:2501.05441), whose [1, 2, 1] becomes the same filter
with the [1, 1] of the nearest pixel.

Two forms of one sum: the one with fewer products is left to accelerators. On a CPU XLA
takes ten times longer for the weights' gradient of a convolution whose output is larger
than its input, which the derivative of any strided one is, so there all convolutions
have stride 1 and the size of their input.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from nets.convolution import conv

TAPS = (0.125, 0.375, 0.375, 0.125)


def upfirdn(
  x: Float[Array, "b h w c"], up: int, down: int, pad: int
) -> Float[Array, "b h2 w2 c"]:
  """up - 1 zeros between pixels, `pad` at each end; the filter; every down-th number.

  So along both axes. The filter is up * [1, 3, 3, 1] / 8, so that a constant stays
  one, away from the edges. A side n becomes (up (n - 1) + 2 pad - 2) / down, rounded
  up.
  """
  for axis in (1, 2):
    spread = [(0, 0, 0)] * 4
    spread[axis] = (pad, pad, up - 1)
    padded = jax.lax.pad(x, jnp.zeros((), x.dtype), spread)
    size = padded.shape[axis] - len(TAPS) + 1
    x = sum(
      jnp.asarray(up * tap, x.dtype)
      * jax.lax.slice_in_dim(padded, k, k + size, down, axis)
      for k, tap in enumerate(TAPS)
    )
  return x


def doubled(x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
  """Twice the size: each new pixel is 3/4 the nearer and 1/4 the farther old one."""
  return upfirdn(x, up=2, down=1, pad=2)


def halved(x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
  """Half the size, `doubled`'s transpose up to the factor 4."""
  return upfirdn(x, up=1, down=2, pad=1)


def doubled_conv(
  x: Float[Array, "b h w i"], kernel: Float[Array, "3 3 i o"]
) -> Float[Array, "b h2 w2 o"]:
  """A 3x3 convolution of `doubled`, which reaches a pixel beyond the edges."""

  def fewer_products(x: Array, kernel: Array) -> Array:
    y = _conv(x, kernel, ((2, 2), (2, 2)), spread=2)
    return upfirdn(y, up=1, down=1, pad=1) * jnp.asarray(4, x.dtype)

  def same_size(x: Array, kernel: Array) -> Array:
    return conv(upfirdn(x, up=2, down=1, pad=3), kernel)[:, 1:-1, 1:-1]

  return jax.lax.platform_dependent(x, kernel, cpu=same_size, default=fewer_products)


def halved_conv(
  x: Float[Array, "b h w i"], kernel: Float[Array, "3 3 i o"]
) -> Float[Array, "b h2 w2 o"]:
  """Every second pixel of the filtered picture's 3x3 convolution."""
  x = upfirdn(x, up=1, down=1, pad=2)

  def fewer_products(x: Array, kernel: Array) -> Array:
    return _conv(x, kernel, "VALID", stride=2)

  def same_size(x: Array, kernel: Array) -> Array:
    return conv(x, kernel)[:, 1:-1:2, 1:-1:2]

  return jax.lax.platform_dependent(x, kernel, cpu=same_size, default=fewer_products)


def grouped_conv(
  x: Float[Array, "b h w i"], kernel: Float[Array, "k k j o"]
) -> Float[Array, "b h w o"]:
  """i / j groups of channels, each with a convolution of its own; keeps the size."""
  groups = x.shape[-1] // kernel.shape[2]

  def together(x: Array, kernel: Array) -> Array:
    return _conv(x, kernel, "SAME", groups=groups)

  def one_by_one(x: Array, kernel: Array) -> Array:
    parts = zip(*(jnp.split(a, groups, axis=-1) for a in (x, kernel)), strict=True)
    return jnp.concatenate([conv(*part) for part in parts], axis=-1)

  return jax.lax.platform_dependent(x, kernel, cpu=one_by_one, default=together)


def _conv(
  x: Array,
  kernel: Array,
  padding: str | tuple[tuple[int, int], ...],
  stride: int = 1,
  spread: int = 1,
  groups: int = 1,
) -> Array:
  return jax.lax.conv_general_dilated(
    x,
    kernel,
    (stride, stride),
    padding,
    lhs_dilation=(spread, spread),
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
    feature_group_count=groups,
  )
