"""Vector quantization with codebooks that follow averages, one or a chain of them.

VQ-VAE (van den Oord et al. 2017, arXiv:1711.00937): a vector becomes the nearest of K
codes, which move to the mean of what falls to them (appendix A.1). Residual
quantization (Zeghidour et al. 2021, arXiv:2107.03312, algorithm 1; Lee et al. 2022,
arXiv:2203.01941, section 3.1) codes what is left over with a second codebook, and so
on; one codebook is VQ. `codes` are [n, K, d], codebook after codebook.
"""

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int, Key, Shaped, UInt32

from vae.kmeans import kmeans, nearest, nearest_by_rows

EPSILON = 1e-5  # vectors that a code is given besides its count


class Codebook(struct.PyTreeNode):
  """The codes, and the averages over updates that they are made of."""

  codes: Float[Array, "n k d"]
  counts: Float[Array, "n k"]  # vectors a batch
  sums: Float[Array, "n k d"]  # of these vectors


class Statistics(struct.PyTreeNode):
  """What a batch tells the codebooks: sums over its rows, so parts of it add up."""

  counts: Float[Array, "n k"]
  sums: Float[Array, "n k d"]
  candidates: Float[Array, "n s d"]  # vectors that may become codes
  filled: Float[Array, " s"]  # how many vectors were added up there, 0 or 1


def init(
  key: Key[Array, ""], vectors: Float[Array, "m d"], codes: int, quantizers: int
) -> Codebook:
  """Codebooks by k-means on a batch's vectors, each on what the one before leaves.

  A code that has no vector counts as if it had one, at its own place.
  """

  def level(left: Array, key: Array) -> tuple[Array, tuple[Array, Array]]:
    means, counts = kmeans(key, left, codes)
    return left - means[nearest_by_rows(means, left)], (means, counts)

  vectors = jax.lax.stop_gradient(vectors).astype(jnp.float32)
  keys = jax.random.split(key, quantizers)
  means, counts = jax.lax.scan(level, vectors, keys)[1]
  counts = jnp.maximum(counts, 1.0)
  return Codebook(means, counts, counts[..., None] * means)


def quantize(
  codes: Float[Array, "n k d"], z: Float[Array, "*p d"]
) -> tuple[Float[Array, "*p d"], Int[Array, "*p n"]]:
  """(z_q, indices): z_q = sum_l e^l, e^l the nearest to z - e^1 - ... - e^(l-1).

  Neither has a gradient; see `straight_through`.
  """
  codes, z = jax.lax.stop_gradient((codes, z.astype(codes.dtype)))

  def level(left: Array, codes: Array) -> tuple[Array, Array]:
    index = nearest(codes, left)
    return left - codes[index], index

  indices = jnp.moveaxis(jax.lax.scan(level, z, codes)[1], 0, -1)
  return lookup(codes, indices), indices


def lookup(
  codes: Float[Array, "n k d"], indices: Int[Array, "*p n"]
) -> Float[Array, "*p d"]:
  """z_q of the indices."""
  return jnp.sum(terms(codes, indices), axis=-2)


def terms(
  codes: Float[Array, "n k d"], indices: Int[Array, "*p n"]
) -> Float[Array, "*p n d"]:
  """e^1 ... e^n, whose sum is z_q."""
  return codes[jnp.arange(len(codes)), indices]


def straight_through(
  z: Float[Array, "*p d"], z_q: Float[Array, "*p d"]
) -> Float[Array, "*p d"]:
  """z_q to the last bit, with the gradient of z (2017, section 3.2)."""
  return jax.lax.stop_gradient(z_q) + (z - jax.lax.stop_gradient(z))


def commitment(
  codes: Float[Array, "n k d"],
  z: Float[Array, "b *p d"],
  indices: Int[Array, "b *p n"],
) -> Float[Array, " b"]:
  """sum_l mean (z - sg[e^1 + ... + e^l])^2, the mean over an example's numbers.

  The third term of equation 3 (2017) a number, and its sum over the codebooks as in
  Lee et al. 2022, section 3.1. The gradient is z's alone.
  """
  partial = jax.lax.stop_gradient(jnp.cumsum(terms(codes, indices), axis=-2))
  off = (z[..., None, :] - partial) ** 2
  return jnp.sum(jnp.mean(off.reshape(len(z), -1, *off.shape[-2:]), (1, 3)), -1)


def statistics(
  codes: Float[Array, "n k d"],
  z: Float[Array, "b *p d"],
  indices: Int[Array, "b *p n"],
  ids: UInt32[Array, " b"],
  keys: Key[Array, " b"],
  mask: Shaped[Array, " b"],
  batch_size: int,
) -> Statistics:
  """What the rows tell the codebooks; those with mask 0 tell nothing.

  Of each row ceil(K / batch_size) vectors, or all if it has fewer, drawn by its key,
  become candidates, in slots of its own: a row's place in the batch is
  id % batch_size. So the union over devices is a sum.

  Args:
    codes: before the update.
    z: what was quantized.
    indices: of its codes.
    ids: of the rows.
    keys: one a row.
    mask: 1 or True where a row counts.
    batch_size: of all devices and microbatches together.
  """
  n, k, d = codes.shape
  z, codes = jax.lax.stop_gradient((z.astype(codes.dtype), codes))
  z, indices = z.reshape(len(z), -1, 1, d), indices.reshape(len(z), -1, n)
  own = terms(codes, indices)
  left = z - (jnp.cumsum(own, axis=-2) - own)
  weight = mask.astype(jnp.float32)[:, None]

  owner = (jnp.arange(n), indices)
  counts = jnp.zeros((n, k)).at[owner].add(weight[..., None])
  sums = jnp.zeros_like(codes).at[owner].add(weight[..., None, None] * left)

  places = z.shape[1]
  each = min(-(-k // batch_size), places)
  draw = lambda key: jax.random.permutation(key, places)[:each]  # noqa: E731
  drawn = jax.vmap(lambda row, key: row[draw(key)])(left, keys)
  slots = (ids % batch_size).astype(jnp.int32)[:, None] * each + jnp.arange(each)
  room = batch_size * each
  candidates = jnp.zeros((room, n, d)).at[slots].add(weight[..., None, None] * drawn)
  filled = jnp.zeros(room).at[slots].add(weight)
  return Statistics(counts, sums, jnp.moveaxis(candidates, 1, 0), filled)


def update(
  state: Codebook,
  batch: Statistics,
  decay: float | int,
  revive_below: float | int,
  key: Key[Array, ""],
) -> Codebook:
  """The codebooks after a batch.

  With counts N and sums m of all its vectors (2017, appendix A.1):

      N <- decay N + (1 - decay) N_batch,  m <- decay m + (1 - decay) m_batch,
      e_i = m_i / M_i,  M_i = sum(N) (N_i + EPSILON) / (sum(N) + K EPSILON).

  Codes whose N is then below `revive_below` become vectors of this batch, each another,
  as long as there are candidates (Dhariwal et al. 2020, arXiv:2005.00341, section 3.1;
  SoundStream, section III-C). They count as if they had had one vector a batch, so that
  they stay for a while even where a batch has fewer vectors than there are codes.
  """
  move = lambda old, new: decay * old + (1 - decay) * new  # noqa: E731
  counts, sums = move(state.counts, batch.counts), move(state.sums, batch.sums)
  total = jnp.sum(counts, axis=-1, keepdims=True)
  smooth = total * (counts + EPSILON) / (total + counts.shape[-1] * EPSILON)
  codes = sums / smooth[..., None]

  fresh, found = jax.vmap(draw, (0, 0, None, 0))(
    counts < revive_below,
    batch.candidates,
    batch.filled,
    jax.random.split(key, len(codes)),
  )
  count = max(revive_below, 1.0)
  return Codebook(
    codes=jnp.where(found[..., None], fresh, codes),
    counts=jnp.where(found, count, counts),
    sums=jnp.where(found[..., None], count * fresh, sums),
  )


def draw(
  dead: Bool[Array, " k"],
  candidates: Float[Array, "s d"],
  filled: Float[Array, " s"],
  key: Key[Array, ""],
) -> tuple[Float[Array, "k d"], Bool[Array, " k"]]:
  """(a vector for each dead code, which of them got one), each slot used once."""
  # In a random order, with the slots that nothing was put in at the end.
  order = jnp.argsort(jax.random.uniform(key, filled.shape) + (filled == 0))
  turn = jnp.cumsum(dead) - 1
  slot = order[jnp.clip(turn, 0, len(order) - 1)]
  found = dead & (turn < jnp.sum(filled > 0))
  return candidates[slot] / jnp.maximum(filled[slot], 1.0)[:, None], found


def usage(counts: Float[Array, "*n k"]) -> Float[Array, "*n"]:
  """The share of codes that have any vector, of a batch's counts."""
  return jnp.mean(counts > 0, axis=-1)


def perplexity(counts: Float[Array, "*n k"]) -> Float[Array, "*n"]:
  """exp(-sum_k p log p), p = counts / sum: 1 if one code has all, K if all are even."""
  p = counts / jnp.maximum(jnp.sum(counts, axis=-1, keepdims=True), 1e-20)
  return jnp.exp(jnp.sum(jax.scipy.special.entr(p), axis=-1))
