"""The training step of a family with one network and one loss."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, PyTree
from ml_collections import ConfigDict

from core import ema, optim
from core.family import (
  Batch,
  Codec,
  Family,
  Given,
  Metrics,
  Objective,
  Samples,
  State,
  Towers,
  Tracked,
)

# (params, batch, rng) -> the loss and the metrics of each example, and see `Tracked`;
# a coupled loss takes `axis` too.
Loss = Callable[[PyTree, Batch, Array], tuple]
Sums = tuple[Metrics, list[PyTree]]  # over unmasked rows


UNTRACKED = Tracked(lambda rng, params, batch: {}, lambda tracked, sums, rng: tracked)


def from_loss(
  config: ConfigDict,
  *,
  init: Callable[[Array, Batch], PyTree],
  loss: Loss,
  sample: Callable[[PyTree, Array, Any, int], Samples] | None,
  evals: Mapping[str, Callable[[PyTree, Batch, Array], Float[Array, " b"]]],
  on_request: tuple[str, ...] = (),
  details: Mapping[str, Mapping[str, float | int]] = {},
  edits: Mapping[str, Callable[[PyTree, Array, Any, Given], Samples]] = {},
  codecs: Mapping[str, Codec] = {},
  tracked: Tracked | None = None,
  objective: Objective | None = None,
  towers: Towers | None = None,
  coupled: bool = False,
  project: Callable[[PyTree], PyTree] = lambda params: params,
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
    details: as `Family.details`.
    edits: as `Family.edits`, but given the EMA parameters.
    codecs: as `Family.codecs`, but given the EMA parameters.
    tracked: what else training changes. With it all functions above but `init` take
      (params, tracked) in place of params, where tracked["updates"] counts the updates
      done, and the loss has a third result: sums over its unmasked rows.
    objective: as `Family.objective`.
    towers: as `Family.towers`, but given the EMA parameters.
    coupled: the loss of an example depends on the others' rows, so it also takes
      `axis`, over which it must gather those of the other devices.
    project: brings the parameters back to where they may be, after an update.
    name: the network's key in the state's dicts.
  """
  tx = optim.make(config.optim, config.train.steps)
  schedule = optim.learning_rate(config.optim, config.train.steps)
  averages = ema.make(config.optim, config.data.batch_size)
  parts = config.optim.microbatches

  def weights(state: State, params: PyTree) -> PyTree:
    if tracked is None:
      return params
    return params, {**state.extra["tracked"], "updates": updates_done(state)}

  def init_state(rng: Array, batch: Batch) -> State:
    params = init(rng, batch)
    extra = {"skipped": jnp.zeros(2, jnp.int32)}
    if tracked is not None:
      extra["tracked"] = tracked.init(jax.random.fold_in(rng, 1), params, batch)
    return State(
      step=jnp.zeros((), jnp.int32),
      params={name: params},
      opt={name: tx.init(params)},
      ema=averages.init({name: params}),
      extra=extra,
    )

  def total(
    params: PyTree, state: State, batch: Batch, rng: Array, axis: str | None
  ) -> tuple[Float[Array, ""], Sums]:
    mask = batch["_mask"].astype(jnp.float32)
    others = (axis,) if coupled else ()
    losses, metrics, *rest = loss(weights(state, params), batch, rng, *others)
    sums = {k: jnp.sum(mask * v) for k, v in {"loss": losses, **metrics}.items()}
    return sums["loss"], ({**sums, "_count": jnp.sum(mask)}, rest)

  def accumulated(
    state: State, batch: Batch, rng: Array, axis: str | None
  ) -> tuple[Sums, PyTree]:
    params = state.params[name]

    def gradient(batch: Batch) -> tuple[Sums, PyTree]:
      return jax.grad(total, has_aux=True)(params, state, batch, rng, axis)[::-1]

    return in_parts(gradient, batch, parts)

  def step(
    state: State, batch: Batch, rng: Array, axis: str | None = None
  ) -> tuple[State, Metrics]:
    params = state.params[name]
    (sums, rest), grads = accumulated(state, batch, rng, axis)
    if axis is not None:
      sums, rest, grads = jax.lax.psum((sums, rest, grads), axis)
    count = jnp.maximum(sums.pop("_count"), 1)
    metrics, grads = jax.tree.map(lambda a: a / count, (sums, grads))
    norm = optax.tree.norm(grads)
    updates, opt = tx.update(grads, state.opt[name], params)
    good = jnp.isfinite(metrics["loss"]) & jnp.isfinite(norm)
    good &= jnp.isfinite(optax.tree.norm((updates, rest)))
    new = project(optax.apply_updates(params, updates))
    moved = averages.update(state.ema, {name: new}, updates_done(state))
    extra = dict(state.extra)
    if tracked is not None:
      # A branch of its own: the examples' keys are fold_in(rng, id).
      own = jax.random.fold_in(rng, jnp.uint32(2**32 - 1))
      extra["tracked"] = tracked.update(extra["tracked"], *rest, own)
      good &= jnp.isfinite(optax.tree.norm(extra["tracked"]))
    new, opt, moved, extra = keep_if(
      good, (new, opt, moved, extra), (params, state.opt[name], state.ema, state.extra)
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
      extra=extra | {"skipped": skipped},
    )
    return state, metrics

  def drawing(state: State) -> PyTree:
    return weights(state, state.ema[name])

  return Family(
    init=init_state,
    step=step,
    sample=sample
    and (lambda state, rng, cond, n: sample(drawing(state), rng, cond, n)),
    evals={
      key: lambda state, batch, rng, fn=fn: fn(drawing(state), batch, rng)
      for key, fn in evals.items()
    },
    on_request=on_request,
    details=details,
    edits={
      key: lambda state, rng, *rest, fn=fn: fn(drawing(state), rng, *rest)
      for key, fn in edits.items()
    },
    codecs={
      key: Codec(
        codec.spec,
        lambda state, images, fn=codec.encode: fn(drawing(state), images),
        lambda state, latents, fn=codec.decode: fn(drawing(state), latents),
        codec.pictures,
        codec.texts and (lambda state, cond, fn=codec.texts: fn(drawing(state), cond)),
      )
      for key, codec in codecs.items()
    },
    objective=objective,
    towers=towers
    and Towers(
      lambda state, x: towers.images(drawing(state), x),
      lambda state, cond: towers.texts(drawing(state), cond),
    ),
  )


def in_parts(fn: Callable[[Batch], PyTree], batch: Batch, parts: int) -> PyTree:
  """The sum of fn(part) over so many parts of a batch, one after the other."""
  if parts == 1:
    return fn(batch)
  # Strided, so that each part takes its rows evenly from every device.
  cut = lambda a: a.reshape(-1, parts, *a.shape[1:]).swapaxes(0, 1)  # noqa: E731
  batches = jax.tree.map(cut, batch)
  shapes = jax.eval_shape(fn, jax.tree.map(lambda a: a[0], batches))
  zero = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
  add = lambda acc, part: (jax.tree.map(jnp.add, acc, fn(part)), None)  # noqa: E731
  return jax.lax.scan(add, zero, batches)[0]


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
