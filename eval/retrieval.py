"""How well a dual encoder finds held-out captions and pictures, by language."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from core.errors import UserError
from core.family import Family, State
from core.parallel import Parallel
from data.batches import choose
from data.dataset import Dataset
from eval.metrics import alignment
from pipelines import inputs
from pipelines.embed import embedded

METRICS = ("retrieval",)
AT = (1, 10)
Vectors = Float[np.ndarray, "n d"]
Record = dict[str, Any]


class Found(NamedTuple):
  """Of pictures and their captions in one language.

  Attributes:
    image_to_text, text_to_image: the share whose partner is among the first k.
    true: the mean score of pictures with their own captions; see `alignment.score`.
    shuffled: with those of others; see `alignment.mismatched`.
    pairs: how many were told apart: of equal captions the first counts, since all are
      right for it.
  """

  image_to_text: dict[int, float]
  text_to_image: dict[int, float]
  true: float
  shuffled: float
  pairs: int


def by_language(
  images: Vectors,
  captions: Mapping[str, Sequence[str]],
  embed: Callable[[Sequence[str]], Vectors],
) -> dict[str, Found]:
  """Retrieval and scores of pictures with their captions in each language.

  Args:
    images: vectors of n pictures.
    captions: language -> n captions, '' where there is none.
    embed: captions -> their vectors.
  """
  found = {}
  for language, own in captions.items():
    first = {}
    for i, caption in enumerate(own):
      first.setdefault(caption.strip().lower(), i)
    first.pop("", None)
    rows = [i for i, caption in enumerate(own) if caption.strip()]
    if not rows:
      continue
    texts = dict(zip(rows, embed([own[i] for i in rows]), strict=True))
    at = list(first.values())
    ranks = alignment.retrieval(images[at], np.stack([texts[i] for i in at]), AT)
    stacked = np.stack([texts[i] for i in rows])
    true = alignment.score(images[rows], stacked)
    keys = [own[i].strip().lower() for i in rows]
    shuffled = alignment.mismatched(images[rows], stacked, keys)
    found[language] = Found(*ranks, float(true.mean()), shuffled, len(at))
  return found


def captions_of(
  dataset: Dataset, languages: Sequence[str], rows: Sequence[int], metric: str
) -> dict[str, list[str]]:
  """language -> the first caption in it of each of these examples; '' for none.

  Raises:
    UserError: there is none at all, for the metric of this name.
  """
  found = {
    code: [choose(dataset.captions(i), (code,), 0, 0) for i in rows]
    for code in languages
  }
  if not any(text for own in found.values() for text in own):
    raise UserError(
      f"{dataset.name} has no captions in data.languages={tuple(languages)}: leave the"
      f" metric {metric!r} out."
    )
  return found


def summary(found: Mapping[str, Found]) -> Record:
  """Retrieval as other records keep it: R@k each way, by language."""
  return {
    code: {
      **{f"image_to_text_R@{k}": v for k, v in own.image_to_text.items()},
      **{f"text_to_image_R@{k}": v for k, v in own.text_to_image.items()},
      "pairs": own.pairs,
    }
    for code, own in found.items()
  }


def records(found: Mapping[str, Found]) -> list[Record]:
  """The mean of each number over languages, and the number of each.

  `chance` is what vectors that say nothing would get.
  """
  columns: dict[str, dict[str, float]] = {}
  chance: dict[str, float] = {}
  for way in ("text_to_image", "image_to_text"):
    for k in AT:
      name = f"{way.replace('_', '-')}-R@{k}"
      columns[name] = {code: getattr(own, way)[k] for code, own in found.items()}
      shares = [min(1.0, k / own.pairs) for own in found.values()]
      chance[name] = float(np.mean(shares))
  columns["alignment"] = {code: own.true for code, own in found.items()}
  columns["alignment-shuffled"] = {code: own.shuffled for code, own in found.items()}
  return [
    {
      "metric": name,
      "value": float(np.mean(list(own.values()))),
      "by_language": own,
      **({"chance": chance[name]} if name in chance else {}),
    }
    for name, own in columns.items()
  ]


class RetrievalScores:
  """state -> a record of each number of a family's towers on `data.eval_split`.

  Args:
    config: reads `eval`, `data`, `text`.
    family: with towers.
    run: the devices.
    held_out: the pictures with their captions; the first `eval.num_images` count.

  Raises:
    UserError: a family without towers, or one of classes; data without captions.
  """

  def __init__(
    self, config: ConfigDict, family: Family, run: Parallel, held_out: Dataset
  ):
    if not usual(family, config):
      raise UserError(
        "the metric 'retrieval' is of dual encoders of captions, such as"
        f" configs/text/clip.py, not of {config.family} with text.encoder="
        f"{config.text.encoder!r}: leave it out."
      )
    self._config, self._run, self._data = config, run, held_out
    self._count = min(config.eval.num_images or len(held_out), len(held_out))
    self._images = run.run(family.towers.images)
    self._texts = run.run(family.towers.texts)
    self._captions = captions_of(
      held_out, config.data.languages, range(self._count), "retrieval"
    )

  def __call__(self, state: State) -> list[Record]:
    """The records."""
    config, size = self._config, self._config.eval.batch_size
    split = config.data.eval_split
    seen = inputs.encoded(config, self._data, split)

    def read(rows: Sequence[int]) -> Array | np.ndarray:
      x = np.stack([seen[i].image for i in rows])
      return x if x.dtype != np.uint8 else x * np.float32(2 / 255) - 1

    def embed(captions: Sequence[str]) -> Vectors:
      cond = lambda rows: inputs.conditions(  # noqa: E731
        config, [captions[i] for i in rows], [0] * len(rows)
      )
      fn = functools.partial(self._texts, state)
      return embedded(fn, self._run, cond, len(captions), size)

    images = embedded(
      functools.partial(self._images, state), self._run, read, self._count, size
    )
    found = by_language(images, self._captions, embed)
    shared = {"step": int(state.step), "split": split, "num_images": self._count}
    return [record | shared for record in records(found)]


def usual(family: Family, config: ConfigDict) -> tuple[str, ...]:
  """What can be had of a family: retrieval of one with towers and captions."""
  return METRICS if family.towers and config.text.encoder != "label" else ()
