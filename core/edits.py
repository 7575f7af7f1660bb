"""Pictures while they form from latents or tokens, and what is done to given ones."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from core.family import Codec, Given, Samples

Edit = Callable[[PyTree, Array, Any, Given], Samples]
Encode = Callable[[PyTree, Any, Array], Array]  # weights, cond, images
Form = Callable[[PyTree, Array, Any], Samples]  # weights, latents or tokens, cond


def film(
  picture: Callable[[Float[Array, ""]], Float[Array, "n h w c"]],
  frames: int,
  last: float | int = 1,
) -> Samples:
  """picture(s) at s = `last`, and its frames from s = 0, where nothing is drawn yet."""
  # Backwards, so that a single frame is the picture.
  stages = jnp.linspace(last, 0, frames)[::-1]
  images = picture(stages[-1])
  before = jax.lax.map(picture, stages[:-1])
  film = jnp.concatenate([before, images[None]])
  return Samples(images, film, jnp.ones(len(images), jnp.int32))


def reconstruct(encode: Encode, form: Form) -> Edit:
  """Pictures to their code and back."""

  def edit(weights: PyTree, rng: Array, cond: Any, given: Given) -> Samples:
    return form(weights, encode(weights, cond, given.images), cond)

  return edit


def interpolate(encode: Encode, form: Form) -> Edit:
  """From the first picture to the last in equal steps, straight in their latents."""

  def edit(weights: PyTree, rng: Array, cond: Any, given: Given) -> Samples:
    z = encode(weights, cond, given.images)
    share = jnp.linspace(0, 1, len(z)).reshape(-1, *(1,) * (z.ndim - 1))
    return form(weights, (1 - share) * z[:1] + share * z[-1:], cond)

  return edit


def of_codecs(
  codecs: Mapping[str, Codec], form: Callable[..., Samples]
) -> dict[str, Edit]:
  """`reconstruct` by the last of them, and with latents `interpolate`.

  form: (name of the codec, *what a `Form` takes) -> Samples.
  """

  def encode(name: str, weights: PyTree, cond: Any, images: Array) -> Array:
    return codecs[name].encode(weights, images)

  def edit(kind: Callable[[Encode, Form], Edit], name: str) -> Edit:
    return kind(functools.partial(encode, name), functools.partial(form, name))

  found = {"reconstruct": edit(reconstruct, list(codecs)[-1])}
  if "latents" in codecs:
    found["interpolate"] = edit(interpolate, "latents")
  return found


def slerp(
  a: Float[Array, "..."], b: Float[Array, "..."], share: Float[Array, " n"]
) -> Float[Array, "n ..."]:
  """sin((1 - s) theta) / sin(theta) a + sin(s theta) / sin(theta) b.

  theta is the angle between a and b (Shoemake 1985); DDIM, appendix D.5. Straight
  where they are parallel.
  """
  cosine = jnp.vdot(a, b) / (jnp.linalg.norm(a) * jnp.linalg.norm(b))
  theta = jnp.arccos(jnp.clip(cosine, -1 + 1e-6, 1 - 1e-6))
  shape = (-1, *(1,) * a.ndim)
  first, second = (jnp.sin(s * theta) / jnp.sin(theta) for s in (1 - share, share))
  return first.reshape(shape) * a + second.reshape(shape) * b
