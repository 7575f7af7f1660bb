"""A trained autoencoder: what is drawn in its latents is decoded, pictures encoded."""

import hashlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from core.family import Codec, Given, Samples, State


class Opened(NamedTuple):
  """A trained codec.

  Attributes:
    codec: its functions of a state.
    state: that of its run.
    key: a fingerprint of the weights.
  """

  codec: Codec
  state: State | tuple[State, ...]
  key: str

  def decoded(self, state: State | tuple[State, ...], samples: Samples) -> Samples:
    """Samples of latents -> of pictures, the frames too."""
    images = self.codec.decode(state, samples.images)
    side = side_of(samples.images, images)

    def stage(x: Array) -> Float[Array, "n h w c"]:
      if not self.codec.spec.vocab_size:
        return self.codec.decode(state, x)
      # Places to come are grey, and their neighbours as they will be; of a code without
      # places, what is to come has the first value.
      known = samples.images if side else samples.images[:, :1, :1]
      picture = self.codec.decode(state, jnp.where(x < 0, known, x))
      empty = (x < 0).all(-1, keepdims=True)
      for axis in (1, 2):
        empty = empty.repeat(side, axis)
      return jnp.where(empty, 0.0, picture) if side else picture

    # One after the other: a film of many pictures may not fit side by side.
    return samples._replace(images=images, frames=jax.lax.map(stage, samples.frames))

  def encoded(self, state: State | tuple[State, ...], given: Given) -> Given:
    """Pictures to edit -> their latents; a place of them is drawn if any pixel is.

    Of a code without places all is drawn.
    """
    latents = self.codec.encode(state, given.images)
    n, h, w, _ = latents.shape
    side = side_of(latents, given.images)
    if not side:
      return Given(latents, jnp.ones((n, h, w, 1)))
    return Given(latents, given.mask.reshape(n, h, side, w, side, 1).max((2, 4)))


def side_of(latents: Shaped[Array, "n i j k"], images: Float[Array, "n h w c"]) -> int:
  """Of the square of pixels that a place of latents is of; 0 if there is none."""
  (_, i, j, _), (_, height, width, _) = latents.shape, images.shape
  side = height // i
  return side if (i * side, j * side) == (height, width) else 0


def chained(inner: Opened, outer: Opened) -> Opened:
  """The codec of what another codec makes; its state is those of both."""
  first, second = inner.codec, outer.codec
  both = Codec(
    second.spec,
    lambda states, images: second.encode(states[1], first.encode(states[0], images)),
    lambda states, code: first.decode(states[0], second.decode(states[1], code)),
    first.pictures,
  )
  key = hashlib.sha256((inner.key + outer.key).encode()).hexdigest()
  return Opened(both, (inner.state, outer.state), key)
