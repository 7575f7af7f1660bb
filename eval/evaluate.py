"""A family's own evals (losses, likelihoods) over a split."""

from collections.abc import Iterable, Sequence

import jax
import numpy as np
from ml_collections import ConfigDict

from core.errors import unknown
from core.family import Batch, Family, State
from core.parallel import Parallel
from eval import scores


def metrics(
  names: Sequence[str], family: Family, field: str = "eval.metrics"
) -> tuple[tuple[str, ...], tuple[str, ...]]:
  """(the family's own evals, the scores of samples) among `names`.

  Raises:
    UserError: a name is neither.
  """
  for name in names:
    if name not in (*family.evals, *scores.METRICS):
      raise unknown(field, name, (*family.evals, *scores.METRICS))
  own = tuple(name for name in names if name in family.evals)
  return own, tuple(name for name in names if name not in own)


class Evaluator:
  """The mean of each eval over unmasked examples; compiled once.

  Example i draws from a key of its own, so the result does not depend on
  the batch size or the number of devices.

  Args:
    config: reads `eval` and `seed`.
    family: whose evals.
    run: the devices.
    names: of the evals.

  Raises:
    UserError: the batch does not fit the devices.
  """

  def __init__(
    self, config: ConfigDict, family: Family, run: Parallel, names: Sequence[str]
  ):
    run.check_batch(config.eval.batch_size, field="eval.batch_size")
    self._run = run
    self._rng = jax.random.fold_in(jax.random.key(config.seed), 2)
    self._fns = run.run(
      lambda state, batch, rng: {
        **{name: family.evals[name](state, batch, rng) for name in names},
        "_mask": batch["_mask"],
      }
    )

  def __call__(self, state: State, batches: Iterable[Batch]) -> dict[str, float]:
    """Name -> mean, and `num_images`, how many examples it was taken over."""
    rows: list[dict[str, np.ndarray]] = []
    for batch in batches:
      rows.append(jax.device_get(self._fns(state, self._run.put(batch), self._rng)))
    columns = {key: np.concatenate([row[key] for row in rows]) for key in rows[0]}
    mask = columns.pop("_mask")
    means = {key: float(values[mask].mean()) for key, values in columns.items()}
    return {**means, "num_images": int(mask.sum())}

  def log(self, state: State, batches: Iterable[Batch]) -> dict[str, float]:
    """The same means, named 'eval/...' for the training log."""
    return {f"eval/{k}": v for k, v in self(state, batches).items()}
