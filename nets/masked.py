"""Networks that tell places of a picture: the hidden from the shown, or in an order."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Integer

from nets.decoder import Decoder, rotary_angles
from nets.embeddings import NoiseEmbedding
from nets.layers import Dense, Embed
from nets.stream import INIT, causal, grid_positions, readable
from text.cond import Cond

# What the trunk is told of the places: which are hidden, or in which order they come.
Told = Bool[Array, "b l"] | Int[Array, "b l"]


class Trunk(nn.Module):
  """A transformer of a condition and the places of a picture.

  Attributes:
    encoder: raw `Cond` -> encoded, trained along.
    decoder: the transformer; its width a head is a multiple of 4.
    shape: of a picture, (h, w, c): the sequence has h w c places.
  """

  encoder: nn.Module
  decoder: Decoder
  shape: tuple[int, int, int]

  def setup(self) -> None:
    dim, dtype = self.decoder.dim, self.decoder.dtype
    self.start = self.param("start", INIT, (dim,))
    self.pooled, self.text = (Dense(dim, dtype=dtype) for _ in range(2))

  def table(self, name: str) -> Float[Array, "l d"]:
    """A learned vector for each place."""
    return self.param(name, INIT, (math.prod(self.shape), self.decoder.dim))

  def front(
    self, cond: Cond, batch: int
  ) -> tuple[Float[Array, "{batch} m d"], Bool[Array, "{batch} m"]]:
    """The condition's items, as in `Stream`, and which of them may be read."""
    cond = self.encoder(cond)
    first = jnp.broadcast_to(self.start, (batch, 1, len(self.start)))
    if cond.pooled is not None:
      first = first + self.pooled(cond.pooled)[:, None]
    mask = jnp.ones((batch, 1), bool)
    if cond.seq is None:
      return first, mask
    mask = jnp.concatenate([cond.mask, mask], axis=1)
    return jnp.concatenate([self.text(cond.seq), first], axis=1), mask


class Masked(Trunk):
  """Items of places, some of them hidden, and a condition -> what is known of each.

  All read all. A hidden place is a learned item; every place has a learned position
  besides its rotary one, by which hidden ones differ.
  """

  def setup(self) -> None:
    self.hidden = self.param("hidden", INIT, (self.decoder.dim,))
    self.positions = self.table("positions")
    super().setup()

  def __call__(
    self,
    items: Float[Array, "b l d"],
    hidden: Bool[Array, "b l"],
    cond: Cond,
    ids: Integer[Array, " b"] | None = None,
  ) -> Float[Array, "b l d"]:
    first, mask = self.front(cond, len(items))
    before, total = first.shape[1], first.shape[1] + items.shape[1]
    items = jnp.where(hidden[..., None], self.hidden, items) + self.positions
    places = jnp.asarray(grid_positions(self.shape, before))
    angles = rotary_angles(places, self.decoder.dim // self.decoder.heads)
    x = jnp.concatenate([first, items], axis=1)
    return self.decoder(x, angles, readable(mask, total), ids)[:, before:]


class Permuted(Trunk):
  """Items of places and an order -> what is known of each by those before it.

  Causal: what tells place order(i) has read the condition and the items at order(0),
  ..., order(i - 1), each with a learned position, and a learned position of the place
  that is told next (Li et al. 2024, arXiv:2406.11838, section 3.4; there it is
  added inside of a decoder). Rotary positions count along the order.
  """

  def setup(self) -> None:
    self.positions, self.targets = self.table("positions"), self.table("targets")
    super().setup()

  def __call__(
    self,
    items: Float[Array, "b l d"],
    order: Int[Array, "b l"],
    cond: Cond,
    ids: Integer[Array, " b"] | None = None,
  ) -> Float[Array, "b l d"]:
    first, mask = self.front(cond, len(items))
    before, total = first.shape[1], first.shape[1] + items.shape[1]
    told = jnp.take_along_axis(items, order[..., None], axis=1)
    x = [first, self.next(None, None, order[:, :1])]
    x.append(self.next(told[:, :-1], order[:, :-1], order[:, 1:]))
    reads = causal(readable(mask, total))
    x = jnp.concatenate(x, axis=1)
    y = self.decoder(x, along(self.decoder, total), reads, ids)[:, before:]
    return jnp.take_along_axis(y, jnp.argsort(order, axis=1)[..., None], axis=1)

  def next(
    self,
    items: Float[Array, "b k d"] | None,
    places: Int[Array, "b k"] | None,
    targets: Int[Array, "b k"],
  ) -> Float[Array, "b k d"]:
    """What tells `targets` after these items at their places, or at the beginning."""
    told = self.targets[targets]
    return told if items is None else items + self.positions[places] + told


def along(decoder: Decoder, length: int) -> Float[Array, "{length} e"]:
  """Rotary angles that count along an order."""
  places = jnp.arange(length)
  return rotary_angles(jnp.stack([places, places], -1), decoder.dim // decoder.heads)


class MaskedTokens(nn.Module):
  """Whole numbers, and what is hidden or in which order -> logits of all.

  MaskGIT's network (Chang et al. 2022, arXiv:2202.04200), with the blocks of
  `nets/decoder.py`; or that of a permuted decoder.
  """

  trunk: Masked | Permuted
  vocab: int

  def setup(self) -> None:
    dim, channels = self.trunk.decoder.dim, self.trunk.shape[-1]
    self.values = Embed(channels * self.vocab, dim, embedding_init=INIT)
    self.head = Dense(self.vocab, use_bias=False, kernel_init=INIT)

  def __call__(
    self,
    x: Int[Array, "b l"],
    told: Told,
    cond: Cond,
    ids: Integer[Array, " b"] | None = None,
  ) -> Float[Array, "b l {self.vocab}"]:
    items = self.items(x, jnp.arange(x.shape[1]))
    return self.head(self.trunk(items, told, cond, ids))

  def items(
    self, x: Int[Array, "b k"], places: Int[Array, "*b k"]
  ) -> Float[Array, "b k d"]:
    """What the numbers at these places are to the trunk."""
    return self.values(places % self.trunk.shape[-1] * self.vocab + x)

  # To decode with caches, in an order.

  def front(self, cond: Cond, batch: int) -> tuple[Array, Array]:
    """`Trunk.front`."""
    return self.trunk.front(cond, batch)

  def begin(self, targets: Int[Array, "b k"]) -> Float[Array, "b k d"]:
    """What tells the first places."""
    return self.trunk.next(None, None, targets)

  def next(
    self, x: Int[Array, "b k"], places: Int[Array, "b k"], targets: Int[Array, "b k"]
  ) -> Float[Array, "b k d"]:
    """What tells `targets` after the numbers at `places`."""
    return self.trunk.next(self.items(x, places), places, targets)

  def logits(self, y: Float[Array, "b k d"]) -> Float[Array, "b k {self.vocab}"]:
    """Of the places told at the decoder's output `y`."""
    return self.head(y)


class MaskedVectors(nn.Module):
  """Vectors, as in `MaskedTokens`, and noisy ones: MAR's network and its head.

  Li et al. 2024 (arXiv:2406.11838), section 3; the trunk with the blocks of
  `nets/decoder.py`, and no encoder apart for what is shown.
  """

  trunk: Masked | Permuted
  head: nn.Module

  def setup(self) -> None:
    self.values = Dense(self.trunk.decoder.dim, dtype=self.trunk.decoder.dtype)

  def __call__(
    self,
    x: Float[Array, "b l v"],
    told: Told,
    cond: Cond,
    ids: Integer[Array, " b"] | None = None,
  ) -> Float[Array, "b l d"]:
    """What is known of each place, for the head."""
    return self.trunk(self.values(x), told, cond, ids)

  def denoise(
    self,
    x_t: Float[Array, "b k v"],
    logsnr: Float[Array, "b k"],
    z: Float[Array, "b k d"],
  ) -> Float[Array, "b k v"]:
    """The head's prediction for noisy vectors."""
    return self.head(x_t, logsnr, z)

  def both(
    self, x: Float[Array, "b l v"], told: Told, cond: Cond
  ) -> Float[Array, "b l v"]:
    """Runs every part once, to make the parameters."""
    return self.denoise(x, jnp.zeros(x.shape[:2]), self(x, told, cond))


class DiffusionHead(nn.Module):
  """A small MLP that denoises one vector, given what is known of its place.

  Blocks x + gate MLP(norm(x) (1 + scale) + shift), modulated by the noise level and z
  (Li et al. 2024, section 4.1, as in its code; adaLN-zero as in DiT). Starts at zero.

  Attributes:
    width: of the MLPs.
    depth: how many blocks.
    dtype: of the computation; parameters and output are float32.
  """

  width: int
  depth: int
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self,
    x_t: Float[Array, "b k v"],
    logsnr: Float[Array, "b k"],
    z: Float[Array, "b k d"],
  ) -> Float[Array, "b k v"]:
    zeros = nn.initializers.zeros

    def dense(y: Array, features: int, name: str, **how: object) -> Array:
      return Dense(features, dtype=self.dtype, name=name, **how)(y)

    level = NoiseEmbedding(self.width, dtype=self.dtype, name="noise")(logsnr.ravel())
    vec = level.reshape(*logsnr.shape, -1) + dense(z, self.width, "known")
    vec, y = jax.nn.silu(vec), dense(x_t, self.width, "in")
    for i in range(self.depth):
      mod = dense(vec, 3 * self.width, f"modulation_{i}", kernel_init=zeros)
      shift, scale, gate = jnp.split(mod, 3, axis=-1)
      own = nn.LayerNorm(dtype=jnp.float32, name=f"norm_{i}")(y) * (1 + scale) + shift
      own = jax.nn.silu(dense(own.astype(self.dtype), self.width, f"mlp_{i}_0"))
      y = y + gate * dense(own, self.width, f"mlp_{i}_1")
    mod = dense(vec, 2 * self.width, "modulation", kernel_init=zeros)
    shift, scale = jnp.split(mod.astype(jnp.float32), 2, axis=-1)
    y = nn.LayerNorm(use_bias=False, use_scale=False, dtype=jnp.float32)(y)
    return Dense(x_t.shape[-1], kernel_init=zeros, name="out")(y * (1 + scale) + shift)
