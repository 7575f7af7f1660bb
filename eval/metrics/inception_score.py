"""Inception Score: sure about each image, and of many classes in all."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.special import log_softmax

from core.errors import UserError


class InceptionScore(NamedTuple):
  """The mean over splits, and their spread."""

  value: float
  std: float


def inception_score(
  logits: Float[np.ndarray, "n classes"], splits: int = 10, seed: int = 2020
) -> InceptionScore:
  """exp E_x KL(p(y|x) || p(y)), from 1 to the number of classes.

  Salimans et al. 2016, section 4, in float64. The rows are shuffled, then cut into
  `splits` parts, each with a p(y) of its own; papers use 10 parts of 5,000 images.
  The shuffle is torch-fidelity's, so the same logits and seed give the same number.

  Raises:
    UserError: fewer images than splits, or no splits.
  """
  if not 1 <= splits <= len(logits):
    raise UserError(
      f"the Inception Score cannot cut {len(logits)} images into {splits} splits: give"
      " more images, or from 1 split up to one an image."
    )
  order = np.random.RandomState(seed).permutation(len(logits))
  log_p = log_softmax(logits[order].astype(np.float64), axis=1)
  ends = [i * len(logits) // splits for i in range(splits + 1)]
  scores = [_score(log_p[i:j]) for i, j in zip(ends, ends[1:], strict=False)]
  return InceptionScore(float(np.mean(scores)), float(np.std(scores)))


def _score(log_p: Float[np.ndarray, "n classes"]) -> float:
  p = np.exp(log_p)
  marginal = p.mean(0)
  # A class nobody shows adds 0 log 0 = 0.
  log_marginal = np.log(np.where(marginal > 0, marginal, 1))
  return float(np.exp(np.sum(p * (log_p - log_marginal), axis=1).mean()))
