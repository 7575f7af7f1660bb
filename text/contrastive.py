"""Losses of dual encoders: each picture with its own caption, against all others.

All take unit vectors of the rows that this device holds, and those of the whole batch:
of what the logits t u.v are, only the rows of the one are needed. So the losses of a
batch that is cut over devices, added up, are those of the whole one.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree, Shaped, UInt32


class Pairs(NamedTuple):
  """Pictures and captions of one batch, in pairs.

  Attributes:
    images, texts: unit vectors of n pairs.
    marks: of each picture and each caption, equal where these are; see `marks`.
    mask: False on padding.
  """

  images: Float[Array, "n d"]
  texts: Float[Array, "n d"]
  marks: UInt32[Array, "n 2 2"]
  mask: Bool[Array, " n"]


class Rows(NamedTuple):
  """The rows of this device among all.

  Attributes:
    own: b pairs, those of this device.
    all: n pairs, of all devices.
    place: where each of `own` is in `all`.
  """

  own: Pairs
  all: Pairs
  place: Int[Array, " b"]


def gathered(own: Pairs, axis: str | None) -> Rows:
  """The pairs of all devices along `axis`; its gradient reaches those of each.

  Every device's loss depends on every other's vectors. `all_gather`'s transpose adds up
  what all devices have to say of a row, so the sum of the devices' gradients is the
  gradient of the sum of their losses.
  """
  place = jnp.arange(len(own.mask))
  if axis is None:
    return Rows(own, own, place)
  joined = jax.tree.map(lambda a: jax.lax.all_gather(a, axis, tiled=True), own)
  return Rows(own, joined, jax.lax.axis_index(axis) * len(place) + place)


def marks(tree: PyTree[Shaped[Array, "b ..."]]) -> UInt32[Array, "b 2"]:
  """Two hashes of 32 bits of each row: those of equal rows are equal.

  Sums of the numbers' bits times odd multipliers, modulo 2^32. Of different rows both
  agree with a probability of about 2^-64.
  """
  found = jnp.zeros((len(jax.tree.leaves(tree)[0]), 2), jnp.uint32)
  for i, leaf in enumerate(jax.tree.leaves(tree)):
    # Adding 0 makes one number of the two zeros.
    flat = leaf.reshape(len(leaf), -1).astype(jnp.float32) + 0
    bits = jax.lax.bitcast_convert_type(flat, jnp.uint32)
    key = jax.random.fold_in(jax.random.key(0), i)
    odd = jax.random.bits(key, (2, bits.shape[1]), jnp.uint32) | 1
    # The upper half too: whole numbers differ in few, high bits of a float.
    bits = (bits ^ (bits >> 15)) * jnp.uint32(0x2C1B3C6D)
    bits = bits ^ (bits >> 12)
    found = found + jnp.stack([jnp.sum(bits * own, 1) for own in odd], axis=1)
  return found


def negatives(rows: Rows) -> Bool[Array, "b n"]:
  """Which of all pairs are wrong for each own one, as far as can be told.

  Neither its own, nor padding, nor one with the same caption or the same picture:
  what belongs to that may as well belong to this. Such pairs count neither as right nor
  as wrong. A caption that is true of another picture without being equal, in another
  language or other words, stays a negative.
  """
  same = jnp.all(rows.own.marks[:, None] == rows.all.marks[None], axis=-1)
  other = rows.place[:, None] != jnp.arange(len(rows.all.mask))
  return other & rows.all.mask & ~jnp.any(same, axis=-1)


def cosines(u: Float[Array, "b d"], v: Float[Array, "n d"]) -> Float[Array, "b n"]:
  """u_i . v_j; in full precision, since they are magnified a hundredfold."""
  return jnp.matmul(u, v.T, precision=jax.lax.Precision.HIGHEST)


def info_nce(rows: Rows, scale: Float[Array, ""]) -> Float[Array, " b"]:
  """-(log p(text_i | image_i) + log p(image_i | text_i)) / 2 of each own pair i.

    p(text_i | image_i) = exp(t u_i.v_i) / sum over i and its negatives j of
                          exp(t u_i.v_j),  t = `scale`

  and with u, v exchanged for the other. Its mean is the loss of Radford et al. 2021
  (arXiv:2103.00020, figure 3), from van den Oord et al. 2018 (arXiv:1807.03748, eq. 4).
  """
  wrong, own = negatives(rows), rows.own
  right = scale * jnp.sum(own.images * own.texts, axis=-1)

  def one_way(u: Float[Array, "b d"], v: Float[Array, "n d"]) -> Float[Array, " b"]:
    # Where nothing is wrong the logit is not looked at, nor its gradient.
    logits = jnp.where(wrong, scale * cosines(u, v), -jnp.inf)
    logits = jnp.concatenate([right[:, None], logits], axis=1)
    return jax.nn.logsumexp(logits, axis=1) - right

  to_texts = one_way(own.images, rows.all.texts)
  return (to_texts + one_way(own.texts, rows.all.images)) / 2


def sigmoid(
  rows: Rows, scale: Float[Array, ""], bias: Float[Array, ""]
) -> Float[Array, " b"]:
  """Of each own pair i, -log s(z_ii) - sum over its negatives j of log s(-z_ij).

  z_ij = t u_i.v_j + b with t = `scale`, b = `bias`, and s the logistic function. Its
  mean over pairs is the loss of SigLIP, Zhai et al. 2023 (arXiv:2303.15343, algorithm
  1).
  """
  own = rows.own
  right = scale * jnp.sum(own.images * own.texts, axis=-1) + bias
  z = scale * cosines(own.images, rows.all.texts) + bias
  wrong = jnp.where(negatives(rows), jax.nn.softplus(z), 0)
  return jax.nn.softplus(-right) + jnp.sum(wrong, axis=1)


def found(rows: Rows) -> Float[Array, " b"]:
  """1 where a picture lies nearer to its own caption than to any wrong one, else 0."""
  own = rows.own
  right = jnp.sum(own.images * own.texts, axis=-1)
  wrong = jnp.where(negatives(rows), cosines(own.images, rows.all.texts), -jnp.inf)
  return (right > jnp.max(wrong, axis=1)).astype(jnp.float32)
