"""How well what a run draws fits its captions, as a trained dual encoder sees it."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from core.errors import UserError
from core.family import Family, State
from core.parallel import Parallel
from data.dataset import Dataset
from eval import images, retrieval
from eval.metrics import alignment
from pipelines import dual
from pipelines.drawn import Drawn
from pipelines.embed import Embedder

METRICS = ("clip",)
Record = dict[str, Any]


def check(config: ConfigDict) -> None:
  """Raises UserError without `eval.clip`, or for a generator without captions."""
  if not config.eval.clip:
    raise UserError(
      "the metric 'clip' needs a dual encoder: name in eval.clip the workdir of a"
      " trained configs/text/clip.py, or a directory of CLIP or SigLIP from Hugging"
      " Face."
    )
  if config.text.encoder == "none":
    raise UserError(
      f"{config.family} was trained without captions (text.encoder='none'), so none"
      " can fit: leave the metric 'clip' out."
    )


class AlignmentScores:
  """state -> records of how pictures it draws fit the captions they were drawn for.

  The score of a pair is 100 cos, see `alignment.score`. Its name tells whose weights it
  is by; with those that were trained here comes how well they find held-out pictures,
  since a dual encoder that finds none says nothing of others.

  Args:
    config: reads `eval`, `data`, and what `Drawn` reads.
    family: what draws.
    run: the devices.
    workdir: of the run.
    load: split -> its data.

  Raises:
    UserError: as `check`, `dual.load` and `retrieval.captions_of`.
  """

  def __init__(
    self,
    config: ConfigDict,
    family: Family,
    run: Parallel,
    workdir: Path,
    load: Callable[[str], Dataset],
  ):
    check(config)
    self._dual = dual.load(config.eval.clip, config.parallel)
    self._embed = Embedder(self._dual, run, config.eval.batch_size)
    data, settings = config.data, config.eval
    split = settings.reference_split or data.train_split
    reference, self._split = load(split), data.eval_split
    count = settings.num_images or len(reference)
    self._draw = Drawn(config, family, run, workdir, reference, count)
    self._reference = f"{reference.name}:{split}"
    self._captions = retrieval.captions_of(
      reference, data.languages, self._draw.places, "clip"
    )
    held_out = load(data.eval_split)
    self._held_out = images.of_dataset(held_out, data.eval_split).first(
      settings.num_images
    )
    self._held_out_captions = retrieval.captions_of(
      held_out, data.languages, range(self._held_out.length), "clip"
    )
    self._seen = seen_in_training(self._dual.data, data)
    self._real: dict[str, retrieval.Found] = {}

  def __call__(self, state: State) -> list[Record]:
    """The score with own captions, with those of others, and of held-out pictures.

    `by_language` has the score with the captions in each language, of all pictures;
    `by_prompt` that with the caption drawn for, of the pictures of each language.

    Raises:
      UserError: pictures are not finite, or the disk is full.
    """
    embed = self._embed
    if not self._real:
      real = embed.images(self._held_out)
      self._real = retrieval.by_language(real, self._held_out_captions, embed.texts)
    drawn = embed.images(images.of_array("samples", self._draw(state)))
    prompts = self._draw.captions
    texts = embed.texts(prompts)
    own = alignment.score(drawn, texts)
    error = float(own.std() / (len(own) - 1) ** 0.5) if len(own) > 1 else None
    each = retrieval.by_language(drawn, self._captions, embed.texts)
    name = self._dual.name
    held_out = {
      "retrieval": retrieval.summary(self._real),
      "retrieval_split": self._split,
      **({"warning": self._seen} if self._seen else {}),
    }
    shared = self._dual.origin | self._draw.provenance(state)
    shared |= {"nfe": self._draw.nfe, "reference": self._reference}
    records = [
      {
        "metric": name,
        "value": float(own.mean()),
        **({} if error is None else {"error": error}),
        "by_language": {code: found.true for code, found in each.items()},
        "by_prompt": by_prompt(own, prompts, self._captions),
      },
      {
        "metric": f"{name}, captions of others",
        "value": alignment.mismatched(drawn, texts, prompts),
        "by_language": {code: found.shuffled for code, found in each.items()},
      },
      {
        "metric": f"{name}, held-out pictures",
        "value": float(np.mean([found.true for found in self._real.values()])),
        "by_language": {code: found.true for code, found in self._real.items()},
        "shuffled": {code: found.shuffled for code, found in self._real.items()},
      },
    ]
    return [record | held_out | shared for record in records]


def by_prompt(
  scores: np.ndarray, prompts: Sequence[str], captions: dict[str, list[str]]
) -> dict[str, float]:
  """The mean of the pictures whose prompt is their caption in each language."""
  found = {}
  for code, own in captions.items():
    rows = [i for i, caption in enumerate(own) if caption == prompts[i]]
    if rows:
      found[code] = float(scores[rows].mean())
  return found


def seen_in_training(theirs: ConfigDict | None, ours: ConfigDict) -> str:
  """What to beware of in retrieval on `data.eval_split`; '' if it was held out."""
  if theirs is None:
    return ""
  same = all(theirs[field] == ours[field] for field in ("name", "path", "match"))
  if not same:
    return "the dual encoder was trained on other data"
  if theirs.train_split in ("all", ours.eval_split):
    return "the dual encoder was trained on these pictures"
  return ""
