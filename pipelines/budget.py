"""A budget of training, as a number of steps that is known before the first one."""

import math
import time
from typing import Any, NamedTuple

import jax
from jaxtyping import PyTree
from ml_collections import ConfigDict

from core import cost, parallel
from core.cost import Cost
from core.errors import UserError, unknown
from core.family import Family
from data import source
from pipelines import build, inputs

WITHIN = 0.02  # of the budget: how far the steps' cost may be from it
UNITS = ("flops", "seconds", "steps")
Json = dict[str, Any]


class Share(NamedTuple):
  """The part of a budget that a run has.

  Attributes:
    unit: one of UNITS.
    amount: in that unit; of no meaning for steps.
  """

  unit: str
  amount: float


def steps(share: Share, price: float, name: str) -> int:
  """The steps whose cost is nearest to a budget, within 2% of it.

  Args:
    share: of flops or seconds.
    price: of a step, in the same unit.
    name: of the run, for the message.

  Raises:
    UserError: a step is too dear for that.
  """
  count = max(1, round(share.amount / price))
  if abs(count * price - share.amount) > WITHIN * share.amount:
    raise UserError(
      f"{name} can't keep its budget within {WITHIN:.0%}: a step costs {price:.3g}"
      f" {share.unit} and it has {share.amount:.3g}; give a budget of"
      f" {price / (2 * WITHIN) / share.amount:.2g} times as much, or smaller batches."
    )
  return count


def plan(config: ConfigDict, share: Share, name: str, codec: Json | None) -> Json:
  """What a run is to do and what a step of it costs; nothing is trained.

  Args:
    config: of the run; its codec, if it has one, is trained.
    share: its part of the budget, without what its codec has cost.
    name: of the run.
    codec: the plan of its codec.

  Returns:
    steps; parameters, those of the codec among them, and by network; flops_per_step,
    and in a budget of seconds seconds_per_step; flops, of all steps; codec, of the same
    names.

  Raises:
    UserError: an unknown unit, the budget can't be kept, or the config is at fault.
  """
  if share.unit not in UNITS:
    raise unknown("budget.unit", share.unit, UNITS)
  family = build.family(config)
  shapes = build.shapes(config, family)
  networks = {k: size(v) for k, v in shapes.params.items()}
  own = sum(networks.values())
  found: Json = {
    "unit": share.unit,
    "amount": share.amount,
    "parameters": own + (codec["parameters"] if codec else 0),
    "networks": networks,
    "flops_per_step": flops_of_step(config, family),
  }
  count = config.train.steps
  if share.unit == "flops":
    count = steps(share, found["flops_per_step"], name)
  elif share.unit == "seconds":
    found["seconds_per_step"] = seconds_of_step(config, family, share.amount)
    count = steps(share, found["seconds_per_step"], name)
  found |= {"steps": count, "flops": count * found["flops_per_step"]}
  if codec:
    found["codec"] = {k: codec[k] for k in ("name", "steps", "parameters", "flops")}
  return found | {"name": name}


def size(shapes: PyTree) -> int:
  """How many numbers a tree of shapes stands for."""
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))


def flops_of_step(config: ConfigDict, family: Family) -> float:
  """Operations of a training step, by the compiler's count: see `core/cost.py`.

  A penalty that is due at every n-th update counts as one n-th of it at each: the
  critic's by `gan.penalty_every`, that of path lengths by `gan.path_every`.
  """
  found = cost_of_step(config, family)
  if "gan" not in config:
    return found.most
  if not config.gan.path_length:
    return found.every(config.gan.penalty_every)
  # What the lengths add, be it due or not.
  other = config.copy_and_resolve_references()
  other.gan.path_length = 0.0
  rest = cost_of_step(other, build.family(other))
  paths = Cost(found.always - rest.always, found.most - rest.most)
  return rest.every(config.gan.penalty_every) + paths.every(config.gan.path_every)


def cost_of_step(config: ConfigDict, family: Family) -> Cost:
  """Operations of a training step, with and without the penalties that may be due."""
  n = config.data.batch_size
  rows = lambda a: jax.ShapeDtypeStruct((n, *a.shape[1:]), a.dtype)  # noqa: E731
  batch = jax.tree.map(rows, build.example_batch(config))
  key = jax.random.key(config.seed)
  state = jax.eval_shape(family.init, key, batch)
  return cost.count(family.step, state, batch, key)


def seconds_of_step(config: ConfigDict, family: Family, amount: float) -> float:
  """Seconds of a training step here, the mean over a twentieth of the budget.

  The batches are those of training. At least eight steps are taken, and 200 at most.
  """
  run = parallel.make(config.parallel)
  dataset = source.load(config.data, config.data.train_split)
  stream = inputs.train_stream(config, dataset)(0)
  try:
    batch, key = next(stream), jax.random.key(config.seed)
    state = run.init(family.init, key, run.put(batch))
    step = run.compile_step(family.step, state, batch)
    for _ in range(2):  # the first ones allocate
      state, metrics = step(state, batch, key)
    jax.block_until_ready(metrics)
    began, taken, spent = time.perf_counter(), 0, 0.0
    while taken < 8 or (spent < amount / 20 and taken < 200):
      state, metrics = step(state, batch, key)
      batch = next(stream)
      jax.block_until_ready(metrics)
      taken, spent = taken + 1, time.perf_counter() - began
    return spent / taken
  finally:
    getattr(stream, "close", lambda: None)()
