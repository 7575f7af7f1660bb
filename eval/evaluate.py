"""Everything a run can be scored by: its family's own evals, and what it draws."""

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from core.errors import UserError, unknown
from core.family import Batch, Family, State
from core.log import finite, say
from core.parallel import Parallel
from core.workdir import explained, write_atomic
from data.dataset import Dataset
from eval import (
  aligned,
  paired,
  recognised,
  reconstructed,
  retrieval,
  scores,
  vectors,
)
from eval.images import of_dataset
from eval.sampled import SampleScores
from pipelines import inputs
from pipelines.drawn import ema


def usual(
  config: ConfigDict, family: Family, load: Callable[[str], Dataset]
) -> tuple[str, ...]:
  """What is scored unless told: all that the pictures at hand allow; says what not."""
  data = config.data
  train, held_out = load(data.train_split), load(data.eval_split)
  reference = load(config.eval.reference_split or data.train_split)
  drawn = config.eval.num_images or len(reference)
  chosen = list(own(family))
  if vectors.drawn(config):
    return (*chosen, *vectors.METRICS)
  for metric in scores.USUAL if family.sample else ():
    have = min(drawn, len(reference))
    if metric == "memorisation":
      have = min(drawn, len(train), len(held_out))
    if have < scores.LEAST[metric]:
      say(f"{metric} is left out: it needs {scores.LEAST[metric]} pictures, not {have}")
    elif metric == "memorisation" and not apart(config, train, held_out):
      say(f"{metric} is left out: data.eval_split holds training pictures")
    else:
      chosen.append(metric)
  chosen += retrieval.usual(family, config)
  if config.eval.clip and family.sample and config.text.encoder != "none":
    chosen += aligned.METRICS
  for metric in () if data.codec else reconstructed.usual(family):
    side = paired.LEAST.get(metric, 1)
    if data.size < side:
      say(f"{metric} is left out: it needs pictures of {side} pixels, not {data.size}")
    else:
      chosen.append(metric)
  return tuple(chosen)


def own(family: Family) -> tuple[str, ...]:
  """The family's evals that are taken unless told."""
  return tuple(name for name in family.evals if name not in family.on_request)


def in_training(config: ConfigDict, family: Family) -> tuple[str, ...]:
  """What is taken during training unless told; a codec's PSNR, with its pictures."""
  # What codes another codec's vectors has no pictures of its own.
  codes = reconstructed.usual(family) and not config.data.codec
  coded = ("psnr",) if codes else ()
  return (*own(family), *coded, *retrieval.usual(family, config))


def apart(config: ConfigDict, train: Dataset, held_out: Dataset) -> bool:
  """Whether the evaluation split holds pictures that are not trained on."""
  splits = (config.data.train_split, config.data.eval_split)
  if "all" in splits or splits[0] == splits[1]:
    return False
  try:
    scores.check_apart(of_dataset(train, splits[0]), of_dataset(held_out, splits[1]))
  except UserError:
    return False
  return True


class Scorer:
  """state -> its scores by name; compiled once.

  Args:
    config: the whole config; reads `eval` first of all.
    family: whose evals, and what draws.
    run: the devices.
    workdir: of the run; it need not be there yet.
    metrics: names among the family's evals, `scores.METRICS` and those of
      `eval/reconstructed.py`, `eval/retrieval.py`, `eval/aligned.py`,
      `eval/recognised.py` and `eval/vectors.py`.
    load: split -> its data.

  Raises:
    UserError: a name is none of these, or the score can't be had: see `SampleScores`.
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
    others = (*reconstructed.METRICS, *retrieval.METRICS, *aligned.METRICS)
    others += (*vectors.METRICS, *recognised.METRICS)
    known = (*family.evals, *scores.METRICS, *others)
    for name in metrics:
      if name not in known:
        raise unknown("eval.metrics", name, known)
    run.check_batch(config.eval.batch_size, field="eval.batch_size")
    own = [name for name in metrics if name in family.evals]
    drawn = [name for name in metrics if name in scores.METRICS and name not in own]
    coded = [n for n in metrics if n in reconstructed.METRICS and n not in own]
    self._config, self._workdir, self._averages = config, workdir, family.averages
    self._means = Means(config, family, run, own) if own else None
    self._details = family.details
    held_out = self._held_out = load(config.data.eval_split)
    self._parts: list[Callable[[State], list[dict[str, Any]]]] = []
    if drawn:
      self._parts.append(SampleScores(config, family, run, workdir, drawn, load))
    if "clip" in metrics:
      self._parts.append(aligned.AlignmentScores(config, family, run, workdir, load))
    if "recognised" in metrics:
      made = recognised.RecognisedScores
      self._parts.append(made(config, family, run, workdir, load))
    if coded:
      made = reconstructed.ReconstructionScores
      self._parts.append(made(config, family, run, workdir, coded, held_out))
    if "cosine" in metrics:
      self._parts.append(vectors.VectorScores(config, family, run, held_out))
    if "retrieval" in metrics:
      self._parts.append(retrieval.RetrievalScores(config, family, run, held_out))

  def __call__(self, state: State) -> dict[str, Any]:
    """step, every score by its name, and `scores`: a record of each with its origin.

    `split` and `num_images` are those of the family's own evals. The records are
    added to `scores.jsonl` too.
    """
    records, origin = [], {}
    if self._means:
      stream = inputs.eval_stream(self._config, self._held_out)
      means, count = self._means(state, stream)
      origin = {"split": self._config.data.eval_split, "num_images": count}
      shared = origin | {
        "step": int(state.step),
        "seed": self._config.seed,
        "ema": ema(self._config.optim, state),
      }
      records += [
        {"metric": k, "value": v, **self._details.get(k, {}), **shared}
        for k, v in means.items()
      ]
    for part in self._parts:
      records += part(state)
    if not self._averages:
      records = [{k: v for k, v in r.items() if k != "ema"} for r in records]
    if jax.process_index() == 0:
      with explained(self._workdir), (self._workdir / "scores.jsonl").open("a") as file:
        file.writelines(f"{json.dumps(finite(r))}\n" for r in records)
    values = {record["metric"]: record["value"] for record in records}
    return {"step": int(state.step), **origin, **values, "scores": records}

  def log(self, state: State) -> dict[str, float]:
    """The numbers alone, named 'eval/...' for the training log."""
    return {f"eval/{r['metric']}": r["value"] for r in self(state)["scores"]}

  def write(self, state: State, show: bool = True) -> None:
    """Says a table and writes `eval.json`, which it prints unless told not to."""
    found = self(state)
    if jax.process_index() == 0:
      found["scores"] = [finite(record) for record in found["scores"]]
      found = finite(found)
      text = json.dumps(found, indent=2)
      write_atomic(self._workdir / "eval.json", f"{text}\n")
      say(scores.table(found["scores"]))
      if show:
        print(json.dumps(found))


class Means:
  """The mean of each of a family's evals over unmasked examples; compiled once.

  Example i draws from a key of its own, so the result does not depend on
  the batch size or the number of devices.
  """

  def __init__(
    self, config: ConfigDict, family: Family, run: Parallel, names: Sequence[str]
  ):
    self._run = run
    self._rng = jax.random.fold_in(jax.random.key(config.seed), 2)
    self._fns = run.run(
      lambda state, batch, rng: {
        **{name: family.evals[name](state, batch, rng) for name in names},
        "_mask": batch["_mask"],
      }
    )

  def __call__(
    self, state: State, batches: Iterable[Batch]
  ) -> tuple[dict[str, float], int]:
    """(name -> mean, how many examples it was taken over)."""
    rows: list[dict[str, np.ndarray]] = []
    for batch in batches:
      rows.append(jax.device_get(self._fns(state, self._run.put(batch), self._rng)))
    columns = {key: np.concatenate([row[key] for row in rows]) for key in rows[0]}
    mask = columns.pop("_mask")
    means = {key: float(values[mask].mean()) for key, values in columns.items()}
    return means, int(mask.sum())
