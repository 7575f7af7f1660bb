"""Vectors of a dual encoder as a condition: of a picture to be like, or of the caption.

`text.embedding` is the workdir of a dual encoder (`text/clip.py`), as in unCLIP (Ramesh
et al. 2022, arXiv:2204.06125). In training the
vector is that of the picture itself, in drawing that of a given one or of what a prior
draws. With `text.embedding_of_caption`, which is for a prior, it is the caption's.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key
from ml_collections import ConfigDict

from core.edits import slerp
from core.errors import UserError
from core.family import Codec, Samples
from core.parallel import Parallel
from data.dataset import Dataset, Example
from pipelines.opened import Opened
from text import encoders
from text.cond import Cond
from text.encoders import LookUp


def config_of(config: ConfigDict) -> ConfigDict:
  """The config as if it generated those vectors, to open their encoder by.

  Raises:
    UserError: a family that does not read them, or pictures that are mirrored or small.
  """
  of_caption = config.text.embedding_of_caption
  families = ("diffusion.ddpm", *(("autoregressive.decoder",) if of_caption else ()))
  if config.family not in families:
    raise UserError(
      f"text.embedding is for {' and '.join(families)}, not {config.family}: set it to"
      " ''."
    )
  if config.data.low_size and not of_caption:
    raise UserError(
      "text.embedding is of whole pictures, and this generator starts from small ones:"
      " set data.low_size to 0."
    )
  if config.data.flip and not of_caption:
    raise UserError(
      "text.embedding is of the pictures as they are: set data.flip to False."
    )
  found = ConfigDict(config.to_dict())
  found.data.codec, found.data.latents = config.text.embedding, "latents"
  found.data.low_size, found.sample.threshold = 0, "none"
  found.text.embedding, found.text.embedding_of_caption = "", False
  return found


def like_pictures(config: ConfigDict) -> bool:
  """Whether a generator reads the vectors of pictures."""
  return bool(config.text.embedding) and not config.text.embedding_of_caption


def check(config: ConfigDict) -> None:
  """Raises UserError for settings of vectors of captions where there are none."""
  own = config.text
  if own.embedding_of_caption and not own.embedding:
    raise UserError(
      "text.embedding_of_caption=True needs the dual encoder whose vector is read: name"
      " its workdir in text.embedding."
    )
  if own.similarity_cells and not own.embedding_of_caption:
    raise UserError(
      f"text.similarity_cells={own.similarity_cells} tells a prior how well a picture's"
      " vector fits the caption's (text.embedding_of_caption): set it to 0."
    )
  if config.sample.candidates > 1 and not own.embedding_of_caption:
    raise UserError(
      f"sample.candidates={config.sample.candidates} chooses among the vectors of a"
      " prior by that of the caption (text.embedding_of_caption): set it to 1."
    )


def with_vectors(config: ConfigDict) -> bool:
  """Whether examples carry the vectors of their pictures, beside what is generated."""
  return like_pictures(config) or config.text.similarity_cells > 0


def check_dual(config: ConfigDict, codec: Codec) -> None:
  """Raises UserError if the run in `text.embedding` is no dual encoder."""
  if codec.texts is None:
    raise UserError(
      f"the run in text.embedding={config.text.embedding} makes no vectors that"
      " pictures and captions share; give that of a dual encoder, such as"
      " configs/text/clip.py."
    )


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
  cond: Cond,
  opened: Opened,
  run: Parallel,
  images: Float[np.ndarray, "n h w c"] | None,
  n: int,
) -> Cond:
  """The condition with the vectors of pictures, or of none: zeros."""
  if images is None:
    found = np.zeros((n, opened.codec.spec.shape[-1]), np.float32)
  else:
    found = run.run(opened.codec.encode)(opened.state, images)
    found = np.asarray(jax.device_get(found)).reshape(n, -1)
  return cond.replace(embedding=found)


def between(cond: Cond, n: int) -> Cond:
  """Vectors from that of the first row to that of row n - 1, in equal steps.

  Spherical interpolation (section 3.2). Rows from n on, of padding, stay as they are.
  """
  vectors = cond.embedding
  ends = (jnp.asarray(vectors[i]) for i in (0, n - 1))
  path = slerp(*ends, jnp.linspace(0, 1, n))
  return cond.replace(embedding=np.concatenate([path, vectors[n:]]))


CAPTIONS = 64  # that are embedded at once


def of_captions(
  text: ConfigDict,
  opened: Opened,
  run: Parallel,
  look_up: LookUp | None,
  captions: Sequence[str],
) -> dict[str, Float[np.ndarray, " d"]]:
  """The vector of each caption, sqrt(d) long; of the empty one zeros.

  Args:
    text: how the dual encoder reads captions, its `config.text`.
    opened: it.
    run: the devices.
    look_up: of its frozen text encoders, if any.
    captions: in any order, also more than once.

  Raises:
    UserError: it reads classes in place of captions.
  """
  if text.encoder == "label":
    raise UserError(
      "the dual encoder in text.embedding knows classes and no captions: give one that"
      " was trained with text.encoder='bytes', or set text.embedding_of_caption to"
      " False."
    )
  zeros = np.zeros(opened.codec.spec.shape[-1], np.float32)
  found, wanted = {"": zeros}, sorted(set(captions) - {""})
  make, embed = encoders.raw(text, look_up), run.run(opened.codec.texts)
  for first in range(0, len(wanted), CAPTIONS):
    part = wanted[first : first + CAPTIONS]
    conds = [make(caption, 0) for caption in part + [""] * (CAPTIONS - len(part))]
    cond = jax.tree.map(lambda *leaves: np.stack(leaves), *conds)
    rows = np.asarray(jax.device_get(embed(opened.state, cond)), np.float32)
    found |= dict(zip(part, rows, strict=False))
  return found


def with_captions(
  make_cond: Callable[[str, int], Cond], vectors: dict[str, Float[np.ndarray, " d"]]
) -> Callable[[str, int], Cond]:
  """(caption, label) -> what `make_cond` makes of it, and its vector."""
  return lambda caption, label: make_cond(caption, label).replace(
    embedding=vectors[caption]
  )


def nearest(
  draw: Callable[[Key[Array, " _"], Cond, int], Samples],
  keys: Key[Array, " n"],
  cond: Cond,
  n: int,
  candidates: int,
) -> Samples:
  """Of so many vectors for each of n conditions, that with the largest dot product.

  With `cond.embedding`, the caption's vector: section 2.2 draws two. `draw` gives
  vectors, [n, 1, 1, d]; candidate j of a sample has the key fold_in(key, j). The `nfe`
  are those of all.
  """
  if candidates == 1:
    return draw(keys, cond, n)
  rows, turns = jnp.divmod(jnp.arange(n * candidates), candidates)
  own = jax.vmap(jax.random.fold_in)(keys[rows], turns)
  drawn = draw(own, jax.tree.map(lambda leaf: leaf[rows], cond), n * candidates)
  texts = cond.embedding[rows]
  scores = jnp.sum(drawn.images.reshape(texts.shape) * texts, axis=-1)
  best = jnp.argmax(scores.reshape(n, candidates), axis=1)
  best += jnp.arange(n) * candidates
  nfe = drawn.nfe.reshape(n, candidates).sum(1)
  return Samples(drawn.images[best], drawn.frames[:, best], nfe)
