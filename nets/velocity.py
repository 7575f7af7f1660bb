"""The network of a continuous flow: dx/dt of a picture at time t."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from nets.layers import Dense, neighbours, squeeze, unsqueeze
from text.cond import Cond


class ConcatSquash(nn.Module):
  """y = layer(x) sigmoid(gate) + shift, a gate and a shift a channel, linear in `vec`.

  The layer of FFJORD (Grathwohl et al. 2019, arXiv:1810.01367) in which time gates what
  a 3x3 convolution, or a linear map of each pixel, says.

  Attributes:
    features: channels of the output.
    wide: a convolution; else a linear map.
    dtype: of the computation; the parameters are float32.
    kernel_init: of the layer, and of what makes the gate and the shift.
  """

  features: int
  wide: bool = True
  dtype: DTypeLike = jnp.float32
  kernel_init: Callable = nn.initializers.lecun_normal()

  @nn.compact
  def __call__(
    self, x: Float[Array, "b h w c"], vec: Float[Array, "b e"]
  ) -> Float[Array, "b h w {self.features}"]:
    own = {"dtype": self.dtype, "kernel_init": self.kernel_init}
    x = neighbours(x) if self.wide else x
    layer = Dense(self.features, name="layer", **own)
    vec = Dense(2 * self.features, name="time", **own)(vec)
    gate, shift = jnp.split(vec[:, None, None], 2, axis=-1)
    return layer(x) * jax.nn.sigmoid(gate) + shift


class ConvVelocity(nn.Module):
  """Convolutions down to half of the sides at each width, and up again.

  Every layer is a `ConcatSquash` of the time and of `cond.pooled`, with a softplus
  between. What goes up is added to what was there on the way down. The last layer
  starts at zero, so the flow starts as the identity. No norm is over the batch: then
  the density of a picture would depend on the others beside it.

  Attributes:
    widths: channels at each resolution.
    blocks: layers at each resolution, on each way.
    patch: side of the square of pixels that is one at the first resolution; the
      picture's sides are multiples of patch 2^(len(widths) - 1).
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

    def layer(y: Array, features: int, wide: bool, name: str) -> Array:
      squash = ConcatSquash(features, wide, self.dtype, name=name)
      return jax.nn.softplus(squash(y, vec))

    y, skips = x, []
    for i, width in enumerate(self.widths):
      y = layer(squeeze(y, 2 if i else self.patch), width, i == 0, f"down_{i}")
      for j in range(self.blocks):
        y = layer(y, width, True, f"down_{i}_{j}")
      skips.append(y)
    for i, width in reversed(list(enumerate(self.widths[:-1]))):
      up = Dense(4 * width, dtype=self.dtype, name=f"up_{i}")(y)
      y = skips[i] + unsqueeze(up)
      for j in range(self.blocks):
        y = layer(y, width, True, f"up_{i}_{j}")
    last = ConcatSquash(
      self.patch**2 * x.shape[-1],
      dtype=self.dtype,
      kernel_init=nn.initializers.zeros,
      name="out",
    )
    return unsqueeze(last(y, vec), self.patch).astype(jnp.float32)
