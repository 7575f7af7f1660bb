"""A picture's whole numbers as one sequence behind its condition, read by a decoder."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Integer

from nets.decoder import Decoder, rotary_angles
from nets.layers import Dense, Embed
from text.bytes import VOCAB_SIZE
from text.cond import Cond

INIT = nn.initializers.normal(0.02)


class Stream(nn.Module):
  """p(x_i | x_0, ..., x_(i-1), cond) of every number of a picture, as logits.

  Numbers go row by row, and through the channels of each place. Item i of the sequence
  is number i - 1, where number i is told; item 0 is a learned start, to which
  `cond.pooled` is added. Before it is the text, `cond.seq`, if there is any.

  Attributes:
    encoder: raw `Cond` -> encoded, trained along.
    decoder: the transformer; its width a head is a multiple of 4.
    shape: of a picture, (h, w, c).
    vocab: how many values a number has.
  """

  encoder: nn.Module
  decoder: Decoder
  shape: tuple[int, int, int]
  vocab: int

  def setup(self) -> None:
    dim, dtype = self.decoder.dim, self.decoder.dtype
    channels = self.shape[-1]
    self.start = self.param("start", INIT, (dim,))
    self.values = Embed(channels * self.vocab, dim, embedding_init=INIT)
    self.channels = Embed(channels, dim, embedding_init=INIT)
    self.text, self.pooled = (Dense(dim, dtype=dtype) for _ in range(2))
    self.head = Dense(self.vocab, use_bias=False, kernel_init=INIT)

  def __call__(
    self,
    x: Int[Array, "b l"],
    cond: Cond,
    ids: Integer[Array, " b"] | None = None,
  ) -> Float[Array, "b l {self.vocab}"]:
    """Logits of each number, float32; `cond` is raw. Dropout is active with `ids`."""
    y, extra = self.outputs(x, cond, ids)
    return self.logits(y[:, extra:])

  def outputs(
    self, x: Int[Array, "b l"], cond: Cond, ids: Integer[Array, " b"] | None
  ) -> tuple[Float[Array, "b k d"], int]:
    """What the decoder makes of all items, and how many are before the start."""
    first, mask = self.prefix(cond, len(x))
    places = jnp.arange(x.shape[1] - 1)
    items = jnp.concatenate([first, self.items(x[:, :-1], places)], axis=1)
    extra = first.shape[1] - 1
    reads = causal(readable(mask, items.shape[1]))
    return self.decoder(items, angles_of(self, extra), reads, ids), extra

  def prefix(
    self, cond: Cond, batch: int
  ) -> tuple[Float[Array, "{batch} m d"], Bool[Array, "{batch} m"]]:
    """The text's items and the start, and which of them may be read."""
    cond = self.encoder(cond)
    start = self.start + self.channels(jnp.zeros((batch, 1), int))
    if cond.pooled is not None:
      start = start + self.pooled(cond.pooled)[:, None]
    if cond.seq is None:
      return start, jnp.ones(start.shape[:2], bool)
    seen = jnp.pad(cond.mask, ((0, 0), (0, 1)), constant_values=True)
    return jnp.concatenate([self.text(cond.seq), start], axis=1), seen

  def items(
    self, x: Int[Array, "b l"], places: Int[Array, " l"]
  ) -> Float[Array, "b l d"]:
    """What the numbers at these places are to the decoder, which tells the next."""
    own, after = (p % self.shape[-1] for p in (places, places + 1))
    return self.values(own * self.vocab + x) + self.channels(after)

  def logits(self, y: Float[Array, "b l d"]) -> Float[Array, "b l {self.vocab}"]:
    """Of the numbers told at the decoder's output `y`."""
    return self.head(y)


class TextItems(nn.Module):
  """The bytes of a text as they are, for a stream that tells them too.

  Behind a learned beginning; the padding of each place is a value of its own, which is
  read like others (Ramesh et al. 2021, arXiv:2102.12092, section 2.2).
  """

  dim: int

  @nn.compact
  def __call__(self, cond: Cond) -> Cond:
    """tokens, mask [b, m] -> seq [b, m + 1, dim], all of it to be read."""
    b, length = cond.tokens.shape
    begin = self.param("begin", INIT, (1, 1, self.dim))
    padding = self.param("padding", INIT, (length, self.dim))
    values = Embed(VOCAB_SIZE, self.dim, embedding_init=INIT, name="bytes")
    own = jnp.where(cond.mask[..., None], values(cond.tokens), padding)
    seq = jnp.concatenate([jnp.broadcast_to(begin, (b, 1, self.dim)), own], axis=1)
    return Cond(seq=seq, mask=jnp.ones((b, length + 1), bool))


class JointStream(Stream):
  """A Stream behind `TextItems` that tells the text too."""

  def setup(self) -> None:
    super().setup()
    self.text_head = Dense(VOCAB_SIZE, use_bias=False, kernel_init=INIT)

  def __call__(
    self,
    x: Int[Array, "b l"],
    cond: Cond,
    ids: Integer[Array, " b"] | None = None,
  ) -> tuple[Float[Array, "b l {self.vocab}"], Float[Array, "b m v"]]:
    """Logits of each number, and of each byte of the text, padding being 0."""
    y, extra = self.outputs(x, cond, ids)
    # The last byte tells nothing: behind it is the start of the picture.
    return self.logits(y[:, extra:]), self.text_head(y[:, : extra - 1])


def angles_of(stream: Stream, extra: int) -> Float[Array, "l e"]:
  """Rotary angles of all items, `extra` of them a text's before the start.

  Those that tell the number at (row, column) are there; a text lies on the diagonal
  before the first.
  """
  dim, heads = stream.decoder.dim, stream.decoder.heads
  return rotary_angles(jnp.asarray(grid_positions(stream.shape, extra)), dim // heads)


def grid_positions(
  shape: tuple[int, int, int], extra: int
) -> Int[np.ndarray, "l axes"]:
  """(0, 0), (1, 1), ... of a text, then (row, column) + `extra` of each number."""
  height, width, channels = shape
  rows, columns, _ = np.indices((height, width, channels)).reshape(3, -1)
  text = np.arange(extra)
  own = np.stack([rows, columns], axis=-1) + extra
  return np.concatenate([np.stack([text, text], axis=-1), own])


def readable(mask: Bool[Array, "b m"], length: int) -> Bool[Array, "b l"]:
  """`mask` of the first items, and True of all after them."""
  more = ((0, 0), (0, length - mask.shape[1]))
  return jnp.pad(mask, more, constant_values=True)


def causal(mask: Bool[Array, "b l"]) -> Bool[Array, "b l l"]:
  """Each item reads itself and, of those before it, the ones with a True mask."""
  length = mask.shape[1]
  before, itself = np.tri(length, dtype=bool), np.eye(length, dtype=bool)
  return (mask[:, None] & before) | itself
