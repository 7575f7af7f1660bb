"""The U-Net of DDPM (Ho et al. 2020, arXiv:2006.11239, appendix B)."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Integer

from core.errors import UserError
from nets.attention import CrossAttention, SelfAttention
from nets.embeddings import NoiseEmbedding
from nets.layers import Dense, Dropout, GroupNorm
from text.cond import Cond

Conv = functools.partial(nn.Conv, kernel_size=(3, 3), padding=1)


class ResBlock(nn.Module):
  """x + conv(silu(norm(conv(silu(norm x))))), the second norm modulated by `vec`.

  The last convolution starts at zero. If the number of channels changes, the
  shortcut is a 1x1 convolution.
  """

  features: int
  dropout: float = 0.0
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "b h w c"],
    vec: Float[Array, "b e"],
    ids: Integer[Array, " b"] | None,
  ) -> Float[Array, "b h w f"]:
    zeros = nn.initializers.zeros
    y = jax.nn.silu(GroupNorm(name="norm_0")(x))
    y = Conv(self.features, dtype=self.dtype, name="conv_0")(y)
    mod = Dense(2 * self.features, dtype=self.dtype, name="modulation")
    y = jax.nn.silu(GroupNorm(name="norm_1")(y, mod(jax.nn.silu(vec))))
    y = Dropout(self.dropout)(y, ids)
    y = Conv(self.features, dtype=self.dtype, kernel_init=zeros, name="conv_1")(y)
    if x.shape[-1] != self.features:
      x = Dense(self.features, dtype=self.dtype, name="shortcut")(x)
    return x + y


class AttentionBlock(nn.Module):
  """x + attention(norm x) over the pixels, then over the text if there is one."""

  head_dim: int
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "b h w c"], cond: Cond) -> Float[Array, "b h w c"]:
    b, h, w, c = x.shape
    heads, zeros = c // self.head_dim, nn.initializers.zeros
    x = x.reshape(b, h * w, c)
    y = GroupNorm(name="norm")(x)
    x = x + SelfAttention(heads, self.dtype, zeros, name="attention")(y)
    if cond.seq is not None:
      y = GroupNorm(name="norm_text")(x)
      x = x + CrossAttention(heads, self.dtype, name="text")(y, cond.seq, cond.mask)
    return x.reshape(b, h, w, c)


class UNet(nn.Module):
  """ResNet blocks down to a small picture and up again, with skip connections.

  The noise level and `cond.pooled` scale and shift every block's second norm; at
  some resolutions the pixels read one another and `cond.seq`. The output starts
  at zero.

  Attributes:
    widths: channels at each resolution; each next one halves the image.
    blocks: ResNet blocks a resolution on the way down; one more on the way up.
    attention: image heights at which there is attention; there always is at the
      bottom.
    head_dim: channels an attention head, a divisor of the widths that attend.
    out_channels: channels of the output.
    dropout: rate inside the ResNet blocks.
    dtype: type of the computation; parameters and output are float32.
    remat: recompute each block in the backward pass, to save memory.
  """

  out_channels: int
  widths: tuple[int, ...] = (64, 128, 128)
  blocks: int = 2
  attention: tuple[int, ...] = (16,)
  head_dim: int = 64
  dropout: float = 0.0
  dtype: DTypeLike = jnp.float32
  remat: bool = False

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "b h w c"],
    logsnr: Float[Array, " b"],
    cond: Cond,
    ids: Integer[Array, " b"] | None = None,
  ) -> Float[Array, "b h w {self.out_channels}"]:
    """The raw output for noisy images `x`; dropout is active if `ids` is given.

    Raises UserError if the image cannot be halved as often as `widths` asks.
    """
    self._check(x.shape[1], x.shape[2])
    resnet = nn.remat(ResBlock) if self.remat else ResBlock
    attention = nn.remat(AttentionBlock) if self.remat else AttentionBlock

    vec = NoiseEmbedding(4 * self.widths[0], self.widths[0], self.dtype, name="noise")(
      logsnr
    )
    if cond.pooled is not None:
      dense = Dense(4 * self.widths[0], dtype=self.dtype, name="pooled")
      vec = vec + dense(cond.pooled)

    def block(x: Array, features: int, name: str) -> Array:
      x = resnet(features, self.dropout, self.dtype, name=name)(x, vec, ids)
      if x.shape[1] in self.attention:
        x = attend(x, f"{name}_attention")
      return x

    def attend(x: Array, name: str) -> Array:
      return attention(self.head_dim, self.dtype, name=name)(x, cond)

    x = Conv(self.widths[0], dtype=self.dtype, name="in")(x)
    skips = [x]
    for level, features in enumerate(self.widths):
      if level:
        x = Conv(x.shape[-1], strides=2, dtype=self.dtype, name=f"down_{level}_conv")(x)
        skips.append(x)
      for i in range(self.blocks):
        x = block(x, features, f"down_{level}_{i}")
        skips.append(x)

    x = resnet(x.shape[-1], self.dropout, self.dtype, name="middle_0")(x, vec, ids)
    x = attend(x, "middle_attention")
    x = resnet(x.shape[-1], self.dropout, self.dtype, name="middle_1")(x, vec, ids)

    for level, features in reversed(list(enumerate(self.widths))):
      for i in range(self.blocks + 1):
        x = jnp.concatenate([x, skips.pop()], axis=-1)
        x = block(x, features, f"up_{level}_{i}")
      if level:
        x = x.repeat(2, axis=1).repeat(2, axis=2)
        x = Conv(x.shape[-1], dtype=self.dtype, name=f"up_{level}_conv")(x)

    x = jax.nn.silu(GroupNorm(name="out_norm")(x.astype(jnp.float32)))
    return Conv(self.out_channels, kernel_init=nn.initializers.zeros, name="out")(x)

  def _check(self, height: int, width: int) -> None:
    times = len(self.widths) - 1
    unit = 2**times
    if height % unit or width % unit:
      fit = " or ".join(
        "x".join(str(max(1, size // unit + up) * unit) for size in (height, width))
        for up in (0, 1)
      )
      raise UserError(
        f"An image of {height}x{width} cannot be halved {times} times, as the U-Net's"
        f" widths {self.widths} ask; use {fit}, or fewer widths."
      )
    attending = {self.widths[-1]} | {
      c for i, c in enumerate(self.widths) if height // 2**i in self.attention
    }
    if bad := [c for c in attending if c % self.head_dim]:
      raise UserError(
        f"The U-Net's width {bad[0]} does not divide into attention heads of"
        f" {self.head_dim}; change `widths` or `head_dim`."
      )
