"""A trained autoencoder: what is drawn in its latents is decoded, pictures encoded."""

import hashlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

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

    def stage(x: Array) -> Float[Array, "n h w c"]:
      if not self.codec.spec.vocab_size:
        return self.codec.decode(state, x)
      # Places to come are grey, and their neighbours as they will be.
      picture = self.codec.decode(state, jnp.where(x < 0, samples.images, x))
      empty = (x < 0).all(-1, keepdims=True)
      return jnp.where(enlarged(empty, picture.shape), 0.0, picture)

    # One after the other: a film of many pictures may not fit side by side.
    return samples._replace(images=images, frames=jax.lax.map(stage, samples.frames))

  def encoded(self, state: State | tuple[State, ...], given: Given) -> Given:
    """Pictures to edit -> their latents; a place of them is drawn if any pixel is."""
    latents = self.codec.encode(state, given.images)
    (n, h, w, _), (_, height, width, _) = latents.shape, given.mask.shape
    mask = given.mask.reshape(n, h, height // h, w, width // w, 1).max((2, 4))
    return Given(latents, mask)


def enlarged(
  mask: Bool[Array, "n i j 1"], shape: tuple[int, ...]
) -> Bool[Array, "n h w 1"]:
  """A mask of places as one of the pixels [n, h, w, c] that they are of."""
  _, i, j, _ = mask.shape
  return mask.repeat(shape[1] // i, axis=1).repeat(shape[2] // j, axis=2)


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
