"""Do pictures and captions belong together? For the embeddings of any dual encoder."""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int

from core.errors import UserError

ROWS = 1024  # of the similarity matrix held at once
ROUNDING = 1e-6  # cosines nearer than this are equal


class Retrieval(NamedTuple):
  """Share of queries whose own partner is among the first k, for each k."""

  image_to_text: dict[int, float]
  text_to_image: dict[int, float]


def score(
  images: Float[np.ndarray, "n d"], texts: Float[np.ndarray, "n d"]
) -> Float32[np.ndarray, " n"]:
  """100 cos(image_i, text_i), from -100 to 100; the mean is the score of a set.

  Plain: not CLIPScore, which is 2.5 max(cos, 0) (Hessel et al. 2021), nor cut
  at 0. Embeddings need no unit length; one of length 0 has cosine 0.
  """
  return 100 * np.einsum("nd,nd->n", _unit(images), _unit(texts))


def mismatched(
  images: Float[np.ndarray, "n d"],
  texts: Float[np.ndarray, "n d"],
  captions: Sequence[str],
) -> float:
  """The mean score of all pictures with all captions of others, from -100 to 100.

  That is 100 cos(image_i, text_j) over all i, j with captions i and j different, what
  shuffling gives on average. NaN if all captions are equal.

    sum over all i, j of u_i.v_j = (sum of u) . (sum of v)

  less the same sum for the pictures of each caption.
  """
  groups = np.unique(np.asarray(captions), return_inverse=True)[1].reshape(-1)
  u, v = (_unit(x).astype(np.float64) for x in (images, texts))
  counts = np.bincount(groups)
  sums = [np.zeros((len(counts), x.shape[1])) for x in (u, v)]
  for total, x in zip(sums, (u, v), strict=True):
    np.add.at(total, groups, x)
  others = len(u) ** 2 - np.sum(counts**2)
  total = u.sum(0) @ v.sum(0) - np.sum(sums[0] * sums[1])
  return float(100 * total / others) if others else math.nan


def retrieval(
  images: Float[np.ndarray, "n d"],
  texts: Float[np.ndarray, "n d"],
  at: tuple[int, ...] = (1, 10),
) -> Retrieval:
  """R@k both ways: image i and text i are partners, ranked by cosine among all n.

  The zero-shot retrieval of Radford et al. 2021 (CLIP). Equal cosines, as of a repeated
  caption, are thought of in random order and the expected share is given, so an encoder
  that maps all to one point scores chance, k / n. Of the n x n matrix `ROWS` rows exist
  at a time.

  Raises:
    UserError: no pairs, or a k below 1.
  """
  if not len(images) or not at or min(at) < 1:
    raise UserError("retrieval needs at least one pair, and to look at 1 or more.")
  images, texts = _unit(images), _unit(texts)
  return Retrieval(_recalls(images, texts, at), _recalls(texts, images, at))


def _unit(x: Float[np.ndarray, "n d"]) -> Float32[np.ndarray, "n d"]:
  x = x.astype(np.float32)
  length = np.linalg.norm(x, axis=1, keepdims=True)
  return x / np.where(length > 0, length, 1)


def _recalls(
  queries: Float32[np.ndarray, "n d"],
  keys: Float32[np.ndarray, "n d"],
  at: tuple[int, ...],
) -> dict[int, float]:
  n, rows = len(queries), min(ROWS, len(queries))
  on_device = jnp.asarray(keys)
  better, equal = [], []
  for start in range(0, n, rows):
    # The last block reaches back, so that all have one shape.
    first = min(start, n - rows)
    above, level = _ranks(
      jnp.asarray(queries[first : first + rows]),
      jnp.asarray(keys[first : first + rows]),
      on_device,
    )
    better.append(np.asarray(above)[start - first :])
    equal.append(np.asarray(level)[start - first :])
  above, level = np.concatenate(better), np.concatenate(equal)
  return {k: float(np.clip((k - above) / level, 0, 1).mean()) for k in at}


@jax.jit
def _ranks(
  queries: Float[Array, "r d"], own: Float[Array, "r d"], keys: Float[Array, "n d"]
) -> tuple[Int[Array, " r"], Int[Array, " r"]]:
  """How many keys are above a query's own, and how many level with it, own included."""
  dot = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
  gap = dot("rd,nd->rn", queries, keys) - dot("rd,rd->r", queries, own)[:, None]
  above = (gap > ROUNDING).sum(1)
  return above, jnp.maximum((jnp.abs(gap) <= ROUNDING).sum(1), 1)
