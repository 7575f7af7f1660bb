"""Scores of what a run draws, against the data it was trained on."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict
from PIL import Image

from core import arrays
from core.family import Family, State
from core.parallel import Parallel
from data.dataset import Dataset
from eval import features, images, scores
from eval.metrics.memorisation import Memorisation
from pipelines import pictures
from pipelines.drawn import Drawn

Record = dict[str, Any]


class SampleScores:
  """state -> a record of each score of the pictures it draws.

  The reference is `eval.reference_split`, by default the training split; memorisation
  is always measured against the training split, and held-out means
  `data.eval_split`. Their features are computed at the first call.

  Args:
    config: reads `eval`, `data`, and what `Drawn` reads.
    family: what draws.
    run: the devices.
    workdir: pictures and distances go to `samples/`.
    metrics: names among `scores.METRICS`.
    load: split -> its data.

  Raises:
    UserError: a metric can't be had of so many pictures or of this net; unknown net
      or mode; missing weights; a batch that does not fit the devices.
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
    settings, data = config.eval, config.data
    self._metrics, self._folder = tuple(metrics), workdir / "samples"
    net = features.load(settings.features, settings.resize)
    self._extract = features.Extractor(net, run, settings.resize, settings.batch_size)
    split = settings.reference_split or data.train_split
    self._sets = {"reference": images.of_dataset(load(split), split)}
    if "memorisation" in metrics:
      for role, own in (("training", data.train_split), ("held_out", data.eval_split)):
        self._sets[role] = images.of_dataset(load(own), own)
    reference = self._sets["reference"]
    count = settings.num_images or reference.length
    scores.check(
      metrics,
      net,
      count,
      **{role: real.length for role, real in self._sets.items()},
    )
    if "memorisation" in metrics:
      scores.check_apart(self._sets["training"], self._sets["held_out"])
    self._draw = Drawn(config, family, run, workdir, load(split), count)
    self._known: dict[str, features.Features] = {}
    self._reference_sha256 = ""

  def __call__(self, state: State) -> list[Record]:
    """The records, in the order of `metrics`; all that a number depends on is there.

    Raises:
      UserError: pictures are not finite, the disk is full.
    """
    net = self._extract.net
    drawn = images.of_array("samples", self._draw(state))
    for role, real in self._sets.items():
      if role not in self._known:
        sums = role == "reference" and "kid" in self._metrics
        self._known[role] = self._extract.cached(real, sums)
    # All pictures are read for it, so once.
    reference = self._sets["reference"]
    self._reference_sha256 = self._reference_sha256 or reference.sha256()
    generated = self._extract(drawn)
    found, memorised = scores.score(self._metrics, net, generated, **self._known)
    if memorised and jax.process_index() == 0:
      write_memorised(memorised, drawn, self._sets["training"], self._folder)
    provenance = self._draw.provenance(state) | {
      "nfe": self._draw.nfe,
      **net.provenance,
      "resize": self._extract.mode,
      "reference": reference.name,
      "reference_sha256": self._reference_sha256,
      "num_reference": reference.length,
    }
    if memorised:
      provenance["held_out"] = self._sets["held_out"].name
    return [scores.record(score) | provenance for score in found]


def write_memorised(
  found: Memorisation, drawn: images.ImageSet, training: images.ImageSet, folder: Path
) -> None:
  """`neighbours.png`, the nearest samples; `memorisation.npz`, all distances.

  Raises:
    UserError: they can't be written.
  """
  pictures.save(neighbours(found, drawn, training), folder / "neighbours.png")
  arrays.write(
    folder / "memorisation.npz",
    samples=found.distances,
    neighbours=found.neighbours,
    held_out=found.held_out,
  )


def neighbours(
  found: Memorisation, drawn: images.ImageSet, training: images.ImageSet, rows: int = 8
) -> Image.Image:
  """The samples that lie nearest to training pictures, each before its nearest."""
  tiles = []
  for i in found.distances[:, 0].argsort()[:rows].tolist():
    tiles.append(drawn.read(i))
    tiles.extend(training.read(j) for j in found.neighbours[i].tolist())
  return pictures.sheet(tiles, 1 + found.neighbours.shape[1])
