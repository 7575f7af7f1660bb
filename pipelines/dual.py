"""A trained dual encoder, as frozen functions: pictures and captions to unit vectors.

For scores, for choosing among samples, and for families that are conditioned on the
vectors of pictures, such as DALL-E 2's prior and decoder.
"""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree
from ml_collections import ConfigDict

from core.errors import UserError
from core.family import Family, State
from core.parallel import Parallel
from core.workdir import read_json
from eval.features import resized
from eval.images import ImageSet
from nets.pretrained.resize import resize
from pipelines import build, features
from text.cond import Cond

# What numbers of weights that were trained here are called.
OWN = "alignment score (project-trained)"


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
    data: what it was trained on, `config.data` of its run; None where unknown.
  """

  name: str
  origin: dict[str, Any]
  size: int
  params: PyTree
  embed_images: Callable[[PyTree, Array], Float[Array, "b d"]]
  embed_texts: Callable[[PyTree, Cond], Float[Array, "b d"]]
  conditions: Callable[[Sequence[str]], Cond]
  data: ConfigDict | None = None


def load(path: str, parallel: ConfigDict, field: str = "eval.clip") -> Dual:
  """The dual encoder in a workdir, with the EMA of its newest checkpoint.

  `field` is what a refusal calls the setting.

  Raises:
    UserError: there is none, or one of classes.
  """
  workdir = Path(path).expanduser()
  file = workdir / "config.json"
  if not file.exists():
    raise UserError(
      f"no run in {field}={path}; give the --workdir of a trained configs/text/clip.py."
    )
  config = ConfigDict(read_json(file))
  if config.get("family") != "text.clip":
    raise UserError(
      f"the run in {field}={path} is of {config.get('family')}; give that of a"
      " trained configs/text/clip.py."
    )
  if config.text.encoder == "label":
    raise UserError(
      f"the run in {field}={path} knows classes and no captions; give one with"
      " text.encoder='bytes'."
    )
  config.parallel = parallel
  family, run, state = build.trained(config, workdir)
  origin = {
    "clip": path,
    "clip_step": int(state.step),
    "clip_sha256": build.key_of(run, state),
  }
  state = state.replace(params={}, opt={})
  return of_family(config, family, state)._replace(origin=origin)


def of_family(config: ConfigDict, family: Family, state: State) -> Dual:
  """A family's towers with the weights of a state, from pixels on."""
  net, size = features.net(config), config.data.size

  def embed_images(params: PyTree, x: Float[Array, "b h w c"]) -> Float[Array, "b d"]:
    state, own = params
    x = channels(x, 3 if net else config.data.channels)
    if net is None:
      return family.towers.images(state, resize(x, size, size, "pillow_bicubic"))
    pixels = resize(127.5 * (x + 1), net.size, net.size, "pillow_bicubic")
    seen, _ = net.apply(own, jnp.clip(pixels, 0, 255))
    return family.towers.images(state, seen[:, None, None])

  return Dual(
    name=OWN,
    origin={},
    size=net.size if net else size,
    params=(state, net and net.params),
    embed_images=embed_images,
    embed_texts=lambda params, cond: family.towers.texts(params[0], cond),
    conditions=lambda captions: build.conditions(config, captions, [0] * len(captions)),
    data=config.data,
  )


def channels(x: Float[Array, "b h w c"], count: int) -> Float[Array, "b h w {count}"]:
  """Grey repeated for three channels, or the mean of three."""
  if x.shape[-1] == count:
    return x
  return x.repeat(count, -1) if x.shape[-1] == 1 else x.mean(-1, keepdims=True)


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
