"""A family's own evals (losses, likelihoods) over a split."""

from collections.abc import Iterable

import jax
import numpy as np
from ml_collections import ConfigDict

from core.errors import UserError, unknown
from core.family import Batch, Family, State
from core.parallel import Parallel


class Evaluator:
  """The mean of each eval over unmasked examples; compiled once.

  Example i draws from a key of its own, so the result does not depend on
  the batch size or the number of devices.

  Raises:
    UserError: `config.eval.metrics` names an eval the family does not have, or the
      batch does not fit the devices.
  """

  def __init__(self, config: ConfigDict, family: Family, run: Parallel):
    names = tuple(config.eval.metrics) or tuple(family.evals)
    for name in names:
      if name not in family.evals:
        raise unknown("eval.metrics", name, family.evals)
    run.check_batch(config.eval.batch_size, field="eval.batch_size")
    if config.eval.num_images < 0:
      raise UserError("eval.num_images must be 0 (all) or more.")
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
