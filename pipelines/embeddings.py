"""Vectors of pictures as a condition: what a generator draws shall be like a picture.

`text.embedding` is the workdir of a dual encoder (`text/clip.py`); in training the
vector is that of the picture itself, in drawing that of a given one or of what a prior
draws (unCLIP, Ramesh et al. 2022, arXiv:2204.06125).
"""

import jax
import numpy as np
from jaxtyping import Float
from ml_collections import ConfigDict

from core.errors import UserError
from data.dataset import Dataset, Example
from pipelines.opened import Opened
from text.cond import Cond


def config_of(config: ConfigDict) -> ConfigDict:
  """The config as if it generated those vectors, to open their encoder by.

  Raises:
    UserError: a family that does not read them, or pictures that are mirrored.
  """
  if config.family != "diffusion.ddpm":
    raise UserError(f"text.embedding is for diffusion.ddpm, not {config.family}.")
  if config.data.flip:
    raise UserError(
      "text.embedding is of the pictures as they are: set data.flip to False."
    )
  found = ConfigDict(config.to_dict())
  found.data.codec, found.data.latents = config.text.embedding, "latents"
  found.data.low_size, found.sample.threshold = 0, "none"
  found.text.embedding = ""
  return found


def dataset(own: Dataset, vectors: Dataset) -> Dataset:
  """A data set whose examples have the vectors that are the pictures of another."""

  def read(i: int) -> Example:
    return own[i]._replace(embedding=vectors[i].image.reshape(-1))

  return Dataset(
    own.name,
    len(own),
    read,
    shape=own[0].image.shape,
    captions=own.captions,
    classes=own.classes,
    languages=own.languages,
  )


def embed(
  cond: Cond, opened: Opened, images: Float[np.ndarray, "n h w c"] | None, n: int
) -> Cond:
  """The condition with the vectors of pictures, or of none: zeros."""
  if images is None:
    found = np.zeros((n, opened.codec.spec.shape[-1]), np.float32)
  else:
    found = jax.jit(opened.codec.encode)(opened.state, images)
    found = np.asarray(jax.device_get(found)).reshape(n, -1)
  return cond.replace(embedding=found)
