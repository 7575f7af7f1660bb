"""The interface of every generator, and the step of those with one loss.

A family is a record of pure functions, as an optax optimizer is: it knows
nothing of devices, files or logs, so one loop trains them all.
"""

import importlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Bool, Float, Int, Key, PyTree, Shaped, UInt32
from ml_collections import ConfigDict

from core import ema, optim
from core.errors import UserError

Batch = Mapping[str, Any]  # {x, cond, _id, _mask}, each with a leading batch axis
Metrics = dict[str, Array]


class State(struct.PyTreeNode):
  """All that training changes; dicts are keyed by the network's name."""

  step: Int[Array, ""]
  params: dict[str, PyTree]
  opt: dict[str, PyTree]
  ema: dict[str, PyTree]
  extra: dict[str, PyTree]


class Samples(NamedTuple):
  """Pictures in [-1, 1], and the same pictures while they form.

  `nfe` is the number of network evaluations of each; a guided one counts once.
  """

  images: Float[Array, "n h w c"]
  frames: Float[Array, "k n h w c"]
  nfe: Int[Array, " n"]


class Given(NamedTuple):
  """Pictures to be edited."""

  images: Float[Array, "n h w c"]
  mask: Float[Array, "n h w 1"]  # 1 where inpainting draws, 0 where it keeps


class Spec(NamedTuple):
  """What a family generates; it does not know if that is an image or a latent."""

  shape: tuple[int, ...]  # of one example, [h, w, c]
  dtype: Any = jnp.float32
  vocab_size: int = 0  # number of token values, 0 for real-valued data


class Family(NamedTuple):
  """A method of generating images.

  init: (rng, batch) -> State
  step: (state, batch, rng, axis=None) -> (State, metrics); `axis` names the
    mapped axis to average over, or None.
  sample: (state, rng, cond, n) -> Samples; `rng` is one key, or n keys.
  evals: name -> ((state, batch, rng) -> [B]), e.g. bits per dimension.
  on_request: names of evals that are not taken unless asked for.
  edits: name -> ((state, rng, cond, given) -> Samples), e.g. inpainting.
  """

  init: Callable[[Array, Batch], State]
  step: Callable[..., tuple[State, Metrics]]
  sample: Callable[[State, Array, Any, int], Samples]
  evals: Mapping[str, Callable[[State, Batch, Array], Float[Array, " b"]]]
  on_request: tuple[str, ...] = ()
  edits: Mapping[str, Callable[[State, Array, Any, Given], Samples]] = {}


def make(config: ConfigDict, spec: Spec, **parts: Any) -> Family:
  """The family named by `config.family`, e.g. 'diffusion.ddpm'.

  `parts` are what else its module's `make` takes, such as a guide.

  Raises:
    UserError: there is no such module, or it has no `make`.
  """
  try:
    module = importlib.import_module(config.family) if config.family else None
  except ModuleNotFoundError as error:
    # Only the family itself may be missing; a missing import inside it is a bug.
    if error.name is None or not f"{config.family}.".startswith(f"{error.name}."):
      raise
    module = None
  if not hasattr(module, "make"):
    raise UserError(
      f"family={config.family!r} is not a family: name a module that has make(config,"
      " spec), such as diffusion.ddpm."
    )
  return module.make(config, spec, **parts)


def example_keys(rng: Key[Array, "*n"], ids: UInt32[Array, " b"]) -> Key[Array, " b"]:
  """One key an example: fold_in(rng, id), or `rng` itself if it is a key each.

  All draws of an example come from its key, so that they do not depend on how
  a batch is cut over devices, hosts or microbatches.
  """
  if rng.ndim == 1:
    return rng
  return jax.vmap(jax.random.fold_in, (None, 0))(rng, ids)


def sample_keys(rng: Key[Array, "*n"], n: int) -> Key[Array, " n"]:
  """`example_keys` for n samples, numbered from 0."""
  return example_keys(rng, jnp.arange(n, dtype=jnp.uint32))


Loss = Callable[[PyTree, Batch, Array], tuple[Float[Array, " b"], Metrics]]


def from_loss(
  config: ConfigDict,
  *,
  init: Callable[[Array, Batch], PyTree],
  loss: Loss,
  sample: Callable[[PyTree, Array, Any, int], Samples],
  evals: Mapping[str, Callable[[PyTree, Batch, Array], Float[Array, " b"]]],
  on_request: tuple[str, ...] = (),
  edits: Mapping[str, Callable[[PyTree, Array, Any, Given], Samples]] = {},
  name: str = "generator",
) -> Family:
  """A family with one network and one optimizer.

  The step averages the loss over the batch's unmasked examples (the masked ones
  must be finite), in
  `config.optim.microbatches` parts, updates by `config.optim`, and moves the
  EMA. A step whose loss, gradient or update is not finite changes nothing but `step`
  and the count of skipped steps.

  Args:
    config: the whole config; reads `optim`, `train.steps`, `data.batch_size`.
    init: (rng, batch) -> the network's parameters.
    loss: (params, batch, rng) -> the loss and metrics of each example, [B].
    sample: as `Family.sample`, but given the EMA parameters.
    evals: as `Family.evals`, but given the EMA parameters.
    on_request: as `Family.on_request`.
    edits: as `Family.edits`, but given the EMA parameters.
    name: the network's key in the state's dicts.
  """
  tx = optim.make(config.optim, config.train.steps)
  schedule = optim.learning_rate(config.optim, config.train.steps)
  averages = ema.make(config.optim, config.data.batch_size)
  parts = config.optim.microbatches

  def init_state(rng: Array, batch: Batch) -> State:
    params = init(rng, batch)
    return State(
      step=jnp.zeros((), jnp.int32),
      params={name: params},
      opt={name: tx.init(params)},
      ema=averages.init({name: params}),
      extra={"skipped": jnp.zeros(2, jnp.int32)},
    )

  def total(params: PyTree, batch: Batch, rng: Array) -> tuple[Array, Metrics]:
    mask = batch["_mask"].astype(jnp.float32)
    losses, metrics = loss(params, batch, rng)
    sums = {k: jnp.sum(mask * v) for k, v in {"loss": losses, **metrics}.items()}
    return sums["loss"], {**sums, "_count": jnp.sum(mask)}

  def gradient(params: PyTree, batch: Batch, rng: Array) -> tuple[Metrics, PyTree]:
    return jax.grad(total, has_aux=True)(params, batch, rng)[::-1]

  def accumulated(params: PyTree, batch: Batch, rng: Array) -> tuple[Metrics, PyTree]:
    if parts == 1:
      return gradient(params, batch, rng)
    # Strided, so that each part takes its rows evenly from every device.
    cut = lambda a: a.reshape(-1, parts, *a.shape[1:]).swapaxes(0, 1)  # noqa: E731
    batches = jax.tree.map(cut, batch)
    shapes = jax.eval_shape(
      gradient, params, jax.tree.map(lambda a: a[0], batches), rng
    )
    zero = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    add = lambda acc, part: (  # noqa: E731
      jax.tree.map(jnp.add, acc, gradient(params, part, rng)),
      None,
    )
    return jax.lax.scan(add, zero, batches)[0]

  def step(
    state: State, batch: Batch, rng: Array, axis: str | None = None
  ) -> tuple[State, Metrics]:
    params = state.params[name]
    sums, grads = accumulated(params, batch, rng)
    if axis is not None:
      sums, grads = jax.lax.psum((sums, grads), axis)
    count = jnp.maximum(sums.pop("_count"), 1)
    metrics, grads = jax.tree.map(lambda a: a / count, (sums, grads))
    norm = optax.tree.norm(grads)
    updates, opt = tx.update(grads, state.opt[name], params)
    good = jnp.isfinite(metrics["loss"]) & jnp.isfinite(norm)
    good &= jnp.isfinite(optax.tree.norm(updates))
    new = optax.apply_updates(params, updates)
    moved = averages.update(state.ema, {name: new}, updates_done(state))
    new, opt, moved = keep_if(
      good, (new, opt, moved), (params, state.opt[name], state.ema)
    )
    skipped = count_skipped(state.extra["skipped"], good)
    metrics |= {
      "grad_norm": norm,
      "learning_rate": schedule(updates_done(state)),
      "skipped": skipped[0],
      "skipped_in_a_row": skipped[1],
    }
    state = State(
      step=state.step + 1,
      params={name: new},
      opt={name: opt},
      ema=moved,
      extra={"skipped": skipped},
    )
    return state, metrics

  return Family(
    init=init_state,
    step=step,
    sample=lambda state, rng, cond, n: sample(state.ema[name], rng, cond, n),
    evals={
      key: lambda state, batch, rng, fn=fn: fn(state.ema[name], batch, rng)
      for key, fn in evals.items()
    },
    on_request=on_request,
    edits={
      key: lambda state, rng, *rest, fn=fn: fn(state.ema[name], rng, *rest)
      for key, fn in edits.items()
    },
  )


def keep_if(good: Bool[Array, ""], new: PyTree, old: PyTree) -> PyTree:
  """`new` if `good`, else `old`, leaf by leaf."""
  return jax.tree.map(lambda n, o: jnp.where(good, n, o), new, old)


def count_skipped(skipped: Int[Array, "2"], good: Bool[Array, ""]) -> Int[Array, "2"]:
  """[skipped in all, skipped in a row] after one more step."""
  bad = 1 - good.astype(jnp.int32)
  return jnp.stack([skipped[0] + bad, (skipped[1] + 1) * bad])


def updates_done(state: State) -> Int[Array, ""]:
  """How often the weights were updated: a step in `extra["skipped"]` does not count."""
  return state.step - state.extra["skipped"][0]


def count_params(params: PyTree[Shaped[Array, "..."]]) -> int:
  """How many numbers a network has."""
  return sum(leaf.size for leaf in jax.tree.leaves(params))
