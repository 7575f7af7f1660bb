"""One group of latents of a hierarchy, and the blocks it is made of.

Those of Child 2020 (VDVAE, arXiv:2011.10650, figure 3): no norms, and last layers that
start small.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from nets.layers import Conv, Dense

SOFT = 5.0  # |log std| stays below

Vec = Float[Array, "b e"] | None


class Normal(NamedTuple):
  """Independent normals, [b, h, w, c], or [g, b, h, w, c] of g groups."""

  mean: Float[Array, "... b _ _ _"]
  log_std: Float[Array, "... b _ _ _"]

  def at(self, eps: Float[Array, "... b _ _ _"]) -> Float[Array, "... b _ _ _"]:
    """z = mean + std eps."""
    return self.mean + jnp.exp(self.log_std) * eps


class Block(nn.Module):
  """A 1x1, two 3x3 and a 1x1 convolution, gelu before each.

  On maps of 1x1 or 2x2 all are 1x1. `vec` modulates the first one's output y to
  y (1 + scale) + shift by a linear map; without it there is none.

  Attributes:
    features: channels of the output.
    inside: channels between the layers.
    gain: of the last layer's initial standard deviation; 0 for a layer of zeros.
    dtype: of the computation; the parameters are float32.
  """

  features: int
  inside: int
  gain: float = 1.0
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self, x: Float[Array, "b h w c"], vec: Vec = None
  ) -> Float[Array, "b h w {self.features}"]:
    inside, x = self.inside, x.astype(self.dtype)
    y = Dense(inside, dtype=self.dtype, name="in")(jax.nn.gelu(x))
    if vec is not None:
      mod = Dense(2 * inside, dtype=self.dtype, name="modulation")(jax.nn.silu(vec))
      scale, shift = jnp.split(mod[:, None, None], 2, axis=-1)
      y = y * (1 + scale) + shift
    for i in range(2):
      layer = Conv if x.shape[1] > 2 else Dense
      y = layer(inside, dtype=self.dtype, name=f"middle_{i}")(jax.nn.gelu(y))
    last = Dense(
      self.features, dtype=self.dtype, kernel_init=_scaled(self.gain), name="out"
    )
    return last(jax.nn.gelu(y)).astype(jnp.float32)


class Residual(nn.Module):
  """x + `Block`, a quarter as wide inside; the fields are a Block's."""

  gain: float
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self, x: Float[Array, "b h w c"], vec: Vec = None
  ) -> tuple[Float[Array, "b h w c"], None]:
    """The sum, and None for `nn.scan`."""
    width = x.shape[-1]
    block = Block(width, _quarter(width), self.gain, self.dtype, name="block")
    return x + block(x, vec), None


class Group(nn.Module):
  """One group of latents on the way down (VDVAE, figure 3).

  The prior's block gives the prior and what is added to x; the posterior's, which also
  sees the map that went up, the posterior. x + residual + linear(z) goes through a
  residual block. A new model's prior is N(0, I).

  Attributes:
    channels: of z.
    gain: of the last layers that add to x.
    dtype: of the computation; moments and x are float32.
  """

  channels: int
  gain: float
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "b h w c"],
    eps: Float[Array, "b h w z"],
    drawn: Bool[Array, ""],
    seen: Float[Array, "b h w c2"] | None,
    vec: Vec,
  ) -> tuple[Float[Array, "b h w c"], tuple]:
    """x below, and (prior, posterior, z); z is the prior's mean unless `drawn`."""
    c, width, dtype = self.channels, x.shape[-1], self.dtype
    inside = _quarter(width)
    found = Block(2 * c + width, inside, 0.0, dtype, name="prior")(x, vec)
    prior, posterior = _normal(found[..., : 2 * c]), None
    if seen is not None:
      both = jnp.concatenate([x, seen], axis=-1)
      moments = Block(2 * c, inside, 1.0, dtype, name="posterior")(both, vec)
      posterior = _normal(moments)
    z = jnp.where(drawn, (posterior or prior).at(eps), prior.mean)
    add = Dense(width, dtype=dtype, kernel_init=_scaled(self.gain), name="latents")
    x = x + found[..., 2 * c :] + add(z)
    x, _ = Residual(self.gain, dtype, name="residual")(x, vec)
    return x, (prior, posterior, z)


def _quarter(width: int) -> int:
  return max(1, width // 4)


def _scaled(gain: float) -> nn.initializers.Initializer:
  """Flax's own initializer with its standard deviation times `gain`."""
  if gain == 0:
    return nn.initializers.zeros
  return nn.initializers.variance_scaling(gain**2, "fan_in", "truncated_normal")


def _normal(moments: Float[Array, "b h w c"]) -> Normal:
  """log std is kept within SOFT by a tanh, as NVAE's published code does."""
  mean, log_std = jnp.split(moments, 2, axis=-1)
  return Normal(mean, SOFT * jnp.tanh(log_std / SOFT))
