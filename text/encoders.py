"""From captions and labels to `Cond`: the raw form, and encoders of it."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key
from ml_collections import ConfigDict

from core.errors import UserError, unknown
from nets.layers import Dense, Embed, masked_mean
from nets.transformer import Encoder
from text import frozen
from text.bytes import VOCAB_SIZE, tokenize
from text.cond import Cond
from text.encoded import Encoded
from text.tokens import clean

KINDS = ("bytes", "label", "frozen", "none")

# caption -> its vectors under each of `text.frozen`
LookUp = Callable[[str], tuple[Encoded, ...]]


class BytesEncoder(nn.Module):
  """A small transformer over bytes, trained together with the generator.

  Attributes:
    dim: width of `seq` and `pooled`.
    depth, heads: of the transformer.
    dtype: of the computation; parameters are float32.
  """

  dim: int
  depth: int
  heads: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, cond: Cond) -> Cond:
    """tokens, mask [b, l] -> seq [b, l, dim], mask, pooled [b, dim] (their mean)."""
    tokens, mask = cond.tokens, cond.mask
    init = nn.initializers.normal(0.02)
    positions = self.param("positions", init, (tokens.shape[1], self.dim))
    seq = Embed(VOCAB_SIZE, self.dim, embedding_init=init, name="bytes")(tokens)
    seq = Encoder(self.dim, self.depth, self.heads, dtype=self.dtype)(
      seq + positions, mask
    )
    return Cond(seq=seq, mask=mask, pooled=masked_mean(seq, mask))


class LabelEncoder(nn.Module):
  """One learned vector a class, and one for "no class" (label -1)."""

  classes: int
  dim: int

  @nn.compact
  def __call__(self, cond: Cond) -> Cond:
    """label [b] -> pooled [b, dim]."""
    table = Embed(self.classes + 1, self.dim, name="classes")
    return Cond(pooled=table(jnp.where(cond.label < 0, self.classes, cond.label)))


class Projected(nn.Module):
  """The vectors of frozen encoders, each normalised and mapped to `dim` numbers.

  Saharia et al. 2022 (arXiv:2205.11487), section 2.5, normalise what they read of a
  frozen encoder, whose numbers may be of any size. The sequences of several follow one
  another, their pooled vectors are added up; where none is pooled, it is the mean of
  the sequence.
  """

  dim: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, cond: Cond) -> Cond:
    """parts -> seq [b, sum of l, dim], mask, pooled [b, dim]."""

    def mapped(x: Float[Array, "... d"], name: str) -> Float[Array, "... e"]:
      x = nn.LayerNorm(dtype=jnp.float32, name=f"norm_{name}")(x)
      return Dense(self.dim, dtype=self.dtype, name=name)(x)

    seqs, masks, pooled = [], [], []
    for i, part in enumerate(cond.parts):
      if part.seq is not None:
        seqs.append(mapped(part.seq, f"seq_{i}"))
        masks.append(part.mask)
      if part.pooled is not None:
        pooled.append(mapped(part.pooled, f"pooled_{i}"))
    if not seqs:
      return Cond(pooled=sum(pooled))
    seq, mask = jnp.concatenate(seqs, axis=1), jnp.concatenate(masks, axis=1)
    return Cond(
      seq=seq, mask=mask, pooled=sum(pooled) if pooled else masked_mean(seq, mask)
    )


class AsIs(nn.Module):
  """The vectors of frozen encoders as they come, for networks with published weights.

  The null condition of each encoder is a sequence of its own, learned, in the place of
  which published weights have what it makes of the empty text. Of several encoders the
  sequences follow one another, and the pooled vectors lie side by side.
  """

  @nn.compact
  def __call__(self, cond: Cond) -> Cond:
    """parts -> seq [b, sum of l, d], mask, pooled [b, sum of e].

    Raises:
      UserError: the encoders' vectors are not equally long.
    """
    seqs, pooled = [], []
    for i, part in enumerate(cond.parts):
      if part.seq is not None:
        init = nn.initializers.normal(0.02)
        null = self.param(f"null_{i}", init, part.seq.shape[1:])
        known = jnp.any(part.mask, axis=1)[:, None, None]
        seqs.append(jnp.where(known, part.seq.astype(jnp.float32), null))
      if part.pooled is not None:
        pooled.append(part.pooled.astype(jnp.float32))
    if len({seq.shape[2] for seq in seqs}) > 1:
      raise UserError(
        "the encoders in text.frozen give vectors of different lengths, which"
        " text.frozen_as_is cannot put in one sequence; set it to False."
      )
    both = jnp.concatenate(pooled, axis=1) if pooled else None
    if not seqs:
      return Cond(pooled=both)
    seq = jnp.concatenate(seqs, axis=1)
    return Cond(seq=seq, mask=jnp.ones(seq.shape[:2], bool), pooled=both)


class NoEncoder(nn.Module):
  """For unconditional generators: passes an empty condition on."""

  def __call__(self, cond: Cond) -> Cond:
    """Cond() -> Cond()."""
    return cond


class WithEmbedding(nn.Module):
  """An encoder of text beside the vector of a picture, or of the same text.

  As Ramesh et al. 2022 (arXiv:2204.06125, section 2.1) have it: a linear map of the
  vector is added to `pooled`, and another makes four more items of `seq`. A vector of
  zeros is none. How well it fits (`Cond.similarity`) is one more item, if it is told
  (section 2.2).

  Attributes:
    encoder: of the text.
    dim: width of `seq` and `pooled`.
    cells: into which the similarity is cut; 0 without it.
  """

  encoder: nn.Module
  dim: int
  cells: int = 0

  @nn.compact
  def __call__(self, cond: Cond) -> Cond:
    """What `encoder` reads and embedding [b, e] -> seq [b, l + 4 or 5, dim], pooled."""
    vector, encoded = cond.embedding, self.encoder(cond.replace(embedding=None))
    known = jnp.any(vector != 0, axis=-1, keepdims=True)
    pooled = Dense(self.dim, use_bias=False, name="pooled")(vector)
    seq = Dense(4 * self.dim, use_bias=False, name="items")(vector)
    seq = seq.reshape(-1, 4, self.dim)
    mask = jnp.broadcast_to(known, seq.shape[:2])
    if encoded.pooled is not None:
      pooled = pooled + encoded.pooled
    if encoded.seq is not None:
      seq = jnp.concatenate([encoded.seq, seq], axis=1)
      mask = jnp.concatenate([encoded.mask, mask], axis=1)
    if self.cells:
      cell = jnp.floor(cond.similarity * self.cells).clip(-1, self.cells - 1)
      table = Embed(self.cells + 1, self.dim, name="similarity")
      own = table(cell.astype(jnp.int32)[:, None] + 1)
      seq = jnp.concatenate([seq, own], axis=1)
      mask = jnp.concatenate([mask, (cell >= 0)[:, None]], axis=1)
    return Cond(seq=seq, mask=mask, pooled=pooled)


def make(text: ConfigDict, dtype: Any = jnp.float32) -> nn.Module:
  """The encoder of `config.text`: raw Cond -> encoded Cond.

  Raises:
    UserError: unknown encoder, label without `text.classes`, or what `frozen.chosen`
      refuses.
  """
  encoder = _of_text(text, dtype)
  if not text.embedding:
    return encoder
  return WithEmbedding(encoder, text.dim, text.similarity_cells)


def _of_text(text: ConfigDict, dtype: Any) -> nn.Module:
  match text.encoder:
    case "bytes":
      return BytesEncoder(text.dim, text.depth, text.heads, dtype)
    case "label":
      if text.classes < 1:
        raise UserError(
          "text.encoder='label' needs text.classes, the data's number of classes."
        )
      return LabelEncoder(text.classes, text.dim)
    case "frozen":
      frozen.chosen(text)
      return AsIs() if text.frozen_as_is else Projected(text.dim, dtype)
    case "none":
      return NoEncoder()
  raise unknown("text.encoder", text.encoder, KINDS)


def dropped(text: ConfigDict, cond: Cond, keys: Key[Array, " b"]) -> Cond:
  """The raw conditions of a training step: what `text` says is dropped of them.

  `keys` holds one key an example.
  """
  each = tuple(text.frozen_drop) if cond.parts is not None else ()
  vector = text.embedding_drop if text.embedding else 0.0
  if text.embedding_of_caption:
    vector = None  # it says what the text says
  if not (text.drop > 0 or any(each) or vector):
    return cond
  return cond.drop(keys, text.drop, each, vector)


def conditional(text: ConfigDict) -> bool:
  """Whether anything is read that guidance can lead to: a text, or a vector."""
  return text.encoder != "none" or bool(text.embedding)


def knows_null(text: ConfigDict) -> bool:
  """Whether training drops the whole condition at times, of vectors too."""
  if text.embedding and not text.embedding_of_caption:
    if not text.embedding_drop > 0:
      return False
    if text.encoder == "none":
      return True
  each = text.frozen_drop if text.encoder == "frozen" else ()
  return text.drop > 0 or (len(each) > 0 and min(each) > 0)


def check_guidance(text: ConfigDict, guidance_scale: float) -> None:
  """Raises UserError if guidance asks for a null condition that is never trained."""
  if conditional(text) and guidance_scale != 1 and not knows_null(text):
    pictures = text.embedding and not text.embedding_of_caption
    rates = "text.drop and text.embedding_drop" if pictures else "text.drop"
    raise UserError(
      f"sample.guidance_scale={guidance_scale} needs a model that was trained without"
      f" its condition at times: set {rates} above 0, or sample.guidance_scale to 1."
    )


def raw(text: ConfigDict, look_up: LookUp | None = None) -> Callable[[str, int], Cond]:
  """(caption, label) -> the raw Cond of one example, numpy, without a batch axis.

  `look_up` is for frozen encoders, and not asked for the empty caption, whose condition
  is the null one.

  Raises (when called):
    UserError: a label outside [0, text.classes).
  """
  if text.encoder not in KINDS:
    raise unknown("text.encoder", text.encoder, KINDS)
  chosen = frozen.chosen(text) if text.encoder == "frozen" else []

  def make_cond(caption: str, label: int) -> Cond:
    if text.encoder == "bytes":
      tokens, mask = tokenize(caption, text.max_tokens)
      return Cond(tokens=tokens, mask=mask)
    if text.encoder == "label":
      if not 0 <= label < text.classes:
        raise UserError(
          f"label {label} is not in [0, text.classes={text.classes}); set text.classes"
          " to the data's number of classes, or text.encoder to 'bytes'."
        )
      return Cond(label=np.asarray(label, np.int32))
    if text.encoder == "frozen":
      vectors = look_up(caption) if clean(caption) else [None] * len(chosen)
      parts = zip(chosen, vectors, strict=True)
      return Cond(parts=tuple(frozen.padded(*how, own) for how, own in parts))
    return Cond()

  return make_cond
