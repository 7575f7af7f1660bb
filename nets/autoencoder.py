"""The encoder and decoder of latent diffusion's autoencoders.

Rombach et al. 2022 (arXiv:2112.10752), appendix G, from Esser et al. 2021
(arXiv:2012.09841); with the default settings they are Stable Diffusion's.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Integer

from nets.groups import Vec
from nets.layers import Conv, Dense, GroupNorm
from nets.sizes import check_groups, check_heads, check_size
from nets.unet import AttentionBlock, ResBlock, double
from text.cond import Cond

Ids = Integer[Array, " b"] | None

# Channels a group of the norms, at least: Stable Diffusion's 32 groups have as many. In
# narrower networks each would be one channel and lose its mean over the picture.
LEAST = 4


class Stack(nn.Module):
  """What Encoder and Decoder share: settings, blocks, and both ends of the network.

  Every block starts as the identity, its last layer at zero; the convolutions
  between the blocks and at both ends do not.

  Attributes:
    out_channels: channels of the output; the input may have others.
    widths: channels at each resolution, from the image's own to that of the latents;
      each next one halves it, so that f = 2 ** (len(widths) - 1).
    blocks: ResNet blocks a resolution in the encoder; the decoder has one more.
    attention: image heights at which the pixels read one another, after each block.
    head_dim: channels an attention head, a divisor of the widths that attend; 0 is
      one head of all channels.
    middle_attention: whether they do so between the two blocks at the bottom.
    groups: of every norm; 0 for 32, or fewer so that each has four channels.
    dropout: rate inside the ResNet blocks.
    dtype: type of the computation; parameters and output are float32.
    remat: recompute each block in the backward pass, to save memory.
  """

  out_channels: int
  widths: tuple[int, ...] = (128, 256, 512, 512)
  blocks: int = 2
  attention: tuple[int, ...] = ()
  head_dim: int = 0
  middle_attention: bool = True
  groups: int = 0
  dropout: float = 0.0
  dtype: DTypeLike = jnp.float32
  remat: bool = False

  def _check_heads(self, height: int) -> None:
    """Raises UserError if heads or groups do not divide widths, of such an image."""
    check_groups(self.widths, self.groups)
    attending = [c for i, c in enumerate(self.widths) if height >> i in self.attention]
    bottom = [self.widths[-1]] * self.middle_attention
    if self.head_dim:
      check_heads(attending + bottom, self.head_dim)

  def _in(self, x: Array, features: int) -> Array:
    return Conv(features, dtype=self.dtype, name="in")(x)

  def _blocks(
    self, x: Array, way: str, level: int, count: int, vec: Vec, ids: Ids
  ) -> Array:
    for i in range(count):
      x = self._block(x, self.widths[level], f"{way}_{level}_{i}", vec, ids)
      if x.shape[1] in self.attention:
        x = self._attend(x, f"{way}_{level}_{i}_attention")
    return x

  def _middle(self, x: Array, vec: Vec, ids: Ids) -> Array:
    x = self._block(x, x.shape[-1], "middle_0", vec, ids)
    if self.middle_attention:
      x = self._attend(x, "middle_attention")
    return self._block(x, x.shape[-1], "middle_1", vec, ids)

  def _out(self, x: Array) -> Array:
    norm = GroupNorm(LEAST, self.groups, name="out_norm")
    x = jax.nn.silu(norm(x.astype(jnp.float32)))
    return Conv(self.out_channels, name="out")(x)

  def _block(self, x: Array, features: int, name: str, vec: Vec, ids: Ids) -> Array:
    block = nn.remat(ResBlock) if self.remat else ResBlock
    options = (self.dropout, self.dtype)
    norms = {"least": LEAST, "groups": self.groups}
    return block(features, *options, **norms, name=name)(x, vec, ids)

  def _attend(self, x: Array, name: str) -> Array:
    block = nn.remat(AttentionBlock) if self.remat else AttentionBlock
    head_dim = self.head_dim or x.shape[-1]
    norms = {"least": LEAST, "groups": self.groups}
    made = block(head_dim, self.dtype, text=False, **norms, name=name)
    return made(x, Cond())


class Encoder(Stack):
  """Images to a map that is f times smaller: blocks, halving, ..., two blocks.

  A convolution of stride 2 halves; it sees a row and a column of zeros below and to
  the right of the image, none above and to the left. Settings as in `Stack`.
  """

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "b h w c"],
    vec: Vec = None,
    ids: Ids = None,
  ) -> Float[Array, "b h2 w2 {self.out_channels}"]:
    """[b, h / f, w / f, out_channels]; dropout is active if `ids` is given.

    `vec` modulates the second norm of every block; without it there are no such
    parameters. Raises UserError if the image cannot be halved as often as `widths`
    asks, or widths and heads do not fit together.
    """
    check_size(x.shape[1], x.shape[2], len(self.widths) - 1, self.widths)
    self._check_heads(x.shape[1])
    x = self._in(x, self.widths[0])
    for level in range(len(self.widths)):
      if level:
        halve = Conv(
          x.shape[-1],
          strides=2,
          padding=((0, 1), (0, 1)),
          dtype=self.dtype,
          name=f"down_{level}_conv",
        )
        x = halve(x)
      x = self._blocks(x, "down", level, self.blocks, vec, ids)
    return self._out(self._middle(x, vec, ids))


class Decoder(Stack):
  """A map to images that are f times larger: two blocks, blocks, doubling, ...

  Each pixel becomes a 2x2 square and a convolution follows. Settings as in `Stack`,
  `widths` in the same order as those of the encoder: from the image's own resolution
  down.
  """

  @nn.compact
  def __call__(
    self,
    z: Float[Array, "b h w c"],
    vec: Vec = None,
    ids: Ids = None,
  ) -> Float[Array, "b h2 w2 {self.out_channels}"]:
    """[b, h * f, w * f, out_channels]; `vec` and `ids` as in the encoder.

    Raises UserError if widths and heads do not fit together.
    """
    self._check_heads(z.shape[1] << (len(self.widths) - 1))
    x = self._middle(self._in(z, self.widths[-1]), vec, ids)
    for level in reversed(range(len(self.widths))):
      x = self._blocks(x, "up", level, self.blocks + 1, vec, ids)
      if level:
        conv = Conv(x.shape[-1], dtype=self.dtype, name=f"up_{level}_conv")
        x = conv(double(x))
    return self._out(x)


class Autoencoder(nn.Module):
  """Encoder, a linear map of each pixel, what comes between, another one, decoder.

  For Stable Diffusion's, `encoded` is 8: the mean, then the log variance, of `latent`
  = 4 channels.

  Attributes:
    image_channels: channels of the decoded images.
    encoded: channels that `encode` returns.
    latent: channels that `decode` takes.
    widths, blocks, attention, head_dim, middle_attention, groups, dropout, dtype,
      remat: as in `Stack`, of both encoder and decoder.
  """

  image_channels: int
  encoded: int
  latent: int
  widths: tuple[int, ...] = (128, 256, 512, 512)
  blocks: int = 2
  attention: tuple[int, ...] = ()
  head_dim: int = 0
  middle_attention: bool = True
  groups: int = 0
  dropout: float = 0.0
  dtype: DTypeLike = jnp.float32
  remat: bool = False

  def setup(self) -> None:
    settings = {
      "widths": self.widths,
      "blocks": self.blocks,
      "attention": self.attention,
      "head_dim": self.head_dim,
      "middle_attention": self.middle_attention,
      "groups": self.groups,
      "dropout": self.dropout,
      "dtype": self.dtype,
      "remat": self.remat,
    }
    self.encoder = Encoder(self.encoded, **settings)
    self.quant = Dense(self.encoded)
    self.post_quant = Dense(self.latent)
    self.decoder = Decoder(self.image_channels, **settings)

  def encode(
    self,
    x: Float[Array, "b h w c"],
    vec: Vec = None,
    ids: Ids = None,
  ) -> Float[Array, "b h2 w2 {self.encoded}"]:
    """quant(encoder(x)), [b, h / f, w / f, encoded]; raises as `Encoder`."""
    return self.quant(self.encoder(x, vec, ids))

  def decode(
    self,
    z: Float[Array, "b h w {self.latent}"],
    vec: Vec = None,
    ids: Ids = None,
  ) -> Float[Array, "b h2 w2 {self.image_channels}"]:
    """decoder(post_quant(z)), [b, h * f, w * f, image_channels]."""
    return self.decoder(self.post_quant(z), vec, ids)

  def __call__(
    self, x: Float[Array, "b h w c"], vec: Vec = None
  ) -> tuple[
    Float[Array, "b h2 w2 {self.encoded}"], Float[Array, "b h w {self.image_channels}"]
  ]:
    """What `x` is encoded to, and zeros decoded: all parameters, for `init`."""
    y = self.encode(x, vec)
    return y, self.decode(jnp.zeros((*y.shape[:-1], self.latent)), vec)
