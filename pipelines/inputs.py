"""What networks are given: conditions, and batches of what a config's data are."""

import itertools
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np
from jaxtyping import Float
from ml_collections import ConfigDict

from core import parallel
from core.errors import UserError
from core.family import Batch
from data.batches import eval_batches, train_batches
from data.source import Dataset
from pipelines import build, codecs, embeddings, features, similarity, texts
from text import encoders
from text.cond import Cond


def conditions(
  config: ConfigDict,
  captions: Sequence[str],
  labels: Sequence[int],
  images: Float[np.ndarray, "n h w c"] | None = None,
) -> Cond | dict[str, Cond]:
  """The raw conditions of captions, labels and pictures that drawing starts from.

  Of what several stages draw together (`pipelines/system.py`): those of each.
  """
  if "stages" in config:
    parts = config.stages
    return {name: conditions(parts[name], captions, labels) for name in config.draw}
  make_cond = encoders.raw(config.text, texts.encoded(config, captions))
  conds = [make_cond(*pair) for pair in zip(captions, labels, strict=True)]
  cond = jax.tree.map(lambda *leaves: np.stack(leaves), *conds)
  if embeddings.like_pictures(config):
    run = parallel.make(config.parallel)
    cond = embeddings.embed(cond, build.embedder(config), run, images, len(captions))
  elif build.embedder(config):
    vectors = of_captions(config, captions)
    cond = cond.replace(embedding=np.stack([vectors[c] for c in captions]))
  if config.text.similarity_cells:
    cond = similarity.unknown(cond, len(captions))
  return cond.replace(image=images if config.data.low_size else None)


def of_captions(
  config: ConfigDict, captions: Sequence[str]
) -> dict[str, Float[np.ndarray, " d"]]:
  """Their vectors by the dual encoder of `text.embedding`."""
  theirs = codecs.config_of(embeddings.config_of(config))
  look_up, run = texts.encoded(theirs, captions), parallel.make(config.parallel)
  opened = build.embedder(config)
  return embeddings.of_captions(theirs.text, opened, run, look_up, captions)


def raw_conditions(config: ConfigDict, dataset: Dataset) -> Callable[[str, int], Cond]:
  """(caption, label) -> the raw condition, for all captions of a data set.

  The vectors of captions are made here, and held in memory.
  """
  make_cond = encoders.raw(config.text, texts.cached(config))
  if not config.text.embedding_of_caption:
    return make_cond
  spoken = [
    caption
    for i in range(len(dataset))
    for language, found in dataset.captions(i).items()
    if language in config.data.languages
    for caption in found
  ]
  return embeddings.with_captions(make_cond, of_captions(config, spoken))


def check_classes(config: ConfigDict, dataset: Dataset) -> None:
  """Raises UserError if text.classes is not the number of classes of the data."""
  if config.text.encoder != "label":
    return
  if not dataset.classes:
    raise UserError(
      f"data set {dataset.name} has no class labels; set text.encoder to 'bytes' or"
      " 'none'."
    )
  if config.text.classes != len(dataset.classes):
    raise UserError(
      f"data set {dataset.name} has {len(dataset.classes)} classes and text.classes is"
      f" {config.text.classes}; set text.classes to {len(dataset.classes)}."
    )


def train_stream(
  config: ConfigDict, dataset: Dataset
) -> Callable[[int], Iterator[Batch]]:
  """first step -> this process's training batches from there on."""
  data = config.data
  make_cond = raw_conditions(config, dataset)
  dataset = encoded(config, dataset, data.train_split)
  told = tells(config, dataset, make_cond)

  def batches(start_step: int) -> Iterator[Batch]:
    own = train_batches(
      dataset,
      make_cond,
      seed=config.seed,
      batch_size=data.batch_size,
      languages=tuple(data.languages),
      flip=data.flip,
      start_step=start_step,
      process_index=jax.process_index(),
      process_count=jax.process_count(),
    )
    return told(own)

  return batches


def tells(
  config: ConfigDict, dataset: Dataset, make_cond: Callable[[str, int], Cond]
) -> Callable[[Iterator[Batch]], Iterator[Batch]]:
  """Batches -> the same, told how well captions fit if `text.similarity_cells` asks."""
  if not config.text.similarity_cells:
    return lambda batches: batches
  ranked = similarity.ranks(dataset, make_cond, tuple(config.data.languages))
  return lambda batches: similarity.ranked_batches(batches, ranked)


def eval_stream(config: ConfigDict, dataset: Dataset) -> Iterator[Batch]:
  """This process's rows of the first `config.eval.num_images` examples (0: all)."""
  make_cond = raw_conditions(config, dataset)
  dataset = encoded(config, dataset, config.data.eval_split)
  batches = eval_batches(
    dataset,
    make_cond,
    batch_size=config.eval.batch_size,
    languages=tuple(config.data.languages),
    process_index=jax.process_index(),
    process_count=jax.process_count(),
  )
  wanted = config.eval.num_images or len(dataset)
  told = tells(config, dataset, make_cond)(batches)
  for start, batch in zip(itertools.count(0, config.eval.batch_size), told):
    if start >= wanted:
      return
    batch["_mask"] &= batch["_id"] < wanted
    yield batch


def encode_splits(config: ConfigDict, load: Callable[[str], Dataset]) -> None:
  """Encodes what training and evaluation read, where it is not pixels.

  Raises:
    UserError: as `codec`, `codecs.dataset` and `features.dataset`.
  """
  if config.data.codec or embeddings.with_vectors(config) or features.net(config):
    for split in dict.fromkeys((config.data.train_split, config.data.eval_split)):
      encoded(config, load(split), split)


def encoded(config: ConfigDict, dataset: Dataset, split: str) -> Dataset:
  """The data set as the family sees it: pictures, or their latents or features."""
  opened, run = build.codec(config), parallel.make(config.parallel)
  if opened is None:
    found = features.dataset(config, dataset, split) or dataset
  else:
    found = codecs.dataset(config, opened, run, dataset, split)
  if embeddings.with_vectors(config):
    theirs, seen = embeddings.config_of(config), build.embedder(config)
    return embeddings.dataset(found, codecs.dataset(theirs, seen, run, dataset, split))
  return found
