"""Is what a run draws nearest to the picture whose caption it was drawn for?"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int, UInt8
from ml_collections import ConfigDict

from core.errors import UserError
from core.family import Family, State
from core.parallel import Parallel
from data.dataset import Dataset
from eval import images
from eval.aligned import by_prompt
from pipelines.drawn import Drawn

METRICS = ("recognised",)
Pixels = UInt8[np.ndarray, "_ d"]


class RecognisedScores:
  """state -> the share of samples whose nearest reference picture has their caption.

  Nearest by Euclidean distance of pixels, among all pictures of `eval.reference_split`.
  No network judges, so captions in all languages are judged alike; it is for data of
  few and simple pictures, which a generator can draw as they are. `chance` is
  that of a picture drawn for another caption of the same data, at random.

  Args:
    config: reads `eval`, `data`, and what `Drawn` reads.
    family: what draws.
    run: the devices.
    workdir: of the run.
    load: split -> its data.

  Raises:
    UserError: a generator without captions or classes.
  """

  def __init__(
    self,
    config: ConfigDict,
    family: Family,
    run: Parallel,
    workdir: Path,
    load: Callable[[str], Dataset],
  ):
    if config.text.encoder == "none":
      raise UserError(
        "the metric 'recognised' asks whether a picture is what was asked for, and"
        f" {config.family} was trained without captions: leave it out."
      )
    settings = config.eval
    split = settings.reference_split or config.data.train_split
    self._data = load(split)
    self._real = images.of_dataset(self._data, split)
    count = settings.num_images or self._real.length
    self._draw = Drawn(config, family, run, workdir, self._data, count)
    self._languages = tuple(config.data.languages)

  def __call__(self, state: State) -> list[dict[str, Any]]:
    """The record; `by_language` is by the language of the caption drawn for.

    Raises:
      UserError: pictures are not finite, or the disk is full.
    """
    drawn = images.of_array("samples", self._draw(state))
    real, found = (
      np.stack([own.read(i).reshape(-1) for i in range(own.length)])
      for own in (self._real, drawn)
    )
    prompts, data = self._draw.captions, self._data
    own = [
      {c for code in self._languages for c in data.captions(i).get(code, ())}
      for i in range(len(data))
    ]
    fits = np.array([[prompt in texts for texts in own] for prompt in prompts])
    right = fits[np.arange(len(prompts)), nearest(found, real)]
    spoken = {
      code: [(data.captions(i).get(code) or ("",))[0] for i in self._draw.places]
      for code in self._languages
    }
    record = {
      "metric": "recognised",
      "value": float(right.mean()),
      "error": float(right.std() / len(right) ** 0.5),
      "by_language": by_prompt(right, prompts, spoken),
      "chance": chance(fits),
      "nfe": self._draw.nfe,
      "reference": self._real.name,
      "num_reference": self._real.length,
    }
    return [record | self._draw.provenance(state)]


def nearest(queries: Pixels, keys: Pixels) -> Int[np.ndarray, " _"]:
  """The key at the least Euclidean distance of each query."""
  q, k = queries.astype(np.float64), keys.astype(np.float64)
  return ((k**2).sum(1) - 2 * q @ k.T).argmin(1)


def chance(fits: Bool[np.ndarray, "n m"]) -> float:
  """The share right if samples were dealt out to the prompts at random.

  `fits` says of each prompt which reference pictures have it as a caption; a sample is
  taken to be nearest to one that fits its own.
  """
  share = fits / np.maximum(fits.sum(1, keepdims=True), 1)
  return float((fits @ share.mean(0)).mean())
