"""Scores of what a run draws: sampled once, scored many times."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import UInt8
from ml_collections import ConfigDict
from PIL import Image

from core import arrays
from core.family import Family, State
from core.parallel import Parallel
from data.batches import choose, order
from data.dataset import Dataset
from eval import features, images, scores
from eval.metrics.neighbours import nearest
from pipelines import pictures, sample

Record = dict[str, Any]


class SampleScores:
  """state -> a record of each score of the pictures it draws; compiled once.

  Picture i is drawn for the caption or class of one example of the reference split,
  each example in turn in an order of `config.sample.seed`, so that the conditions are
  distributed as the reference's.

  Args:
    config: reads `eval`, `sample`, `data`, `optim`.
    family: what draws.
    run: the devices.
    workdir: the pictures are kept in `samples/eval.npz`, and used again as long as
      nothing changed that they depend on.
    metrics: names among `scores.METRICS`.
    load: split -> its data.

  Raises:
    UserError: unknown metric, net or mode, missing weights, no pictures to draw, a
      batch that does not fit the devices.
  """

  def __init__(
    self,
    config: ConfigDict,
    family: Family,
    run: Parallel,
    workdir: Path,
    metrics: Sequence[str],
    load: Callable[[str], Dataset],
  ):
    settings = config.eval
    run.check_batch(settings.batch_size, field="eval.batch_size")
    self._config, self._run, self._metrics = config, run, tuple(metrics)
    net = features.load(settings.features, settings.resize)
    self._extract = features.Extractor(net, run, settings.resize, settings.batch_size)
    self._split = settings.reference_split or config.data.train_split
    self._load = load
    self._workdir = workdir
    self._draw = sample.batch_sampler(config, family, run, settings.batch_size)

  def __call__(self, state: State) -> list[Record]:
    """The records, in the order of `metrics`; all that a number depends on is there.

    Raises:
      UserError: too few pictures for a metric, the disk is full.
    """
    config, net = self._config, self._extract.net
    drawn = images.of_array("samples", self.draw(state))
    reference = images.of_dataset(self._load(self._split), self._split)
    known = [self._extract.cached(reference)]
    if "memorisation" in self._metrics:
      split = config.data.eval_split
      known.append(self._extract.cached(images.of_dataset(self._load(split), split)))
    generated = self._extract(drawn)
    found = scores.score(self._metrics, net, generated, *known)
    if "memorisation" in self._metrics and jax.process_index() == 0:
      picture = neighbours(drawn, generated, reference, known[0])
      pictures.save(picture, self._workdir / "samples" / "neighbours.png")
    provenance = self._provenance(state) | {
      "features": net.name,
      "weights_sha256": net.sha256,
      "resize": config.eval.resize,
      "num_reference": reference.length,
    }
    return [scores.record(score) | provenance for score in found]

  def log(self, state: State) -> dict[str, float]:
    """The numbers alone, named 'eval/...' for the training log."""
    return {f"eval/{r['metric']}": r["value"] for r in self(state)}

  def draw(self, state: State) -> UInt8[np.ndarray, "n h w c"]:
    """The pictures, from `samples/eval.npz` if it holds just these."""
    provenance = json.dumps(self._provenance(state), sort_keys=True)
    file = self._workdir / "samples" / "eval.npz"
    kept = _read(file, provenance)
    # All processes draw, or none: some may not see the file.
    if np.all(multihost_utils.process_allgather(np.asarray(kept is not None))):
      return kept
    captions, labels = self._conditions()
    batches, size = [], self._config.eval.batch_size
    for first in range(0, len(captions), size):
      part = slice(first, first + size)
      samples = self._draw(state, first, captions[part], labels[part])
      batches.append(pictures.to_uint8(samples.images))
    drawn = np.concatenate(batches)
    if jax.process_index() == 0:
      arrays.write(file, images=drawn, provenance=provenance)
    return drawn

  def _conditions(self) -> tuple[list[str], list[int]]:
    data, config = self._load(self._split), self._config
    indices = order(config.sample.seed, 0, len(data))
    captions, labels = [], []
    for i in range(config.eval.num_samples):
      at = int(indices[i % len(data)])
      captions.append(choose(data.captions(at), config.data.languages, i, 0))
      labels.append(data.label(at) if config.text.encoder == "label" else 0)
    return captions, labels

  def _provenance(self, state: State) -> Record:
    config = self._config
    return {
      "step": int(state.step),
      "num_samples": config.eval.num_samples,
      "reference": f"{config.data.name}:{self._split}",
      "seed": config.sample.seed,
      "ema": ema(config.optim),
      "sampler": config.sample.sampler,
      "steps": config.sample.steps,
      "guidance_scale": config.sample.guidance_scale,
      "clip": config.sample.clip,
    }


def ema(optim: ConfigDict) -> str:
  """Which average of the weights draws: 'constant 0.9999'."""
  length = optim.ema_halflife if optim.ema == "halflife" else optim.ema_decay
  return f"{optim.ema} {length}"


def neighbours(
  drawn: images.ImageSet,
  generated: features.Features,
  reference: images.ImageSet,
  known: features.Features,
  rows: int = 8,
) -> Image.Image:
  """The drawn pictures that lie nearest to real ones, each before its three nearest."""
  k = min(3, len(known.values))
  indices, distances = nearest(generated.values, known.values, k)
  tiles = []
  for i in np.argsort(distances[:, 0])[:rows].tolist():
    tiles.append(drawn.read(i))
    tiles.extend(reference.read(j) for j in indices[i].tolist())
  return pictures.sheet(tiles, 1 + k)


def _read(file: Path, provenance: str) -> UInt8[np.ndarray, "n h w c"] | None:
  try:
    held = arrays.read(file)
    return held["images"] if str(held["provenance"]) == provenance else None
  except (OSError, KeyError, arrays.Damaged):
    return None
