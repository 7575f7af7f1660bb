"""Scores of what a run's autoencoder makes of held-out pictures."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, UInt8
from ml_collections import ConfigDict
from PIL import Image

from core import arrays
from core.errors import UserError
from core.family import Family, Given, State, example_keys
from core.parallel import Parallel
from data.batches import choose
from data.dataset import Dataset
from eval import features, images, paired, scores
from pipelines import inputs, pictures
from text.cond import Cond
from vae import codebook

# rfd is the Fréchet distance between the reconstructions and the pictures; codebook
# the share of codes in use and their perplexity.
METRICS = ("rfd", *paired.METRICS, "codebook")
Record = dict[str, Any]


def usual(family: Family) -> tuple[str, ...]:
  """What can be had of a family's reconstructions."""
  if "tokens" in family.codecs:
    return METRICS
  return METRICS[:-1] if "reconstruct" in family.edits else ()


def reconstructor(
  config: ConfigDict, family: Family
) -> Callable[[State, Array, Array, Cond], tuple[Array, Array]]:
  """(state, pictures, ids, cond) -> the reconstructions, and their tokens if any.

  Through tokens if the family has them, else by its edit, under the pictures' own
  conditions.
  """

  def compute(state: State, x: Array, ids: Array, cond: Cond) -> tuple[Array, Array]:
    if tokens := family.codecs.get("tokens"):
      code = tokens.encode(state, x)
      return tokens.decode(state, code), code
    given = Given(x, jnp.ones((*x.shape[:3], 1)))
    keys = example_keys(jax.random.key(config.seed), ids)
    edited = family.edits["reconstruct"](state, keys, cond, given)
    return edited.images, jnp.zeros((len(x), 0))

  return compute


class ReconstructionScores:
  """state -> a record of each score of the reconstructions of `data.eval_split`.

  The pictures, rounded to 256 levels, are kept in `samples/reconstructed.npz`, and the
  first of them beside what they are of in `samples/reconstructed.png`.

  Args:
    config: reads `eval` and `data`.
    family: with tokens, or an edit called reconstruct.
    run: the devices.
    workdir: of the run.
    metrics: names among METRICS.
    held_out: the pictures; the first `eval.num_images` count.

  Raises:
    UserError: a family without the one or the other; unknown net; missing weights.
  """

  def __init__(
    self,
    config: ConfigDict,
    family: Family,
    run: Parallel,
    workdir: Path,
    metrics: Sequence[str],
    held_out: Dataset,
  ):
    if config.data.codec:
      raise UserError(
        f"metric {metrics[0]!r} is of autoencoders of pictures, and"
        f" data.codec={config.data.codec} gives this run latents; leave it out."
      )
    for metric in metrics:
      if metric not in usual(family):
        raise UserError(
          f"metric {metric!r} is of {'tokens' if usual(family) else 'autoencoders'},"
          f" and {config.family} has none; leave it out."
        )
    self._config, self._metrics, self._run = config, tuple(metrics), run
    self._folder, self._data = workdir / "samples", held_out
    self._count = min(config.eval.num_images or len(held_out), len(held_out))
    tokens = family.codecs.get("tokens")
    self._codes = tokens.spec.vocab_size if tokens else 0
    self._fn = run.run(reconstructor(config, family))
    self._extract = None
    if "rfd" in metrics:
      net = features.load(config.eval.features, config.eval.resize)
      scores.check(["fd"], net, self._count, self._count)
      size = config.eval.batch_size
      self._extract = features.Extractor(net, run, config.eval.resize, size)

  def __call__(self, state: State) -> list[Record]:
    """The records, in the order of `metrics`.

    Raises:
      UserError: a picture is not finite, or the disk is full.
    """
    made, tokens = self._reconstructed(state)
    split = self._config.data.eval_split
    real = images.of_dataset(self._data, split).first(self._count)
    drawn = images.of_array("reconstructions", made)
    if jax.process_index() == 0:
      arrays.write(self._folder / "reconstructed.npz", images=made)
      pictures.save(side_by_side(real, drawn), self._folder / "reconstructed.png")
    found = []
    if self._extract is not None:
      net = self._extract.net
      theirs = self._extract.cached(real)
      (score,), _ = scores.score(["fd"], net, self._extract(drawn), theirs)
      own = {"resize": self._extract.mode, **net.provenance}
      found.append(scores.record(score) | {"metric": f"r{score.metric}"} | own)
    pairs = [name for name in self._metrics if name in paired.METRICS]
    if pairs:
      found += paired.records(pairs, drawn, real)
    if "codebook" in self._metrics:
      found += codebook_records(tokens, self._codes)
    shared = {"step": int(state.step), "split": split, "num_images": self._count}
    return [record | shared for record in found]

  def _reconstructed(
    self, state: State
  ) -> tuple[UInt8[np.ndarray, "n h w c"], Int[np.ndarray, "n ..."]]:
    size, total = self._config.eval.batch_size, len(self._data)
    rows = size // jax.process_count()
    own = rows * jax.process_index()
    made, codes = [], []
    languages, encoder = tuple(self._config.data.languages), self._config.text.encoder
    for first in range(0, self._count, size):
      ids = (first + own + np.arange(rows)) % total
      x = pictures.from_uint8([self._data.image(i) for i in ids.tolist()])
      cond = inputs.conditions(
        self._config,
        [choose(self._data.captions(i), languages, i, 0) for i in ids.tolist()],
        [self._data.label(i) if encoder == "label" else 0 for i in ids.tolist()],
      )
      batch = self._run.put((x, ids.astype(np.uint32), cond))
      out, code = jax.device_get(self._fn(state, *batch))
      if not np.isfinite(out).all():
        raise UserError(
          f"some reconstructions at step {int(state.step)} are not finite; look at the"
          " training loss."
        )
      made.append(pictures.to_uint8(out))
      codes.append(code)
    cut = lambda parts: np.concatenate(parts)[: self._count]  # noqa: E731
    return cut(made), cut(codes).astype(np.int64)


def codebook_records(tokens: Int[np.ndarray, "n h w d"], codes: int) -> list[Record]:
  """The share of codes that come at all, and exp(entropy), means over the depths."""
  depths = np.moveaxis(tokens, -1, 0)
  counts = np.stack([np.bincount(depth.ravel(), minlength=codes) for depth in depths])
  usage, perplexity = (
    float(jnp.mean(measure(jnp.asarray(counts, jnp.float32))))
    for measure in (codebook.usage, codebook.perplexity)
  )
  return [
    {"metric": "codebook-usage", "value": usage, "codes": codes},
    {"metric": "codebook-perplexity", "value": perplexity},
  ]


def side_by_side(
  real: images.ImageSet, made: images.ImageSet, pairs: int = 32
) -> Image.Image:
  """Pictures and their reconstructions in turn, four pairs a row."""
  tiles = []
  for i in range(min(pairs, real.length)):
    tiles += [real.read(i), made.read(i)]
  return pictures.sheet(tiles, 8)
