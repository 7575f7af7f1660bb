"""How well a caption fits its picture, as a condition of a prior.

unCLIP's autoregressive prior is told the quantised dot product of the vectors of
caption and picture, and is asked for one of the upper half of its distribution (Ramesh
et al. 2022, arXiv:2204.06125, section 2.2). Here it is told the product's rank among
those of all pairs of the data, from 0 to 1: its cells are then equally likely, and
nothing else about the distribution has to be kept to draw.
"""

from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np
from jaxtyping import Array, Float, Key

from core.family import Batch
from data.dataset import Dataset
from text.cond import Cond

UNKNOWN = -1.0


def ranks(
  dataset: Dataset, make_cond: Callable[[str, int], Cond], languages: Sequence[str]
) -> Callable[[Cond], Cond]:
  """A batch's condition with `similarity`, a dot product -> its rank.

  The rank is the share of all pairs of the data whose product is smaller.

  Args:
    dataset: its examples have the pictures' vectors.
    make_cond: (caption, label) -> a condition with the caption's vector.
    languages: of the captions that count.
  """
  known = np.sort(list(products(dataset, make_cond, languages)))

  def ranked(cond: Cond) -> Cond:
    share = np.searchsorted(known, cond.similarity) / len(known)
    return cond.replace(similarity=share.astype(np.float32))

  return ranked


def products(
  dataset: Dataset, make_cond: Callable[[str, int], Cond], languages: Sequence[str]
) -> Iterator[np.float32]:
  """The dot product of each picture's vector with that of each of its captions."""
  for i in range(len(dataset)):
    example = dataset[i]
    spoken = [c for code in languages for c in example.captions.get(code, ())]
    for caption in spoken or [""]:
      yield example.embedding @ make_cond(caption, example.label).embedding


def ranked_batches(
  batches: Iterator[Batch], ranked: Callable[[Cond], Cond]
) -> Iterator[Batch]:
  """The batches with ranks in place of products."""
  for batch in batches:
    yield batch | {"cond": ranked(batch["cond"])}


def unknown(cond: Cond, n: int) -> Cond:
  """The condition of n rows, which say nothing of how well they fit."""
  return cond.replace(similarity=np.full(n, UNKNOWN, np.float32))


def upper_half(keys: Key[Array, " n"], cond: Cond) -> Cond:
  """A condition that is told of similarity with a rank of the upper half.

  Others are returned as they are. `keys` holds one key a sample.
  """
  if cond.similarity is None:
    return cond

  def draw(key: Key[Array, ""]) -> Float[Array, ""]:
    # Beside what the family draws from the same key.
    own = jax.random.fold_in(key, np.uint32(2**32 - 1))
    return jax.random.uniform(own, minval=0.5)

  return cond.replace(similarity=jax.vmap(draw)(keys))
