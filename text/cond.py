"""`Cond`, the one text-conditioning interface between captions and generators.

A condition travels in two forms. *Raw*, as the data source makes it: byte
`tokens` with their `mask`, a class `label`, or `parts`, the vectors of frozen encoders.
*Encoded*, as a network reads it: a sequence `seq` with its `mask`, and one vector
`pooled`. A text encoder (`text/encoders.py`) maps the first form to the second.

A picture is a condition too: super-resolution starts from a small one, `image`. It is
no text, so nothing below drops it.

The null condition of classifier-free guidance (Ho & Salimans 2022,
arXiv:2207.12598) is the same in both: nothing is attended to (`mask` all False)
and the label is -1, as is the similarity.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int, Key


class Cond(struct.PyTreeNode):
  """What a picture is conditioned on; absent parts are None.

  Attributes:
    tokens: raw text, token ids; 0 is padding.
    label: class index in [0, classes), or -1 for "no class".
    seq: encoded text, one vector a token.
    mask: True where `tokens` or `seq` hold text, False on padding.
    pooled: encoded text or class as one vector.
    image: small picture in [-1, 1]; encoded: as large as what is generated.
    image_logsnr: how much noise was added to `image`.
    parts: raw, what each frozen encoder makes of a text: `seq` with `mask`, `pooled`.
    embedding: raw, the vector of a picture that what is drawn shall be like, or that
      of the caption in the same space.
    transformed: encoded, what was done to the picture that is learned from
      (`diffusion/augmentation.py`); None is nothing.
    similarity: raw, how well the picture's vector fits the caption's, by rank from 0 to
      1 (`pipelines/similarity.py`); -1 is unknown.
    negative: raw, what guidance leads away from, in place of the null condition.
  """

  tokens: Int[Array, "b l"] | None = None
  label: Int[Array, " b"] | None = None
  seq: Float[Array, "b l d"] | None = None
  mask: Bool[Array, "b l"] | None = None
  pooled: Float[Array, "b d"] | None = None
  image: Float[Array, "b h w c"] | None = None
  image_logsnr: Float[Array, " b"] | None = None
  parts: "tuple[Cond, ...] | None" = None
  embedding: Float[Array, "b e"] | None = None
  similarity: Float[Array, " b"] | None = None
  transformed: Float[Array, "b a"] | None = None
  negative: "Cond | None" = None

  def null_like(self) -> "Cond":
    """The null condition, in the shapes of this one."""
    own = self.replace(negative=None)
    zeros = jax.tree.map(jnp.zeros_like, own)
    label, similarity = (
      None if a is None else jnp.full_like(a, -1) for a in (self.label, self.similarity)
    )
    zeros = zeros.replace(label=label, similarity=similarity)
    return zeros.replace(image=self.image, image_logsnr=self.image_logsnr)

  def with_null(self) -> "Cond":
    """This condition, then `negative` or the null one: a batch of twice the size."""
    own, other = self.replace(negative=None), self.null_like()
    if self.negative is not None:
      other = self.negative.replace(image=self.image, image_logsnr=self.image_logsnr)
    return jax.tree.map(lambda *two: jnp.concatenate(two), own, other)

  def drop(
    self,
    keys: Key[Array, " b"],
    rate: float,
    each: Sequence[float] = (),
    embedding: float | None = 0.0,
  ) -> "Cond":
    """Each example's condition becomes null with probability `rate`.

    Each of its `parts` does too, on its own, with its probability in `each`, as in
    Stable Diffusion 3 (Esser et al. 2024, arXiv:2403.03206, from memory). `embedding`
    is the probability of the vector, which no other draw drops; None drops it with the
    rest. `keys` holds one key an
    example, so the outcome does not depend on how the batch is cut over devices (Ho &
    Salimans 2022, algorithm 1, line 3).
    """
    gone = jax.vmap(lambda k: jax.random.bernoulli(k, rate))(keys)

    def pick(null: Array, own: Array) -> Array:
      return jnp.where(gone.reshape((-1,) + (1,) * (own.ndim - 1)), null, own)

    kept = jax.tree.map(pick, self.null_like(), self.replace(negative=None))
    if self.embedding is not None and embedding is not None:
      # Beside the parts' numbers, which count from 0.
      own = jax.vmap(lambda k: jax.random.fold_in(k, jnp.uint32(2**32 - 1)))(keys)
      gone = jax.vmap(lambda k: jax.random.bernoulli(k, embedding))(own)[:, None]
      kept = kept.replace(embedding=jnp.where(gone, 0.0, self.embedding))
    if not each:
      return kept
    parts = [
      part.drop(jax.vmap(lambda k: jax.random.fold_in(k, i))(keys), own)  # noqa: B023
      for i, (part, own) in enumerate(zip(kept.parts, each, strict=True))
    ]
    return kept.replace(parts=tuple(parts))


def guide(
  both: Float[Array, "b2 ..."], guidance_scale: float | Float[Array, ""]
) -> Float[Array, "b ..."]:
  """Classifier-free guidance: null + guidance_scale * (own - null).

  `both` is a network's output for `Cond.with_null()`. A scale of 1 is the
  conditional prediction, 0 the unconditional one; Ho & Salimans' w (eq. 6) is
  `guidance_scale - 1`.
  """
  own, null = jnp.split(both, 2)
  return null + guidance_scale * (own - null)
