"""StyleGAN2: Karras et al. 2020, arXiv:1912.04958, configuration F of table 1.

The condition enters as in the same group's next paper (arXiv:2006.06676).
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

from core import noise
from core.family import keys_at
from nets.modulated import (
  NORMAL,
  EqualConv,
  EqualDense,
  Mapping,
  StyledConv,
  ToPicture,
  leaky,
  minibatch_std,
)
from nets.resample import doubled
from nets.sizes import check_size

# How much of w's running mean a step keeps.
KEEP = 0.995


class Generator(nn.Module):
  """z -> w -> picture: a learned constant, and convolutions modulated by w.

  At each resolution, coarse to fine, a modulated convolution that doubles (but at the
  first) and one that does not, each with noise; the sum of what every resolution adds
  to the doubled picture of the one before is the output, without bounds.

  In training a part of the pictures, `mixing`, have the w of two z, the second from a
  random layer on, and w has a running mean, which the truncation of drawing needs.

  Attributes:
    shape: [h, w, c] of the picture.
    widths: channels at each resolution, from the picture's own down; each next one
      halves it.
    dim: of w.
    layers: of the mapping.
    mixing: how often two styles are mixed.
    dtype: type of the computation; parameters and output are float32.
  """

  shape: tuple[int, int, int]
  widths: tuple[int, ...]
  dim: int = 512
  layers: int = 8
  mixing: float = 0.9
  dtype: DTypeLike = jnp.float32

  def setup(self) -> None:
    height, width, channels = self.shape
    last = len(self.widths) - 1
    check_size(height, width, last, self.widths)
    self.mapper = Mapping(self.dim, self.layers)
    self.mean = self.variable("batch_stats", "w", jnp.zeros, (self.dim,))
    bottom = (height >> last, width >> last, self.widths[-1])
    self.start = self.param("start", NORMAL, bottom)
    coarse_to_fine = self.widths[::-1]
    self.ups = [StyledConv(c, True, self.dtype) for c in coarse_to_fine[1:]]
    self.convs = [StyledConv(c, dtype=self.dtype) for c in coarse_to_fine]
    self.adds = [ToPicture(channels, self.dtype) for _ in coarse_to_fine]

  @property
  def styles(self) -> int:
    """How many w a picture has: one a convolution, and one for the last addition."""
    return 2 * len(self.widths)

  def mapping(
    self, z: Float[Array, "b k"], vec: Float[Array, "b e"] | None = None
  ) -> Float[Array, "b {self.dim}"]:
    """w of z and the condition."""
    return self.mapper(z, vec)

  def synthesis(
    self,
    w: Float[Array, "b {self.styles} {self.dim}"],
    keys: Key[Array, " b"] | None = None,
  ) -> Float[Array, "b h w c"]:
    """The pictures of these styles; without keys there is no noise."""
    x = jnp.broadcast_to(self.start, (len(w), *self.start.shape))
    x = self.convs[0](x, w[:, 0], _noise(keys, 0, x.shape))
    picture = self.adds[0](x, w[:, 1])
    for i, up in enumerate(self.ups):
      b, height, width, _ = x.shape
      size = (b, 2 * height, 2 * width, 1)
      x = up(x, w[:, 2 * i + 1], _noise(keys, 2 * i + 1, size))
      x = self.convs[i + 1](x, w[:, 2 * i + 2], _noise(keys, 2 * i + 2, size))
      picture = doubled(picture) + self.adds[i + 1](x, w[:, 2 * i + 3])
    return picture

  def __call__(
    self,
    z: Float[Array, "b k"],
    vec: Float[Array, "b e"] | None = None,
    keys: Key[Array, " b"] | None = None,
    training: bool = False,
    axis: str | None = None,
  ) -> Float[Array, "b h w c"]:
    """Pictures of z; noise and mixing are drawn from the keys, and absent without.

    In training w's mean moves if "batch_stats" is mutable, averaged over `axis`.
    Raises UserError if the picture cannot be halved as often as `widths` asks.
    """
    one = self.mapping(z, vec)
    if training:
      self._track(one, axis)
    w = jnp.broadcast_to(one[:, None], (len(z), self.styles, self.dim))
    if keys is not None:
      mix, keys = jax.vmap(jax.random.split, out_axes=1)(keys)
      if training and self.mixing:
        w = self._mixed(w, mix, z.shape[1:], vec)
    return self.synthesis(w, keys)

  def _track(self, w: Array, axis: str | None) -> None:
    """mean <- 0.995 mean + 0.005 (mean of the batch)."""
    if self.is_initializing() or not self.is_mutable_collection("batch_stats"):
      return
    now = jax.lax.stop_gradient(w).mean(0)
    if axis is not None:
      now = jax.lax.pmean(now, axis)
    self.mean.value = KEEP * self.mean.value + (1 - KEEP) * now

  def _mixed(
    self, w: Array, keys: Array, shape: tuple[int, ...], vec: Array | None
  ) -> Array:
    """With probability `mixing`, another z's w from one of the layers 1, 2, ... on."""

    def draw(key: Array) -> tuple[Array, Array]:
      of_z, of_layer, of_gate = jax.random.split(key, 3)
      layer = jax.random.randint(of_layer, (), 1, self.styles)
      mixes = jax.random.bernoulli(of_gate, self.mixing)
      first = jnp.where(mixes, layer, self.styles)
      return jax.random.normal(of_z, shape), first

    z, first = jax.vmap(draw)(keys)
    other = self.mapping(z, vec)[:, None]
    return jnp.where((jnp.arange(self.styles) < first[:, None])[..., None], w, other)


def _noise(keys: Array | None, layer: int, shape: tuple[int, ...]) -> Array | None:
  """[b, h, w, 1] of N(0, 1), each example's from its key."""
  if keys is None:
    return None
  return noise.normals(keys_at(keys, layer), (*shape[1:3], 1))


class Critic(nn.Module):
  """Residual blocks that halve, the deviation over a few examples, two dense layers.

  With a condition the output is f(x) m(vec) / sqrt(d), m a mapping network as that of
  the generator and d the last width (Miyato & Koyama 2018, arXiv:1802.05637).

  Attributes:
    widths: channels at each resolution, from the picture's own down; each next one
      halves it.
    layers: of the condition's mapping.
    group: examples whose deviation is told, see `minibatch_std`.
    dtype: type of the computation, but for the end; parameters and output are float32.
  """

  widths: tuple[int, ...]
  layers: int = 8
  group: int = 4
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "b h w c"],
    vec: Float[Array, "b e"] | None = None,
    training: bool = True,
    axis: str | None = None,
  ) -> Float[Array, " b"]:
    """Raises UserError if the picture cannot be halved as often as `widths` asks.

    `training` and `axis` change nothing: there are no averages.
    """
    check_size(x.shape[1], x.shape[2], len(self.widths) - 1, self.widths)
    x = EqualConv(self.widths[0], 1, dtype=self.dtype, name="in")(x)
    for i, width in enumerate(self.widths[1:]):
      y = EqualConv(x.shape[-1], dtype=self.dtype, name=f"down_{i}_conv_0")(x)
      y = EqualConv(width, down=True, dtype=self.dtype, name=f"down_{i}_conv_1")(y)
      skip = EqualConv(width, 1, True, False, self.dtype, name=f"down_{i}_shortcut")
      x = (skip(x) + y) * jnp.asarray(math.sqrt(0.5), self.dtype)
    last = self.widths[-1]
    x = minibatch_std(x.astype(jnp.float32), self.group)
    x = EqualConv(last, name="out_conv")(x)
    x = leaky(EqualDense(last, name="out_dense")(x.reshape(len(x), -1)))
    if vec is None:
      return EqualDense(1, name="out")(x)[:, 0]
    told = Mapping(last, self.layers, name="mapper")(None, vec)
    return (EqualDense(last, name="out")(x) * told).sum(-1) / math.sqrt(last)
