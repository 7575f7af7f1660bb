"""A decoder as Llama's: RMSNorm, rotary positions, SwiGLU, and a cache to decode with.

Touvron et al. 2023 (arXiv:2302.13971), section 2.2. Positions may have several axes,
such as the row and the column of a picture.
"""

import math
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Integer, PyTree

from nets.attention import attend
from nets.layers import DenseOut, DenseParts, Dropout
from nets.transformer import repeat

THETA = 10_000.0  # of the slowest rotation

Mask = Bool[Array, "b l l"] | Bool[Array, "b l"] | None


class Cache(NamedTuple):
  """Keys and values of a layer, in buffers of a fixed length s."""

  k: Float[Array, "b h s d"]
  v: Float[Array, "b h s d"]


def rotary_angles(
  positions: Integer[Array, "l axes"], head_dim: int
) -> Float[Array, "l e"]:
  """Angles position theta^(-i / (e / axes)), i < e / axes, of each axis in turn.

  e = head_dim / 2, a multiple of the number of axes. With one axis RoPE's own, Su et
  al. 2021 (arXiv:2104.09864), eq. 15.
  """
  each = head_dim // (2 * positions.shape[1])
  freqs = jnp.exp(-math.log(THETA) / each * jnp.arange(each))
  angles = positions[..., None].astype(jnp.float32) * freqs
  return angles.reshape(len(positions), -1)


def rotate(
  x: Float[Array, "b l h d"], angles: Float[Array, "l e"]
) -> Float[Array, "b l h d"]:
  """Each pair (x_i, x_(i + d / 2)) turned by its angle: Su et al. 2021, eq. 34.

  There the pairs are neighbours; halves are what Llama's published weights go by. A
  product of two rotated vectors depends on the difference of their positions alone.
  """
  cos, sin = (f(angles)[:, None].astype(x.dtype) for f in (jnp.cos, jnp.sin))
  a, b = jnp.split(x, 2, axis=-1)
  return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def attend_cached(
  q: Float[Array, "b l h d"], cache: Cache, mask: Bool[Array, "b l s"]
) -> Float[Array, "b l h d"]:
  """`attend` to the keys and values of a cache, which lie as they are read."""
  q = q.transpose(0, 2, 1, 3) * q.shape[-1] ** -0.5
  logits = jnp.einsum("bhld,bhsd->bhls", q, cache.k, preferred_element_type=jnp.float32)
  weights = jax.nn.softmax(jnp.where(mask[:, None], logits, -1e30))
  y = jnp.einsum(
    "bhls,bhsd->bhld",
    weights.astype(q.dtype),
    cache.v,
    preferred_element_type=jnp.float32,
  )
  return y.astype(q.dtype).transpose(0, 2, 1, 3)


class DecoderBlock(nn.Module):
  """x + attention(norm x), then x + W_3 (silu(W_1 norm x) * (W_2 norm x)).

  Without biases; norms are RMSNorm. SwiGLU is Shazeer 2020 (arXiv:2002.05202), eq. 6.

  Attributes:
    heads: attention heads; x has a multiple of them times twice the axes of positions.
    hidden: width inside of the SwiGLU.
    dropout: rate on both branches, where `ids` are given.
    dtype: of the computation; parameters are float32.
    epsilon: of the norms.
  """

  heads: int
  hidden: int
  dropout: float = 0.0
  dtype: DTypeLike = jnp.float32
  epsilon: float = 1e-6

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "b l d"],
    angles: Float[Array, "l e"],
    mask: Bool[Array, "b l m"] | Bool[Array, "b l"] | None,
    ids: Integer[Array, " b"] | None = None,
    cache: Cache | None = None,
    at: Int[Array, ""] | int = 0,
  ) -> tuple[Float[Array, "b l d"], Cache | None]:
    """(output, cache). With a cache x is what is at slots `at`, `at` + 1, ... of it.

    `mask` tells which keys each query reads, of x itself or of the cache's slots.
    """
    b, length, dim = x.shape

    def parts(count: int, features: int, groups: int, name: str) -> nn.Module:
      return DenseParts(count, features, groups, False, self.dtype, name=name)

    def summed(name: str) -> nn.Module:
      return DenseOut(dim, use_bias=False, dtype=self.dtype, name=name)

    def norm(x: Array, name: str) -> Array:
      made = nn.RMSNorm(self.epsilon, dtype=jnp.float32, name=name)
      return made(x).astype(self.dtype)

    qkv = parts(3, dim, self.heads, "qkv")(norm(x, "norm_0"))
    q, k, v = (y.reshape(b, length, self.heads, -1) for y in qkv)
    q, k = rotate(q, angles), rotate(k, angles)
    if cache is None:
      y = attend(q, k, v, mask)
    else:
      cache = Cache(*(_written(*pair, at) for pair in zip(cache, (k, v), strict=True)))
      y = attend_cached(q, cache, mask)
    y = summed("out")(y.reshape(b, length, dim))
    x = x + Dropout(self.dropout)(y, ids)
    gate, up = parts(2, self.hidden, self.hidden, "gate_up")(norm(x, "norm_1"))
    y = summed("down")(jax.nn.silu(gate) * up)
    return x + Dropout(self.dropout)(y, ids), cache


def _written(
  buffer: Float[Array, "b h s d"],
  new: Float[Array, "b l h d"],
  at: Int[Array, ""] | int,
) -> Float[Array, "b h s d"]:
  new = new.transpose(0, 2, 1, 3).astype(buffer.dtype)
  return jax.lax.dynamic_update_slice_in_dim(buffer, new, at, axis=2)


class Decoder(nn.Module):
  """`depth` DecoderBlocks and a norm: [b, l, d] -> [b, l, d], float32.

  The parameters are stacked, [depth, ...], as in `Blocks`. `remat` and `scan` are as
  there; the hidden width is 8/3 of the width (Touvron et al. 2023, section 2.2),
  rounded up to a multiple of 32.
  """

  dim: int
  depth: int
  heads: int
  dropout: float = 0.0
  dtype: DTypeLike = jnp.float32
  remat: bool = False
  scan: bool = True

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "b l {self.dim}"],
    angles: Float[Array, "l e"],
    mask: Mask = None,
    ids: Integer[Array, " b"] | None = None,
  ) -> Float[Array, "b l {self.dim}"]:
    x = repeat(
      lambda block, x: block(x, angles, mask, ids)[0],
      _block(self, nn.remat(DecoderBlock) if self.remat else DecoderBlock),
      x.astype(self.dtype),
      self.depth,
      self.scan,
    )
    return nn.RMSNorm(dtype=jnp.float32, name="norm")(x)


def _block(net: Decoder, make: type[nn.Module] = DecoderBlock) -> nn.Module:
  hidden = 32 * -(-8 * net.dim // 96)
  return make(net.heads, hidden, net.dropout, net.dtype, name="block")


def caches(net: Decoder, batch: int, length: int) -> list[Cache]:
  """Empty ones of every layer."""
  shape = (batch, net.heads, length, net.dim // net.heads)
  empty = jnp.zeros(shape, net.dtype)
  return [Cache(empty, empty)] * net.depth


class Layers(NamedTuple):
  """The parameters of a `Decoder`, layer by layer."""

  blocks: list[PyTree]
  norm: PyTree


def unstacked(net: Decoder, params: PyTree) -> Layers:
  """For `cached`; outside of the loop, or it would copy all weights at each token."""
  take = lambda i: jax.tree.map(lambda a: a[i], params["block"])  # noqa: E731
  return Layers([take(i) for i in range(net.depth)], params["norm"])


def cached(
  net: Decoder,
  layers: Layers,
  caches: list[Cache],
  x: Float[Array, "b l d"],
  angles: Float[Array, "l e"],
  mask: Bool[Array, "b l s"],
  at: Int[Array, ""] | int,
) -> tuple[Float[Array, "b l d"], list[Cache]]:
  """The decoder's output for the items at slots `at`, ..., and the caches with them.

  The layers are no loop: one over stacked buffers would copy them at each token.
  """
  x, after, block = x.astype(net.dtype), [], _block(net)
  for own, cache in zip(layers.blocks, caches, strict=True):
    x, cache = block.apply({"params": own}, x, angles, mask, cache=cache, at=at)
    after.append(cache)
  return nn.RMSNorm(dtype=jnp.float32).apply({"params": layers.norm}, x), after
