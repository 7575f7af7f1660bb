"""The network of a continuous flow: dx/dt of a picture at time t."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from nets.unet import Conv
from text.cond import Cond


class ConcatSquash(nn.Module):
  """y = conv(x) sigmoid(gate) + shift, a gate and a shift a channel, linear in `vec`.

  The layer of FFJORD (Grathwohl et al. 2019, arXiv:1810.01367) in which time gates what
  a convolution says; smooth, as the solvers of an ODE need.

  Attributes:
    features: channels of the output.
    stride: of the 3x3 convolution.
    dtype: of the computation; the parameters are float32.
    kernel_init: of the convolution and of the linear map.
  """

  features: int
  stride: int = 1
  dtype: DTypeLike = jnp.float32
  kernel_init: Callable = nn.initializers.lecun_normal()

  @nn.compact
  def __call__(
    self, x: Float[Array, "b h w c"], vec: Float[Array, "b e"]
  ) -> Float[Array, "b h2 w2 {self.features}"]:
    conv = Conv(
      self.features,
      strides=self.stride,
      dtype=self.dtype,
      kernel_init=self.kernel_init,
      name="conv",
    )
    linear = nn.Dense(
      2 * self.features, dtype=self.dtype, kernel_init=self.kernel_init, name="time"
    )
    vec = linear(vec)
    gate, shift = jnp.split(vec[:, None, None], 2, axis=-1)
    return conv(x) * jax.nn.sigmoid(gate) + shift


def spread(y: Float[Array, "b h w c"], by: int) -> Float[Array, "b h2 w2 d"]:
  """Each pixel becomes by x by pixels of c / by^2 channels."""
  b, h, w, c = y.shape
  y = y.reshape(b, h, w, by, by, c // by**2).transpose(0, 1, 3, 2, 4, 5)
  return y.reshape(b, h * by, w * by, c // by**2)


class ConvVelocity(nn.Module):
  """Convolutions down to half of the sides at each width, and up again.

  Every layer is a `ConcatSquash` of the time and of `cond.pooled`, with a softplus
  between. What goes up is added to what was there on the way down. The last layer
  starts at zero, so the flow starts as the identity. No norm is over the batch: then
  the density of a picture would depend on the others beside it.

  Attributes:
    widths: channels at each resolution.
    blocks: layers at each resolution, on each way.
    patch: stride of the first convolution; the picture's sides are multiples of
      patch 2^(len(widths) - 1).
    dtype: of the computation; the parameters are float32.
  """

  widths: tuple[int, ...]
  blocks: int = 1
  patch: int = 1
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self, x: Float[Array, "b h w c"], t: Float[Array, " b"], cond: Cond
  ) -> Float[Array, "b h w c"]:
    """dx/dt, float32; t is in [0, 1]."""
    vec = t[:, None].astype(jnp.float32)
    if cond.pooled is not None:
      vec = jnp.concatenate([vec, cond.pooled.astype(jnp.float32)], axis=-1)

    def layer(y: Array, features: int, stride: int, name: str) -> Array:
      squash = ConcatSquash(features, stride, self.dtype, name=name)
      return jax.nn.softplus(squash(y, vec))

    y, skips = x, []
    for i, width in enumerate(self.widths):
      y = layer(y, width, 2 if i else self.patch, f"down_{i}")
      for j in range(self.blocks):
        y = layer(y, width, 1, f"down_{i}_{j}")
      skips.append(y)
    for i, width in reversed(list(enumerate(self.widths[:-1]))):
      up = nn.Dense(4 * width, dtype=self.dtype, name=f"up_{i}")(y)
      y = skips[i] + spread(up, 2)
      for j in range(self.blocks):
        y = layer(y, width, 1, f"up_{i}_{j}")
    last = ConcatSquash(
      self.patch**2 * x.shape[-1],
      dtype=self.dtype,
      kernel_init=nn.initializers.zeros,
      name="out",
    )
    return spread(last(y, vec), self.patch).astype(jnp.float32)
