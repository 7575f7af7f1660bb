"""What an autoencoder does to given pictures."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, PyTree

from core.errors import unknown
from core.family import Codec, Given, Samples

Edit = Callable[[PyTree, Array, Any, Given], Samples]


def of_codecs(codecs: Mapping[str, Codec]) -> dict[str, Edit]:
  """`reconstruct`, by tokens if there are any, and with latents `interpolate`.

  Each is (weights, rng, cond, given) -> Samples.
  """

  def reconstruct(weights: PyTree, rng: Array, cond: Any, given: Given) -> Samples:
    """The picture, coded and decoded; its film is before and after."""
    codec = codecs.get("tokens") or codecs["latents"]
    images = codec.decode(weights, codec.encode(weights, given.images))
    film = jnp.stack([jnp.asarray(given.images), images])
    return Samples(images, film, jnp.ones(len(images), jnp.int32))

  def interpolate(weights: PyTree, rng: Array, cond: Any, given: Given) -> Samples:
    """From the first picture to the last in equal steps, straight in the latents."""
    codec = codecs["latents"]
    n = len(given.images)
    latents = codec.encode(weights, given.images)
    share = jnp.linspace(0, 1, n).reshape(-1, *(1,) * (latents.ndim - 1))
    way = (1 - share) * latents[0] + share * latents[-1]
    images = codec.decode(weights, way)
    return Samples(images, images[None], jnp.ones(n, jnp.int32))

  found = {"reconstruct": reconstruct}
  return found | ({"interpolate": interpolate} if "latents" in codecs else {})


def check(edit: str, edits: Iterable[str]) -> None:
  """Raises UserError if `sample.edit` is not among them."""
  if edit not in edits:
    raise unknown("sample.edit", edit, edits)
