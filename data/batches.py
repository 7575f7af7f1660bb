"""Batches as a pure function of (seed, step), cut by process, decoded ahead.

The stream numbers its rows: row r of step s is position p = s * batch_size + r.
Position p is example `order(seed, p // n)[p % n]` of n, with an own permutation
for each epoch, and its language, caption and flip come from a random block keyed
on (seed, p). So nothing needs saving but the step, and neither threads nor
processes change what is seen.
"""

import functools
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import grain
import jax
import numpy as np
from jaxtyping import Int, UInt64

from core.errors import UserError
from data.dataset import Captions, Dataset, Example
from text.cond import Cond

Batch = dict[str, Any]
MakeCond = Callable[[str, int], Cond]


def train_batches(
  dataset: Dataset,
  make_cond: MakeCond,
  *,
  seed: int,
  batch_size: int,
  languages: Sequence[str],
  flip: bool = False,
  start_step: int = 0,
  process_index: int = 0,
  process_count: int = 1,
) -> grain.DatasetIterator[Batch]:
  """`batch_at` for start_step, start_step + 1, ... without end, prepared ahead.

  Starting late costs nothing. Close the iterator to stop its threads.
  """
  check(dataset, batch_size, languages, process_count)
  make = functools.partial(
    batch_at,
    dataset,
    make_cond,
    seed=seed,
    batch_size=batch_size,
    languages=languages,
    flip=flip,
    process_index=process_index,
    process_count=process_count,
  )
  steps = grain.MapDataset.range(start_step, sys.maxsize)
  return ahead(steps.map(lambda step: make(step=int(step))), dataset)


def batch_at(
  dataset: Dataset,
  make_cond: MakeCond,
  *,
  seed: int,
  step: int,
  batch_size: int,
  languages: Sequence[str],
  flip: bool = False,
  process_index: int = 0,
  process_count: int = 1,
) -> Batch:
  """This process's rows of the batch of `step`.

  Args:
    dataset: of n examples.
    make_cond: (caption, label) -> `Cond` of one example, numpy leaves without a
      batch dimension.
    seed: of the order and the choices.
    step: any step from 0 on.
    batch_size: B, of all processes together.
    languages: one of those that the example has is drawn, then one of its
      captions in it; '' if it has none.
    flip: mirror half of the pictures, left to right.
    process_index: p of P; its rows are [p B/P, (p+1) B/P).
    process_count: P.

  Returns:
    x: float32 [B/P, h, w, c] in [-1, 1]. cond: `Cond` with leaves [B/P, ...].
    _id: uint32 [B/P], the position modulo 2**32. _mask: bool [B/P], all True.

  Raises:
    UserError: B is not divisible by P, the data set is empty or lacks a language.
  """
  rows = check(dataset, batch_size, languages, process_count)
  first = step * batch_size + process_index * rows
  positions = np.arange(first, first + rows, dtype=np.int64)
  epochs, within = np.divmod(positions, len(dataset))
  index = np.empty(rows, np.int64)
  for epoch in np.unique(epochs):
    here = epochs == epoch
    index[here] = order(seed, int(epoch), len(dataset))[within[here]]
  examples, conds = [], []
  draws = random_words(seed, first, rows)
  for i, (language, which, _, _) in zip(index.tolist(), draws.tolist(), strict=True):
    example = dataset[i]
    caption = choose(example.captions, languages, language, which)
    examples.append(example)
    conds.append(make_cond(caption, example.label))
  batch = collate(examples, conds, positions)
  if flip:
    mirrored = (draws[:, 2] & 1).astype(bool)
    batch["x"][mirrored] = batch["x"][mirrored, :, ::-1]
  return batch


def eval_batches(
  dataset: Dataset,
  make_cond: MakeCond,
  *,
  batch_size: int,
  languages: Sequence[str],
  process_index: int = 0,
  process_count: int = 1,
) -> grain.DatasetIterator[Batch]:
  """Every example once, in order, as this process's rows of ceil(n / B) batches.

  Example i is captioned in the i-th language in turn, with the first caption
  there. The last batch is filled up with examples from the start, `_mask` False.
  `_id` is the row's place in the pass: the example's index, or >= n on padding.

  Raises:
    UserError: as `batch_at`.
  """
  rows = check(dataset, batch_size, languages, process_count)

  def make(step: int) -> Batch:
    first = int(step) * batch_size + process_index * rows
    positions = np.arange(first, first + rows, dtype=np.int64)
    examples = [dataset[i] for i in (positions % len(dataset)).tolist()]
    conds = [
      make_cond(choose(example.captions, languages, p, 0), example.label)
      for p, example in zip(positions.tolist(), examples, strict=True)
    ]
    batch = collate(examples, conds, positions)
    return batch | {"_mask": positions < len(dataset)}

  count = -(-len(dataset) // batch_size)
  return ahead(grain.MapDataset.range(count).map(make), dataset)


def ahead(steps: grain.MapDataset, dataset: Dataset) -> grain.DatasetIterator[Batch]:
  """Makes batches in background threads, a few ahead of the reader."""
  # Decoders let go of Python's lock; copying cached pictures would fight over it.
  threads = 1 if dataset.cached else min(16, os.cpu_count() or 1)
  options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
  return iter(steps.to_iter_dataset(options))


def check(
  dataset: Dataset, batch_size: int, languages: Sequence[str], process_count: int
) -> int:
  """The rows of one process, or a UserError."""
  if not len(dataset):
    raise UserError(f"The data set {dataset.name} is empty: choose other data.")
  if batch_size < 1 or batch_size % process_count:
    raise UserError(
      f"data.batch_size {batch_size} cannot be cut into {process_count} equal "
      f"parts, one a process: make it a multiple of {process_count}."
    )
  dataset.check_languages(languages)
  return batch_size // process_count


def collate(
  examples: Sequence[Example], conds: Sequence[Cond], positions: Int[np.ndarray, " b"]
) -> Batch:
  """Examples and their conditions -> one batch."""
  x = np.stack([example.image for example in examples])
  if x.dtype == np.uint8:  # pixels; latents and tokens stay as they are
    x = x.astype(np.float32)
    x *= np.float32(2 / 255)
    x -= 1
  cond = jax.tree.map(lambda *leaves: np.stack(leaves), *conds)
  if examples[0].embedding is not None:
    vectors = np.stack([e.embedding for e in examples])
    if cond.embedding is None:
      cond = cond.replace(embedding=vectors)
    else:  # of the captions
      cond = cond.replace(similarity=np.sum(vectors * cond.embedding, axis=1))
  return {
    "x": x,
    "cond": cond,
    "_id": (positions % 2**32).astype(np.uint32),
    "_mask": np.ones(len(positions), bool),
  }


def choose(
  captions: Captions, languages: Sequence[str], language: int, which: int
) -> str:
  """The caption picked by two whole numbers of any size; '' if there is none."""
  spoken = [code for code in languages if captions.get(code)]
  if not spoken:
    return ""
  texts = captions[spoken[language % len(spoken)]]
  return texts[which % len(texts)]


def philox(seed: int, stream: int, counter: int = 0) -> np.random.Philox:
  """Counter-based bits (Salmon et al. 2011), the same on every numpy and machine."""
  key = np.array([seed % 2**64, stream], np.uint64)
  return np.random.Philox(key=key, counter=counter)


def random_words(seed: int, first: int, count: int) -> UInt64[np.ndarray, "count 4"]:
  """Four random words for each position, whatever range they are asked in."""
  return philox(seed, 0, first).random_raw(4 * count).reshape(count, 4)


@functools.lru_cache(4)
def order(seed: int, epoch: int, n: int) -> Int[np.ndarray, " n"]:
  """The permutation of [0, n) that is this epoch's order."""
  return np.argsort(philox(seed, epoch + 1).random_raw(n), kind="stable")
