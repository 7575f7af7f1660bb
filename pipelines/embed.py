"""Pictures and captions to unit vectors of one space, many at a time on all devices."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, PyTree
from ml_collections import ConfigDict

from core.errors import UserError
from core.parallel import Parallel
from eval.features import resized
from eval.images import ImageSet
from text.cond import Cond


class Dual(NamedTuple):
  """A dual encoder with its weights.

  Attributes:
    name: what 100 cos(picture, caption) may be called.
    origin: where the weights are from, by names that records have.
    size: the side of the pictures that it was trained on.
    params: the weights, an argument of the two functions below.
    embed_images: (params, pictures in [-1, 1] of any size) -> unit vectors [b, d].
    embed_texts: (params, raw conditions) -> unit vectors [b, d].
    conditions: captions -> raw conditions, in numpy.
    settings: what the vectors depend on besides the weights, where that may change.
    data: what it was trained on, `config.data` of its run; None where unknown.
  """

  name: str
  origin: dict[str, Any]
  size: int
  params: PyTree
  embed_images: Callable[[PyTree, Array], Float[Array, "b d"]]
  embed_texts: Callable[[PyTree, Cond], Float[Array, "b d"]]
  conditions: Callable[[Sequence[str]], Cond]
  settings: str = ""
  data: ConfigDict | None = None


class Embedder:
  """Unit vectors of many pictures and captions, on all devices; compiled once.

  Every process gets all vectors.

  Args:
    dual: the encoder.
    run: the devices.
    batch_size: over all devices, at most.

  Raises:
    UserError: the batch does not fit the devices.
  """

  def __init__(self, dual: Dual, run: Parallel, batch_size: int):
    run.check_batch(batch_size, field="eval.batch_size")
    self._dual, self._run, self._size = dual, run, batch_size
    self._params = jax.device_put(dual.params, run.replicated)
    self._images, self._texts = (
      run.run(fn) for fn in (dual.embed_images, dual.embed_texts)
    )

  def images(self, pictures: ImageSet) -> Float[np.ndarray, "n d"]:
    """Of pictures of any sizes; one that is not square is stretched."""
    size = self._dual.size

    def read(rows: Sequence[int]) -> Float[np.ndarray, "b h w c"]:
      found = [resized(pictures.read(i), size, "clean") for i in rows]
      return np.concatenate(found) * np.float32(2 / 255) - 1

    fn = functools.partial(self._images, self._params)
    return embedded(fn, self._run, read, pictures.length, self._size)

  def texts(self, captions: Sequence[str]) -> Float[np.ndarray, "n d"]:
    """Of captions; each different one is embedded once."""
    once = list(dict.fromkeys(captions))
    read = lambda rows: self._dual.conditions([once[i] for i in rows])  # noqa: E731
    fn = functools.partial(self._texts, self._params)
    found = embedded(fn, self._run, read, len(once), self._size)
    place = {caption: i for i, caption in enumerate(once)}
    return found[[place[caption] for caption in captions]]


def embedded(
  fn: Callable[[PyTree], Float[Array, "b d"]],
  run: Parallel,
  read: Callable[[Sequence[int]], PyTree],
  count: int,
  size: int,
) -> Float[np.ndarray, "{count} d"]:
  """fn(read(rows)) of rows 0, ..., count - 1, `size` at a time over all devices.

  The last batch is filled up from the start, so that one program does for all.

  Raises:
    UserError: a vector is not finite.
  """
  rows, found = size // jax.process_count(), []
  own = rows * jax.process_index()
  for start in range(0, count, size):
    ids = (start + own + np.arange(rows)) % count
    found.append(jax.device_get(fn(run.put(read(ids.tolist())))))
  vectors = np.concatenate(found)[:count]
  if not np.isfinite(vectors).all():
    raise UserError("a vector of a picture or caption is not finite; train anew.")
  return vectors
