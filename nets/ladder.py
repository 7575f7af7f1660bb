"""The networks of a hierarchy of latents: bottom up through x, then top down.

Sønderby et al. 2016 (Ladder VAE, arXiv:1602.02282) let prior and posterior share the
way down; the network is that of Child 2020 (VDVAE, arXiv:2011.10650, section 3).
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from core.errors import UserError
from nets.groups import Group, Normal, Residual, Vec
from nets.layers import Conv, Dense


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
  latents: tuple[Float[Array, "_ b _ _ _"], ...]


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


class BottomUp(nn.Module):
  """x -> a map at each resolution, fine to coarse.

  Attributes:
    widths: channels at each resolution, fine to coarse; `sizes` are the sides.
    blocks: residual blocks at each.
    dtype: of the computation; the maps are float32.
    remat: recompute each block in the backward pass, to save memory.
    scan: compile one block of a resolution and loop, to save compile time.
  """

  widths: tuple[int, ...]
  blocks: tuple[int, ...]
  dtype: DTypeLike = jnp.float32
  remat: bool = False
  scan: bool = True

  @nn.compact
  def __call__(
    self, x: Float[Array, "b h w c"], vec: Vec = None
  ) -> tuple[Float[Array, "b _ _ _"], ...]:
    gain = math.sqrt(1 / sum(self.blocks))
    y = Conv(self.widths[0], dtype=self.dtype, name="in")(x).astype(jnp.float32)
    maps = []
    for i, side in enumerate(sizes(x.shape[1], len(self.widths))):
      y = _to_width(pool(y, side), self.widths[i], self.dtype, f"width_{i}")
      stack = _stacked(self, Residual, self.blocks[i], nn.broadcast)
      y, _ = stack(gain, self.dtype, name=f"blocks_{i}")(y, vec)
      maps.append(y)
    return tuple(maps)


class TopDown(nn.Module):
  """Latents -> output, group by group from the coarsest.

  At each resolution x starts as a learned map plus what comes from above, each pixel
  repeated.

  Attributes:
    out_channels: of the output.
    size: side of the output.
    channels: latents of a group at each place.
    widths, groups: at each resolution, fine to coarse.
    dtype: of the computation; moments and output are float32.
    remat: recompute each group in the backward pass, to save memory.
    scan: compile one group of a resolution and loop, to save compile time.
  """

  out_channels: int
  size: int
  channels: int
  widths: tuple[int, ...]
  groups: tuple[int, ...]
  dtype: DTypeLike = jnp.float32
  remat: bool = False
  scan: bool = True

  @property
  def shapes(self) -> tuple[tuple[int, int, int, int], ...]:
    """(g, h, w, c) of one example's latents, coarse to fine."""
    sides = sizes(self.size, len(self.widths))
    both = zip(self.groups, sides, strict=True)
    return tuple((g, side, side, self.channels) for g, side in both if g)[::-1]

  @nn.compact
  def __call__(
    self,
    eps: tuple[Float[Array, "_ b _ _ _"], ...],
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
        stack = _stacked(self, Group, count, 0, 0, nn.broadcast, nn.broadcast)
        group = stack(self.channels, gain, self.dtype, name=f"groups_{i}")
        on, drawn = drawn[:count], drawn[count:]
        seen = None if maps is None else maps[i]
        x, found = group(x, waiting.pop(0), on, seen, vec)
        met.append(found)
    return Pass(Dense(self.out_channels, name="out")(x), *zip(*met, strict=True))


def _to_width(x: Array, width: int, dtype: DTypeLike, name: str) -> Array:
  """A 1x1 convolution where the width changes."""
  if x.shape[-1] == width:
    return x
  return Dense(width, dtype=dtype, name=name)(x).astype(jnp.float32)


def _stacked(
  module: BottomUp | TopDown, block: type[nn.Module], count: int, *in_axes: object
) -> Callable[..., nn.Module]:
  """So many blocks in a row, each with parameters of its own."""
  if module.remat:
    block = nn.remat(block, prevent_cse=False)
  return nn.scan(
    block,
    variable_axes={"params": 0},
    split_rngs={"params": True},
    in_axes=in_axes,
    length=count,
    # A CPU runs convolutions inside loops several times slower.
    unroll=1 if module.scan else count,
  )
