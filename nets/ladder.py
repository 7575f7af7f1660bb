"""The networks of a hierarchy of latents: bottom up through x, then top down.

Sønderby et al. 2016 (Ladder VAE, arXiv:1602.02282) let prior and posterior share the
way down; the blocks are those of Child 2020 (VDVAE, arXiv:2011.10650, section 3 and
figure 3): no norms, the branches' last layers scaled with depth.
"""

import functools
import math
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from core.errors import UserError
from nets.layers import Dense
from nets.unet import Conv

SOFT = 5.0  # |log std| stays below

Vec = Float[Array, "b e"] | None


class Normal(NamedTuple):
  """Independent normals; groups of one resolution are stacked along g."""

  mean: Float[Array, "*g b h w c"]
  log_std: Float[Array, "*g b h w c"]

  def at(self, eps: Float[Array, "*g b h w c"]) -> Float[Array, "*g b h w c"]:
    """z = mean + std eps."""
    return self.mean + jnp.exp(self.log_std) * eps


class Pass(NamedTuple):
  """What a way down has met; one Normal a resolution with latents, coarse to fine.

  Attributes:
    out: the last layer's output.
    priors: p(z_l | z_<l, y).
    posteriors: q(z_l | z_<l, x, y); None without x.
    latents: z_l, each [g, b, h, w, c].
  """

  out: Float[Array, "b h w r"]
  priors: tuple[Normal, ...]
  posteriors: tuple[Normal | None, ...]
  latents: tuple[Float[Array, "g b h w c"], ...]


def sizes(size: int, count: int) -> tuple[int, ...]:
  """Sides of the maps, fine to coarse: each half the last, and 1 after 4 or an odd one.

  So 32, 16, 8, 4, 1 as in VDVAE, and 28, 14, 7, 1.

  Raises:
    UserError: more resolutions than that.
  """
  found = [size]
  while found[-1] > 1 and len(found) < count:
    last = found[-1]
    found.append(1 if last <= 4 or last % 2 else last // 2)
  if count > len(found):
    raise UserError(
      f"A picture of {size}x{size} has {len(found)} resolutions, {found}, and"
      f" model.widths asks for {count}: give it fewer."
    )
  return tuple(found)


def pool(x: Float[Array, "b h w c"], side: int) -> Float[Array, "b {side} {side} c"]:
  """The means of side x side equal parts."""
  b, h, w, c = x.shape
  return x.reshape(b, side, h // side, side, w // side, c).mean((2, 4))


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


class BottomUp(nn.Module):
  """x -> a map at each resolution, fine to coarse.

  Attributes:
    widths: channels at each resolution, fine to coarse; `sizes` are the sides.
    blocks: residual blocks at each.
    dtype: of the computation; the maps are float32.
    remat: recompute each block in the backward pass, to save memory.
  """

  widths: tuple[int, ...]
  blocks: tuple[int, ...]
  dtype: DTypeLike = jnp.float32
  remat: bool = False

  @nn.compact
  def __call__(
    self, x: Float[Array, "b h w c"], vec: Vec = None
  ) -> tuple[Float[Array, "b _ _ _"], ...]:
    gain = math.sqrt(1 / sum(self.blocks))
    y = Conv(self.widths[0], dtype=self.dtype, name="in")(x).astype(jnp.float32)
    maps = []
    for i, side in enumerate(sizes(x.shape[1], len(self.widths))):
      y = _to_width(pool(y, side), self.widths[i], self.dtype, f"width_{i}")
      stack = _scanned(Residual, self.blocks[i], nn.broadcast, remat=self.remat)
      y, _ = stack(gain, self.dtype, name=f"blocks_{i}")(y, vec)
      maps.append(y)
    return tuple(maps)


class TopDown(nn.Module):
  """Latents -> output, group by group from the coarsest.

  At each resolution x starts as a learned map plus what comes from above, each pixel
  repeated. The groups of one resolution are one loop, so that compile time does not
  grow with depth.

  Attributes:
    out_channels: of the output.
    size: side of the output.
    channels: latents of a group at each place.
    widths, groups: at each resolution, fine to coarse.
    dtype: of the computation; moments and output are float32.
    remat: recompute each group in the backward pass, to save memory.
  """

  out_channels: int
  size: int
  channels: int
  widths: tuple[int, ...]
  groups: tuple[int, ...]
  dtype: DTypeLike = jnp.float32
  remat: bool = False

  @property
  def shapes(self) -> tuple[tuple[int, int, int, int], ...]:
    """(g, h, w, c) of one example's latents, coarse to fine."""
    sides = sizes(self.size, len(self.widths))
    both = zip(self.groups, sides, strict=True)
    return tuple((g, side, side, self.channels) for g, side in both if g)[::-1]

  @nn.compact
  def __call__(
    self,
    eps: tuple[Float[Array, "g b h w c"], ...],
    drawn: Bool[Array, " groups"],
    vec: Vec = None,
    maps: tuple[Float[Array, "b _ _ _"], ...] | None = None,
  ) -> Pass:
    """z_l = mean + std eps_l of the posterior, or without `maps` of the prior.

    Where `drawn`, one for each group from the coarsest, is False, z_l is the prior's
    mean.
    """
    gain, zeros = math.sqrt(1 / sum(self.groups)), nn.initializers.zeros
    sides = sizes(self.size, len(self.widths))
    x, met, waiting = None, [], list(eps)
    for i in reversed(range(len(sides))):
      side, width, count = sides[i], self.widths[i], self.groups[i]
      start = self.param(f"start_{i}", zeros, (side, side, width))
      if x is None:
        x = jnp.broadcast_to(start, (eps[0].shape[1], *start.shape))
      else:
        x = _to_width(x, width, self.dtype, f"width_{i}")
        times = side // x.shape[1]
        x = start + x.repeat(times, axis=1).repeat(times, axis=2)
      if count:
        stack = _scanned(
          Group, count, 0, 0, nn.broadcast, nn.broadcast, remat=self.remat
        )
        group = stack(self.channels, gain, self.dtype, name=f"groups_{i}")
        on, drawn = drawn[:count], drawn[count:]
        seen = None if maps is None else maps[i]
        x, found = group(x, waiting.pop(0), on, seen, vec)
        met.append(found)
    return Pass(Dense(self.out_channels, name="out")(x), *zip(*met, strict=True))


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


def _to_width(x: Array, width: int, dtype: DTypeLike, name: str) -> Array:
  """A 1x1 convolution where the width changes."""
  if x.shape[-1] == width:
    return x
  return Dense(width, dtype=dtype, name=name)(x).astype(jnp.float32)


def _scanned(
  block: type[nn.Module], count: int, *in_axes: object, remat: bool
) -> functools.partial:
  """So many blocks in a row, each with parameters of its own, as one loop."""
  if remat:
    block = nn.remat(block, prevent_cse=False)
  return nn.scan(
    block,
    variable_axes={"params": 0},
    split_rngs={"params": True},
    in_axes=in_axes,
    length=count,
  )
