"""The U-Net of DDPM (Ho et al. 2020, arXiv:2006.11239, appendix B) and its heirs.

ADM is Dhariwal & Nichol 2021 (arXiv:2105.05233), DDPM++ is Song et al. 2021
(arXiv:2011.13456), in the setting of EDM (Karras et al. 2022, arXiv:2206.00364).
"""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Integer

from nets.attention import CrossAttention, SelfAttention
from nets.embeddings import NoiseEmbedding
from nets.layers import Conv, Dense, Dropout, GroupNorm
from nets.sizes import check_groups, check_heads, check_size, per_level
from nets.spatial_transformer import SpatialTransformer
from text.cond import Cond


def halve(x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
  """The mean of each 2x2 square: the filter [1, 1] / 2 along both axes."""
  b, h, w, c = x.shape
  return x.reshape(b, h // 2, 2, w // 2, 2, c).mean((2, 4))


def double(x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
  """Each pixel becomes a 2x2 square: `halve`'s right inverse."""
  return x.repeat(2, axis=1).repeat(2, axis=2)


def join(x: Array, y: Array, scale: bool) -> Array:
  """x + y, or (x + y) / sqrt(2), which keeps the variance of independent parts."""
  return (x + y) * math.sqrt(0.5) if scale else x + y


class ResBlock(nn.Module):
  """x + conv(silu(norm(conv(silu(norm x))))), told the condition in between.

  The last convolution starts at zero. If the number of channels changes, the
  shortcut is a 1x1 convolution.

  Attributes:
    features: channels of the output.
    dropout: rate before the last convolution.
    dtype: type of the computation; parameters are float32.
    modulation: what a linear map of silu(vec) does at the second norm:
      'scale_shift' is norm(y) (1 + scale) + shift, 'shift' is norm(y + shift).
      Without `vec` it does nothing, and there is no such map.
    skip_scale: divide the sum by sqrt(2) (Song et al. 2021, appendix H.2).
    resample: 'down' or 'up' halves or doubles the image, on both ways, before the
      first convolution and the shortcut; '' does not.
    project: the shortcut is a convolution even if the channels stay.
    least, groups, eps: of the norms, see `GroupNorm`.
  """

  features: int
  dropout: float = 0.0
  dtype: DTypeLike = jnp.float32
  modulation: str = "scale_shift"
  skip_scale: bool = False
  resample: str = ""
  project: bool = False
  least: int = 1
  groups: int = 0
  eps: float = 1e-6

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "b h w c"],
    vec: Float[Array, "b e"] | None,
    ids: Integer[Array, " b"] | None,
  ) -> Float[Array, "b h2 w2 f"]:
    zeros, f = nn.initializers.zeros, self.features
    norm = GroupNorm(self.least, self.groups, self.eps, name="norm_0")
    y = jax.nn.silu(norm(x))
    if self.resample:
      x, y = ({"down": halve, "up": double}[self.resample](a) for a in (x, y))
    y = Conv(f, dtype=self.dtype, name="conv_0")(y)
    scaled = self.modulation == "scale_shift"
    mod = None
    if vec is not None:
      mod = Dense(2 * f if scaled else f, dtype=self.dtype, name="modulation")(
        jax.nn.silu(vec)
      )
      if not scaled:
        y, mod = y + mod[:, None, None], None
    # A norm over one channel would take a shift of it away again.
    least = self.least if scaled else 4
    norm = GroupNorm(least, self.groups, self.eps, name="norm_1")
    y = jax.nn.silu(norm(y, mod))
    y = Dropout(self.dropout)(y, ids)
    y = Conv(f, dtype=self.dtype, kernel_init=zeros, name="conv_1")(y)
    if x.shape[-1] != f or self.project:
      x = Dense(f, dtype=self.dtype, name="shortcut")(x)
    return join(x, y, self.skip_scale)


class AttentionBlock(nn.Module):
  """x + attention(norm x) over the pixels, then over the text if there is one.

  Or over both at once, where `joint`.

  Attributes:
    head_dim: channels an attention head, a divisor of those of x times `width`.
    dtype: type of the computation; parameters are float32.
    skip_scale: divide each sum by sqrt(2).
    pixels: whether the pixels read one another.
    text: whether they read the text.
    joint: in the same attention, if the pixels read one another.
    width: queries of all heads together, in channels of x.
    least, groups, eps: of the norms, see `GroupNorm`.
  """

  head_dim: int
  dtype: DTypeLike = jnp.float32
  skip_scale: bool = False
  pixels: bool = True
  text: bool = True
  joint: bool = False
  width: int = 1
  least: int = 1
  groups: int = 0
  eps: float = 1e-6

  @nn.compact
  def __call__(self, x: Float[Array, "b h w c"], cond: Cond) -> Float[Array, "b h w c"]:
    b, h, w, c = x.shape
    inner, zeros = self.width * c, nn.initializers.zeros
    heads = inner // self.head_dim
    norm = functools.partial(GroupNorm, self.least, self.groups, self.eps)
    x = x.reshape(b, h * w, c)
    text = self.text and cond.seq is not None
    joint = text and self.joint and self.pixels
    if self.pixels:
      y = norm(name="norm")(x)
      attention = SelfAttention(heads, self.dtype, zeros, inner=inner, name="attention")
      y = attention(y, None, cond.seq, cond.mask) if joint else attention(y)
      x = join(x, y, self.skip_scale)
    if text and not joint:
      y = norm(name="norm_text")(x)
      read = CrossAttention(heads, self.dtype, inner, name="text")
      y = read(y, cond.seq, cond.mask)
      x = join(x, y, self.skip_scale)
    return x.reshape(b, h, w, c)


def embed(
  width: int,
  dtype: DTypeLike,
  logsnr: Float[Array, " b"],
  cond: Cond,
  clock: str = "logsnr",
  length: int = 0,
) -> Float[Array, "b e"]:
  """The vector that modulates the blocks, four times as wide as the first ones.

  Or of another `length`. Its layers belong to the module that calls it; `clock` is
  `NoiseEmbedding`'s.
  """
  length = length or 4 * width
  vec = NoiseEmbedding(length, width, dtype, clock, name="noise")(logsnr)
  if cond.pooled is None:
    return vec
  return vec + Dense(length, dtype=dtype, name="pooled")(cond.pooled)


class UNet(nn.Module):
  """ResNet blocks down to a small picture and up again, with skip connections.

  The noise level and `cond.pooled` modulate every block's second norm; at some
  resolutions the pixels read one another and `cond.seq`. The output starts at zero.

  Stable Diffusion's is this one with modulation 'shift', `transformer` 1, `groups` 32,
  `eps` 1e-5, and `clock` 'scaled_linear': it was trained on the 1,000 timesteps of that
  schedule, and is told which of them, or what between two, has the given logsnr
  (configs/diffusion/stable_diffusion.py; nets/pretrained/unet.py reads its weights).

  Attributes:
    out_channels: channels of the output; the input may have others.
    widths: channels at each resolution; each next one halves the image.
    blocks: ResNet blocks a resolution on the way down, one number or one for each
      resolution; one block more on the way up.
    attention: image heights at which there is attention.
    middle_attention: whether there is at the bottom, between its last two blocks.
    text_attention: 'cross', after that of the pixels, or 'joint', one attention over
      pixels and text (GLIDE, Imagen); a transformer has its own.
    head_dim: channels an attention head, a divisor of the widths that attend.
    heads: attention heads at every width, for `head_dim` 0.
    dropout: rate inside the ResNet blocks.
    dtype: type of the computation; parameters and output are float32.
    remat: recompute each block in the backward pass, to save memory.
    stem: channels of the first convolution, a quarter of the embedding's; 0 is
      those of the first resolution.
    modulation: 'scale_shift' (ADM) or 'shift' (DDPM, DDPM++), see `ResBlock`.
    skip_scale: divide every residual sum by sqrt(2) (DDPM++).
    resample: between resolutions there is a 3x3 convolution, 'conv' (DDPM), or a
      ResNet block that resamples inside, 'block' (ADM); 'block_1x1' has a 1x1
      convolution on its shortcut (DDPM++).
    attention_up: on the way up attention follows 'every' block (DDPM, ADM) or the
      'last' of a resolution (DDPM++).
    transformer: where there is attention, blocks of a transformer in its place
      (`SpatialTransformer`); 0 is the attention alone.
    groups: of every norm; 0 is as `GroupNorm` counts them.
    eps: of the norms outside of transformers.
    clock: what the network is told of the noise level, see `NoiseEmbedding`.
  """

  out_channels: int
  widths: tuple[int, ...] = (64, 128, 128)
  blocks: int | tuple[int, ...] = 2
  attention: tuple[int, ...] = (16,)
  middle_attention: bool = True
  text_attention: str = "cross"
  head_dim: int = 64
  heads: int = 0
  dropout: float = 0.0
  dtype: DTypeLike = jnp.float32
  remat: bool = False
  stem: int = 0
  modulation: str = "scale_shift"
  skip_scale: bool = False
  resample: str = "conv"
  attention_up: str = "every"
  transformer: int = 0
  groups: int = 0
  eps: float = 1e-6
  clock: str = "logsnr"

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
    widths, blocks and heads do not fit together.
    """
    counts = self._checked(x.shape[1], x.shape[2])
    remat = nn.remat if self.remat else lambda module: module
    resnet, attention = remat(ResBlock), remat(AttentionBlock)
    transformer = remat(SpatialTransformer)
    stem = self.stem or self.widths[0]
    vec = embed(stem, self.dtype, logsnr, cond, self.clock)
    norms = {"groups": self.groups, "eps": self.eps}

    def block(x: Array, features: int, name: str, **resample) -> Array:
      options = (self.dropout, self.dtype, self.modulation, self.skip_scale)
      return resnet(features, *options, name=name, **norms, **resample)(x, vec, ids)

    def attend(x: Array, name: str) -> Array:
      head_dim, name = self.head_dim or x.shape[-1] // self.heads, f"{name}_attention"
      if self.transformer:
        options = (self.transformer, head_dim, self.dtype, self.groups)
        return transformer(*options, name=name)(x, cond)
      options = (head_dim, self.dtype, self.skip_scale)
      joint = self.text_attention == "joint"
      return attention(*options, joint=joint, name=name, **norms)(x, cond)

    def resampled(x: Array, way: str, level: int) -> Array:
      if self.resample != "conv":
        project = self.resample == "block_1x1"
        name = f"{way}_{level}_resample"
        return block(x, x.shape[-1], name, resample=way, project=project)
      conv = functools.partial(Conv, x.shape[-1], dtype=self.dtype)
      name = f"{way}_{level}_conv"
      return (
        conv(name=name)(double(x)) if way == "up" else conv(strides=2, name=name)(x)
      )

    x = Conv(stem, dtype=self.dtype, name="in")(x)
    skips = [x]
    for level, features in enumerate(self.widths):
      if level:
        x = resampled(x, "down", level)
        skips.append(x)
      for i in range(counts[level]):
        x = block(x, features, f"down_{level}_{i}")
        if x.shape[1] in self.attention:
          x = attend(x, f"down_{level}_{i}")
        skips.append(x)

    x = block(x, x.shape[-1], "middle_0")
    x = attend(x, "middle") if self.middle_attention else x
    x = block(x, x.shape[-1], "middle_1")

    for level, features in reversed(list(enumerate(self.widths))):
      for i in range(counts[level] + 1):
        x = jnp.concatenate([x, skips.pop()], axis=-1)
        x = block(x, features, f"up_{level}_{i}")
        every = self.attention_up == "every" or i == counts[level]
        if x.shape[1] in self.attention and every:
          x = attend(x, f"up_{level}_{i}")
      if level:
        x = resampled(x, "up", level)

    x = jax.nn.silu(GroupNorm(**norms, name="out_norm")(x.astype(jnp.float32)))
    return Conv(self.out_channels, kernel_init=nn.initializers.zeros, name="out")(x)

  def _checked(self, height: int, width: int) -> tuple[int, ...]:
    counts = per_level(self.blocks, self.widths)
    check_size(height, width, len(self.widths) - 1, self.widths)
    heights = [height // 2**i for i in range(len(self.widths))]
    attending = [
      c for c, h in zip(self.widths, heights, strict=True) if h in self.attention
    ]
    bottom = [self.widths[-1]] * self.middle_attention
    check_heads(attending + bottom, self.head_dim, self.heads)
    check_groups(self.widths, self.groups)
    return counts
