"""Networks of coupling layers: from one half of a picture to how the other changes.

All are called (x, encoded `Cond`) and return float32. The last layer starts at zero, so
a new coupling does to every number what raw numbers of zero say (Kingma & Dhariwal
2018, arXiv:1807.03039, section 3.3). No norm is over the batch: then the density of a
picture would depend on the others beside it.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from nets.layers import Conv, ConvOfFew, ConvToFew, Dense, GroupNorm
from nets.transformer import Blocks
from nets.unet import ResBlock
from text.cond import Cond

ZEROS = nn.initializers.zeros

Image = Float[Array, "b h w c"]
Raw = Float[Array, "b h w r"]


class ConvConditioner(nn.Module):
  """Glow's: a 3x3, a 1x1 and a 3x3 convolution, relu between (section 5.1).

  Glow has an actnorm after each of the first two. Here there is no norm: x has unit
  scale, as an actnorm came before the coupling, and He et al.'s initializer
  (arXiv:1502.01852) keeps it through a relu. `cond.pooled` modulates both hidden layers
  to y (1 + scale) + shift by a linear map.

  Attributes:
    out_channels: of the output.
    hidden: channels between the layers.
    dtype: of the computation; the parameters are float32.
  """

  out_channels: int
  hidden: int = 512
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: Image, cond: Cond) -> Raw:
    """[b, h, w, out_channels]."""
    he = nn.initializers.he_normal()
    first = ConvOfFew(self.hidden, dtype=self.dtype, kernel_init=he, name="in")
    second = Dense(self.hidden, dtype=self.dtype, kernel_init=he, name="middle")
    mods = [None, None]
    if cond.pooled is not None:
      mod = Dense(4 * self.hidden, dtype=self.dtype, name="modulation")(cond.pooled)
      mods = jnp.split(mod[:, None, None], 2, axis=-1)
    y = x
    for layer, mod in zip((first, second), mods, strict=True):
      y = layer(y)
      if mod is not None:
        scale, shift = jnp.split(mod, 2, axis=-1)
        y = y * (1 + scale) + shift
      y = jax.nn.relu(y)
    last = ConvToFew(self.out_channels, dtype=self.dtype, kernel_init=ZEROS, name="out")
    return last(y).astype(jnp.float32)


class ResNetConditioner(nn.Module):
  """Residual blocks of two 3x3 convolutions, as in RealNVP and neural spline flows.

  Dinh et al. 2017 (arXiv:1605.08803), section 3.6; Durkan et al. 2019
  (arXiv:1906.04032), section 5.4. Both have batch norms, for which this has group norms
  over each picture. `cond.pooled` modulates the second norm of every block.

  Attributes:
    out_channels: of the output.
    hidden: channels of every block.
    blocks: how many.
    dtype: of the computation; the parameters are float32.
  """

  out_channels: int
  hidden: int = 64
  blocks: int = 8
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: Image, cond: Cond) -> Raw:
    """[b, h, w, out_channels]."""
    y = Conv(self.hidden, dtype=self.dtype, name="in")(x)
    for i in range(self.blocks):
      block = ResBlock(self.hidden, dtype=self.dtype, least=4, name=f"block_{i}")
      y = block(y, cond.pooled, None)
    y = jax.nn.silu(GroupNorm(4, name="out_norm")(y.astype(jnp.float32)))
    return Dense(self.out_channels, kernel_init=ZEROS, name="out")(y)


class ViTConditioner(nn.Module):
  """Jet's: a vision transformer whose tokens are the pixels of x.

  Kolesnikov et al. 2024 (arXiv:2412.15129), section 3.1. `cond.pooled` modulates every
  block (adaLN-zero), and the pixels read `cond.seq` by cross-attention.

  Attributes:
    out_channels: of the output.
    dim: width of a token.
    depth: number of blocks.
    heads: of the attention; a divisor of dim.
    dtype: of the computation; the parameters are float32.
    scan: compile one block and loop over it.
  """

  out_channels: int
  dim: int = 512
  depth: int = 2
  heads: int = 8
  dtype: DTypeLike = jnp.float32
  scan: bool = True

  @nn.compact
  def __call__(self, x: Image, cond: Cond) -> Raw:
    """[b, h, w, out_channels]."""
    b, h, w, c = x.shape
    init = nn.initializers.normal(0.02)
    positions = self.param("positions", init, (h * w, self.dim))
    y = Dense(self.dim, dtype=self.dtype, name="in")(x.reshape(b, h * w, c))
    blocks = Blocks(
      self.depth, self.heads, dtype=self.dtype, scan=self.scan, name="blocks"
    )
    y = blocks(y + positions, vec=cond.pooled, text=cond.seq, text_mask=cond.mask)
    y = nn.LayerNorm(dtype=jnp.float32, name="out_norm")(y)
    y = Dense(self.out_channels, kernel_init=ZEROS, name="out")(y)
    return y.reshape(b, h, w, -1)
