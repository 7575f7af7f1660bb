"""Pictures of grey levels, or maps of tokens, as sequences of whole numbers."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped

from core import levels
from core.errors import UserError
from core.family import Samples, Spec

Picture = Shaped[Array, "n h w c"]
Numbers = Int[Array, "n l"]


class Sequence(NamedTuple):
  """How pictures of a spec are sequences: row by row, and the channels of a place.

  Attributes:
    shape: of a picture, (h, w, c).
    length: h w c.
    vocab: how many values a number has: 256 grey levels, or a codec's tokens.
    bits: name of the eval that is the code length of a number in bits.
    read: pictures -> sequences.
    show: sequences -> pictures.
    film: (sequences, frames, first=0, when=None) -> Samples, of the canvas filling up
      from its `first` numbers; see `core.family.Samples` for what is to come. `when`
      counts the draws before that of each number, if they are not in a row.
  """

  shape: tuple[int, int, int]
  length: int
  vocab: int
  bits: str
  read: Callable[[Picture], Numbers]
  show: Callable[[Numbers], Picture]
  film: Callable[..., Samples]


def make(family: str, spec: Spec) -> Sequence:
  """The Sequence of a spec.

  Raises:
    UserError: latents, which are no whole numbers.
  """
  check_spec(family, spec)
  length, of_pixels = math.prod(spec.shape), not spec.vocab_size

  def read(x: Picture) -> Numbers:
    numbers = levels.to_levels(x) if of_pixels else jnp.asarray(x)
    return numbers.reshape(len(x), -1)

  def show(numbers: Numbers) -> Picture:
    x = numbers.reshape(-1, *spec.shape)
    return levels.from_levels(x) if of_pixels else x

  def film(
    numbers: Numbers, frames: int, first: int = 0, when: Numbers | None = None
  ) -> Samples:
    images = show(numbers)
    # Backwards, so that a single frame is the picture.
    drawn = np.linspace(length, first, frames).round().astype(int)[::-1]
    when = jnp.arange(length)[None] if when is None else when
    before = (when < drawn[:, None, None]).reshape(frames, -1, *spec.shape)
    stages = jnp.where(before, images, 0 if of_pixels else -1)
    return Samples(images, stages, jnp.full(len(images), length, jnp.int32))

  return Sequence(
    spec.shape,
    length,
    levels.LEVELS if of_pixels else spec.vocab_size,
    "bpd" if of_pixels else "bits_per_token",
    read,
    show,
    film,
  )


def check_spec(family: str, spec: Spec) -> None:
  """Raises UserError if a spec is neither of pixels nor of tokens."""
  if not (spec.vocab_size or spec.pixels):
    raise UserError(
      f"{family} draws pixels or tokens, not latents: set data.latents to 'tokens'."
    )


def cross_entropy(
  logits: Float[Array, "*shape v"], numbers: Int[Array, "*shape"]
) -> Float[Array, "*shape"]:
  """-log p(number) in nats, in float32."""
  log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
  return -jnp.take_along_axis(log_p, numbers[..., None], axis=-1)[..., 0]
