"""How near the vectors that a prior draws come to those of the right pictures."""

from typing import Any

import numpy as np
from jaxtyping import Float
from ml_collections import ConfigDict

from core.errors import UserError
from core.family import Family, State
from core.parallel import Parallel
from data.batches import choose
from data.dataset import Dataset
from pipelines import build, codecs, inputs, sample
from pipelines.drawn import ema

METRICS = ("cosine",)


def drawn(config: ConfigDict) -> bool:
  """Whether a run draws vectors of pictures and no pictures: is it a prior?"""
  codec = build.codec(config)
  return codec is not None and not codec.codec.pictures


class VectorScores:
  """state -> records of cos(drawn, true), the mean over held-out pictures.

  A vector is drawn for the caption of each picture, and compared with the picture's
  own; and with that of the picture before it, for what a vector has in common with
  any (`cosine_shuffled`).

  Args:
    config: reads `eval`, `sample`, `data.languages`.
    family: what draws.
    run: the devices.
    held_out: pictures with captions.

  Raises:
    UserError: the run draws no vectors.
  """

  def __init__(
    self, config: ConfigDict, family: Family, run: Parallel, held_out: Dataset
  ):
    if not drawn(config):
      raise UserError(
        "the metric 'cosine' is for priors, which draw vectors of pictures: set"
        " data.codec to a run of configs/text/clip.py."
      )
    self._config, self._pixels = config, held_out
    self._draw = sample.batch_sampler(
      config, family, run, config.eval.batch_size, film=False, vectors=True
    )

  def __call__(self, state: State) -> list[dict[str, Any]]:
    """The two records."""
    config, data = self._config, self._pixels
    languages, size = tuple(config.data.languages), config.eval.batch_size
    true = self._true()
    captions = [choose(data.captions(i), languages, i, 0) for i in range(len(true))]
    found = []
    for first in range(0, len(true), size):
      part = captions[first : first + size]
      labels = [data.label(first + i) for i in range(len(part))]
      found.append(self._draw(state, first, part, labels).images.reshape(len(part), -1))
    vectors = np.concatenate(found)
    origin = {
      "split": config.data.eval_split,
      "num_images": len(true),
      "step": int(state.step),
      "seed": config.sample.seed,
      "guidance_scale": config.sample.guidance_scale,
      "ema": ema(config.optim, state),
    }
    values = {
      "cosine": cosine(vectors, true),
      "cosine_shuffled": cosine(vectors, np.roll(true, 1, axis=0)),
    }
    return [{"metric": k, "value": v, **origin} for k, v in values.items()]

  def _true(self) -> Float[np.ndarray, "n d"]:
    """The vectors themselves, also where the run draws tokens of them."""
    config = self._config
    while (theirs := codecs.config_of(config)).data.codec:
      config = theirs
    data = inputs.encoded(config, self._pixels, self._config.data.eval_split)
    count = min(len(data), self._config.eval.num_images or len(data))
    return np.stack([data[i].image.reshape(-1) for i in range(count)])


def cosine(a: Float[np.ndarray, "n d"], b: Float[np.ndarray, "n d"]) -> float:
  """The mean of a_i . b_i / (|a_i| |b_i|)."""
  norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
  return float(np.mean(np.sum(a * b, axis=1) / np.maximum(norms, 1e-12)))
