"""Pictures that a run draws to be scored: sampled once, used by every score."""

import hashlib
import json
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Int, UInt8
from ml_collections import ConfigDict

from core import arrays
from core.errors import UserError
from core.family import Family, State, fingerprint
from core.parallel import Parallel
from data.batches import choose, order
from data.dataset import Dataset
from pipelines import build, pictures, sample

# Fields of `config.sample` that say how pictures are shown, not how they are drawn.
# The length of the average is told by `ema`, of the weights as they are.
SHOWN = ("num_images", "per_prompt", "rerank", "prompts", "frames", "ema_std")


class Drawn:
  """state -> pictures, one for each of some captions or classes; compiled once.

  Picture i is drawn for an example of `dataset`, each in turn in an order that
  `sample.seed` gives, so the conditions are distributed as the data's. The pictures
  stay in `samples/eval.npz`, and are used again as long as the weights, the conditions
  and the settings of sampling are what they were. Beside them are the captions,
  and the seconds that each batch took, the first with its compilation.

  Args:
    config: reads `sample`, `eval`, `data.languages`, `text`, `optim`.
    family: what draws.
    run: the devices.
    workdir: of the run.
    dataset: whose captions or classes are drawn.
    count: how many pictures.

  Attributes:
    captions, places: of each picture, its caption and the example that it is of.
  """

  def __init__(
    self,
    config: ConfigDict,
    family: Family,
    run: Parallel,
    workdir: Path,
    dataset: Dataset,
    count: int,
  ):
    self._config, self._count = config, count
    self._file = workdir / "samples" / "eval.npz"
    self._draw = sample.batch_sampler(
      config, family, run, config.eval.batch_size, film=False
    )
    self._fingerprint, self._codec = run.run(fingerprint), build.codec(config)
    self.nfe = 0.0  # network evaluations a picture, known once they are drawn
    self.captions, self.places, self._labels = [], [], []
    self._dataset = dataset
    places = order(config.sample.seed, 0, len(dataset))
    for i in range(count):
      at = int(places[i % len(dataset)])
      caption = choose(dataset.captions(at), tuple(config.data.languages), i, 0)
      self.captions.append(caption)
      label = dataset.label(at) if config.text.encoder == "label" else 0
      self._labels.append(label)
      self.places.append(at)

  def __call__(self, state: State) -> UInt8[np.ndarray, "n h w c"]:
    """The pictures.

    Raises:
      UserError: a picture is not finite, or the file can't be written.
    """
    provenance = json.dumps(self.provenance(state), sort_keys=True)
    kept = self._kept(provenance)
    # All processes draw, or none: some may not see the file.
    if np.all(multihost_utils.process_allgather(np.asarray(kept is not None))):
      drawn, nfe = kept
      self.nfe = float(np.mean(nfe))
      return drawn
    batches, nfe, seconds, size = [], [], [], self._config.eval.batch_size
    for first in range(0, self._count, size):
      part = slice(first, first + size)
      small = None
      if sample.starts_from_picture(self._config):
        small = pictures.from_uint8([self._dataset.image(i) for i in self.places[part]])
      conditions = self.captions[part], self._labels[part], small
      began = time.perf_counter()
      batch = self._draw(state, first, *conditions)
      seconds.append(time.perf_counter() - began)
      if not np.isfinite(batch.images).all():
        raise UserError(
          f"some of pictures {first} to {first + len(batch.images) - 1} drawn at step"
          f" {int(state.step)} are not finite; look at the training loss, or lower"
          " sample.guidance_scale."
        )
      batches.append(pictures.to_uint8(batch.images))
      nfe.append(batch.nfe)
    drawn, nfe = np.concatenate(batches), np.concatenate(nfe)
    self.nfe = float(np.mean(nfe))
    if jax.process_index() == 0:
      told = {"seconds": np.asarray(seconds), "captions": np.asarray(self.captions)}
      arrays.write(self._file, images=drawn, nfe=nfe, provenance=provenance, **told)
    return drawn

  def provenance(self, state: State) -> dict[str, Any]:
    """All that the pictures depend on, by names that a table shows."""
    config = self._config
    conditions = json.dumps([self.captions, self._labels, self.places])
    weights = (state.ema, state.extra.get("guide"), state.extra.get("tracked"))
    return {
      "step": int(state.step),
      "num_samples": self._count,
      "ema": ema(config.optim, state),
      "ema_fingerprint": np.asarray(self._fingerprint(weights)).tobytes().hex(),
      "conditions_sha256": hashlib.sha256(conditions.encode()).hexdigest(),
      **({"codec": self._codec.key} if self._codec else {}),
      **{k: v for k, v in config.sample.items() if k not in SHOWN},
      **of_stages(config),
    }

  def _kept(
    self, provenance: str
  ) -> tuple[UInt8[np.ndarray, "n h w c"], Int[np.ndarray, " n"]] | None:
    try:
      if str(arrays.read(self._file, "provenance")["provenance"]) != provenance:
        return None
      found = arrays.read(self._file, "images", "nfe")
      return found["images"], found["nfe"]
    except (OSError, KeyError, arrays.Damaged):
      return None


def of_stages(config: ConfigDict) -> dict[str, Any]:
  """How the stages of a system draw, where it is not as the last one does."""
  return {
    f"{name}.{k}": v
    for name, own in config.get("stages", {}).items()
    for k, v in own.sample.items()
    if k not in SHOWN and v != config.sample[k]
  }


def ema(optim: ConfigDict, state: State) -> str:
  """Which average of the weights draws: 'constant 0.9999', 'power 0.15 post hoc'."""
  if "ema_std" in state.extra:
    return f"power {float(state.extra['ema_std']):.6g} post hoc"
  lengths = {"halflife": optim.ema_halflife, "power": optim.ema_std[0]}
  return f"{optim.ema} {lengths.get(optim.ema, optim.ema_decay)}"
