"""Of many samples of a prompt, those that fit it best (Ramesh et al. 2021, DALL-E)."""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float
from ml_collections import ConfigDict

from core.errors import UserError
from core.family import Samples
from core.parallel import Parallel
from eval import images
from eval.metrics import alignment
from pipelines import dual, pictures
from pipelines.embed import Embedder

Scores = Float[np.ndarray, " n"]


def check(config: ConfigDict, edits: bool) -> None:
  """Raises UserError for settings of `sample.rerank` that do not go together."""
  count, kept = config.sample.rerank, config.sample.per_prompt
  if not count:
    return
  if count < kept:
    raise UserError(
      f"sample.rerank={count} pictures of each prompt are fewer than the"
      f" sample.per_prompt={kept} to keep: set it higher."
    )
  if not config.eval.clip:
    raise UserError(
      f"sample.rerank={count} needs a dual encoder to judge by: name it in eval.clip."
    )
  if config.text.encoder == "none" or edits:
    raise UserError(
      "sample.rerank chooses among pictures that are drawn for a prompt, not for"
      " --image or without captions: set it to 0."
    )


def chooser(
  config: ConfigDict, run: Parallel, captions: Sequence[str]
) -> Callable[[Samples], tuple[Samples, Scores]]:
  """Samples of each caption in turn -> the best `sample.per_prompt` of each.

  The best comes first. Also their scores, 100 cos of picture and caption.

  Args:
    config: reads `sample`, `eval.clip`, `eval.batch_size`.
    run: the devices.
    captions: of which as many samples are given each.

  Raises:
    UserError: as `dual.load`.
  """
  judge = dual.load(config.eval.clip, config.parallel)
  embed = Embedder(judge, run, config.eval.batch_size)
  kept = config.sample.per_prompt

  def choose(samples: Samples) -> tuple[Samples, Scores]:
    each = len(samples.images) // len(captions)
    drawn = images.of_array("samples", pictures.to_uint8(samples.images))
    texts = embed.texts(captions).repeat(each, axis=0)
    scores = alignment.score(embed.images(drawn), texts)
    best = best_rows(scores, each, kept)
    chosen = Samples(samples.images[best], samples.frames[:, best], samples.nfe[best])
    return chosen, scores[best]

  return choose


def best_rows(scores: Scores, each: int, kept: int) -> np.ndarray:
  """The rows of the `kept` highest of each group of `each`, the highest first."""
  order = np.argsort(-scores.reshape(-1, each), axis=1, kind="stable")[:, :kept]
  return (order + each * np.arange(len(order))[:, None]).reshape(-1)
