"""Imagen's Efficient U-Net (Saharia et al. 2022, arXiv:2205.11487, appendix B.1)."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Integer

from core.errors import UserError
from nets.layers import Conv, GroupNorm
from nets.sizes import check_heads, check_size, per_level
from nets.unet import AttentionBlock, ResBlock, double, embed
from text.cond import Cond


class EfficientUNet(nn.Module):
  """A U-Net that works at low resolution, made for super-resolution.

  Every level halves the image before its blocks and doubles it after them, so that
  no block works at full size, and lower levels have more blocks. Every residual
  sum is divided by sqrt(2). Levels, not image heights, say where there is
  attention, so one can train on crops and sample whole pictures. The noise level
  and `cond.pooled` modulate every block. The output starts at zero.

  Attributes:
    out_channels: channels of the output; the input may have others, such as those
      of a small picture made large.
    widths: channels of each level; the first is at half the image's size.
    blocks: ResNet blocks of each level, one number or one for each; as many on the
      way up.
    attention_levels: levels, from 0, whose pixels read one another.
    text_levels: levels, from 0, whose pixels read `cond.seq`.
    text_attention: as in `UNet`; levels in both lists have one attention if 'joint'.
    attention_width: queries of all heads together, in channels of what attends; the
      paper's figure A.28 has 2.
    head_dim: channels an attention head, a divisor of `attention_width` times the
      widths that attend.
    project: every shortcut is a 1x1 convolution, as in the paper's figure A.27.
    embedding: length of the vector that modulates the blocks; 0 for four times the
      first width.
    dropout: rate inside the ResNet blocks.
    dtype: type of the computation; parameters and output are float32.
    remat: recompute each block in the backward pass, to save memory.
  """

  out_channels: int
  widths: tuple[int, ...] = (64, 128, 128)
  blocks: int | tuple[int, ...] = 2
  attention_levels: tuple[int, ...] = (2,)
  text_levels: tuple[int, ...] = (2,)
  text_attention: str = "cross"
  attention_width: int = 1
  head_dim: int = 64
  project: bool = False
  embedding: int = 0
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

    Raises UserError if the image cannot be halved as often as `widths` asks, or
    widths, blocks, levels and heads do not fit together.
    """
    counts = per_level(self.blocks, self.widths)
    attending = {*self.attention_levels, *self.text_levels}
    if bad := [level for level in attending if level >= len(self.widths)]:
      raise UserError(
        f"The U-Net has no level {bad[0]}, which `attention_levels` or `text_levels`"
        f" names; its widths {self.widths} are levels 0 to {len(self.widths) - 1}."
      )
    check_size(x.shape[1], x.shape[2], len(self.widths), self.widths)
    inner = [self.attention_width * c for c in self.widths]
    check_heads([c for i, c in enumerate(inner) if i in attending], self.head_dim)
    resnet = nn.remat(ResBlock) if self.remat else ResBlock
    attention = nn.remat(AttentionBlock) if self.remat else AttentionBlock
    vec = embed(self.widths[0], self.dtype, logsnr, cond, length=self.embedding)

    def blocks(x: Array, way: str, level: int) -> Array:
      for i in range(counts[level]):
        x = resnet(
          self.widths[level],
          self.dropout,
          self.dtype,
          skip_scale=True,
          project=self.project,
          name=f"{way}_{level}_{i}",
        )(x, vec, ids)
      pixels, text = level in self.attention_levels, level in self.text_levels
      if pixels or text:
        name = f"{way}_{level}_attention"
        joint = self.text_attention == "joint"
        options = (self.head_dim, self.dtype, True, pixels, text, joint)
        x = attention(*options, self.attention_width, name=name)(x, cond)
      return x

    x = Conv(self.widths[0], dtype=self.dtype, name="in")(x)
    skips = []
    for level, features in enumerate(self.widths):
      x = Conv(features, strides=2, dtype=self.dtype, name=f"down_{level}_conv")(x)
      x = blocks(x, "down", level)
      skips.append(x)

    skips.pop()  # the bottom goes on as it is
    for level in reversed(range(len(self.widths))):
      x = blocks(x, "up", level)
      features = self.widths[max(level - 1, 0)]
      x = Conv(features, dtype=self.dtype, name=f"up_{level}_conv")(double(x))
      if level:
        x = jnp.concatenate([x, skips.pop()], axis=-1)

    x = jax.nn.silu(GroupNorm(name="out_norm")(x.astype(jnp.float32)))
    return Conv(self.out_channels, kernel_init=nn.initializers.zeros, name="out")(x)
