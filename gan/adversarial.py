"""A critic on top of any family, and the step that trains both.

Goodfellow et al. 2014 (arXiv:1406.2661), algorithm 1: `gan.critic_steps` updates of the
critic, then one of the generator, which also has the loss that its family gives it.
"""

import functools
import math

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree
from ml_collections import ConfigDict

from core import checks, ema, optim
from core.errors import UserError
from core.family import Batch, Family, Metrics, State, Watch, example_keys, keys_at
from core.step import count_skipped, keep_if, updates_done
from gan import critic_step, losses, penalties, rows
from gan.critic import Critic
from gan.critic_step import weights

WATCHED = {
  "diversity": Watch(
    0.2, 10.0, "the generator draws nearly the same picture, or noise, again and again"
  ),
  "critic_accuracy": Watch(
    0.0, 0.995, "the critic is never wrong, so the generator may learn nothing of it"
  ),
}


def adversarial(config: ConfigDict, family: Family, critic: Critic) -> Family:
  """`family`, its generator judged by `critic` in training; all else stays as it is.

  The critic minimises `gan.loss` and the penalties of `config.gan`; the generator its
  own loss + w `gan.weight` times its side of `gan.loss`. w is 1, or with `gan.adaptive`
  |grad of its own loss| / (|grad of the critic's term| + 1e-4), at most 1e4, both by
  the last layer (VQGAN, Esser et al. 2021, arXiv:2012.09841, eq. 7, with the bounds of
  its code). For `gan.start` updates w is 0, and the critic learns nothing.

  A batch is cut into `gan.critic_steps` parts, one an update of the critic; the
  generator is updated by the first. All rows of a batch count.

  Metrics: the losses, critic_accuracy (how often a real picture has a higher logit than
  the fake one beside it), diversity (the mean distance of neighbouring fakes of one
  class over that of such real pictures; of all neighbours where there are no classes,
  or none share one), strength (of augmentation) and those of the family.

  Args:
    config: the whole config; reads `gan`, `optim`, `train.steps`, `data.batch_size`.
    family: with an objective.
    critic: what judges.

  Raises:
    UserError: settings that are unknown or do not go together.
  """
  gan, objective, parts = config.gan, family.objective, config.gan.critic_steps
  loss = losses.make(gan.loss)
  if objective is None:
    raise UserError(f"no critic can be added to {config.family}: it draws by itself.")
  if gan.adaptive and not objective.last:
    raise UserError(
      "gan.adaptive=True needs a layer that makes the picture, which"
      f" {config.family} does not tell: set it to False, and gan.weight."
    )
  checks.refuse(config, "optim", microbatches=1)
  if config.data.batch_size % (2 * parts):
    raise UserError(
      f"data.batch_size={config.data.batch_size} must be a multiple of twice"
      f" gan.critic_steps={parts}: each update of the critic takes a part, in pairs."
    )
  penalties.check(gan)
  if gan.mismatch and config.text.encoder == "none":
    raise UserError(
      f"gan.mismatch={gan.mismatch} needs conditions to mix up: set it to 0, or"
      " text.encoder."
    )
  # With fewer rows the critic's groups are smaller, but so on any number of devices.
  together = math.gcd(critic.together, config.data.batch_size // parts)
  steps = config.train.steps
  tx, schedule = (
    optim.make(config.optim, steps),
    optim.learning_rate(config.optim, steps),
  )
  critic_tx, update_critic = critic_step.make(config, objective, critic)
  averages = ema.make(config.optim, config.data.batch_size)

  def init(rng: Array, batch: Batch) -> State:
    own, other, tracking = jax.random.split(rng, 3)
    params = objective.init(own, batch)
    extra = {"skipped": jnp.zeros(2, jnp.int32)}
    if objective.tracked is not None:
      extra["tracked"] = objective.tracked.init(tracking, params, batch)
    state = State(jnp.zeros((), jnp.int32), {"generator": params}, {}, {}, extra)
    play = objective.play(weights(state, params), batch, rng, None)
    judging, extra["critic"] = critic.init(other, play, batch["cond"])
    return state.replace(
      params={"generator": params, "critic": judging},
      opt={"generator": tx.init(params), "critic": critic_tx.init(judging)},
      ema=averages.init({"generator": params}),
      extra=extra,
    )

  def update_generator(
    state: State, batch: Batch, rng: Array, axis: str | None
  ) -> tuple[PyTree, tuple[Metrics, PyTree]]:
    """The gradient for the generator, and what else the step needs."""
    playing, looking = jax.random.split(rng)
    keys = example_keys(looking, batch["_id"])
    extra = state.extra["critic"]
    ready, _ = critic.ready(state.params["critic"], extra)

    def both(params: PyTree) -> tuple[tuple[Array, Array], tuple[Metrics, PyTree]]:
      play = objective.play(weights(state, params), batch, playing, axis)

      def judge(x: Array, branch: int) -> Float[Array, "b ..."]:
        own = keys_at(keys, branch)
        return critic.judge(ready, x, batch["cond"], play, own, extra["strength"], axis)

      found = loss.generator(judge(play.reals, 0), judge(play.fakes, 1))
      told = losses.mean(found)
      sums = {"generator_loss": told, "loss": play.losses, **play.metrics}
      sums = jax.tree.map(jnp.sum, sums)
      for name, x in {"apart": play.fakes, "apart_real": play.reals}.items():
        sums[name] = jnp.sum(rows.distances(x, batch["cond"].label), 0)
      return (jnp.sum(play.losses), jnp.sum(told)), (sums, play.sums)

    params, size = state.params["generator"], len(batch["x"])
    on = gan.weight * (updates_done(state) >= gan.start)
    if gan.adaptive:
      _, back, (sums, rest) = jax.vjp(both, params, has_aux=True)
      one, none = jnp.ones(()), jnp.zeros(())
      ways = ((one, none), (none, one))
      own, told = (rows.mean(back(way)[0], size, axis) for way in ways)
      norms = [optax.tree.norm(at(grads, objective.last)) for grads in (own, told)]
      on *= jnp.clip(norms[0] / (norms[1] + 1e-4), 0, 1e4)
      grads = jax.tree.map(lambda a, b: a + on * b, own, told)
    else:

      def total(params: PyTree) -> tuple[Array, tuple[Metrics, PyTree]]:
        (own, told), aux = both(params)
        return own + on * told, aux

      grads, (sums, rest) = jax.grad(total, has_aux=True)(params)
      grads = rows.mean(grads, size, axis)
    metrics = rows.mean(sums, size, axis)
    fakes, reals = metrics.pop("apart"), metrics.pop("apart_real")
    ratios = fakes / (reals + 1e-8)
    # Where no pair is of one class, of all pairs.
    metrics["diversity"] = jnp.where(reals[1] > 0, ratios[1], ratios[0])
    metrics["loss"] += on * metrics["generator_loss"]
    if gan.adaptive:
      metrics["generator_weight"] = on
    rest = jax.lax.psum(rest, axis) if axis is not None else rest
    return grads, (metrics, rest)

  def step(
    state: State, batch: Batch, rng: Array, axis: str | None = None
  ) -> tuple[State, Metrics]:
    if len(batch["x"]) % (together * parts):
      raise UserError(
        f"a device has {len(batch['x'])} rows of data.batch_size, which must be a"
        f" multiple of {together} times gan.critic_steps={parts}: so many are judged"
        " together."
      )
    critic_rng, generator_rng, tracking = jax.random.split(rng, 3)
    before, done = state, updates_done(state)

    def rival(state: State, given: tuple[Batch, Array]) -> tuple[State, Metrics]:
      part, i = given
      (params, opt, extra), metrics = update_critic(
        state, part, jax.random.fold_in(critic_rng, i), axis, done * parts + i
      )
      state = state.replace(
        params=state.params | {"critic": params},
        opt=state.opt | {"critic": opt},
        extra=state.extra | {"critic": extra},
      )
      return state, metrics

    cut = lambda a: a.reshape(-1, parts, *a.shape[1:]).swapaxes(0, 1)  # noqa: E731
    batches = jax.tree.map(cut, batch)
    given = (batches, jnp.arange(parts))
    if config.model.scan and parts > 1:
      state, judged = jax.lax.scan(rival, state, given)
    else:  # a CPU takes gradients of strided convolutions slowly inside a loop
      found = []
      for i in range(parts):
        state, metrics = rival(state, jax.tree.map(lambda a, i=i: a[i], given))
        found.append(metrics)
      judged = jax.tree.map(lambda *each: jnp.stack(each), *found)
    first = jax.tree.map(lambda a: a[0], batches)
    grads, (metrics, rest) = update_generator(state, first, generator_rng, axis)
    params = state.params["generator"]
    updates, opt = tx.update(grads, state.opt["generator"], params)
    new = optax.apply_updates(params, updates)
    moved = averages.update(state.ema, {"generator": new}, done)
    extra = dict(state.extra)
    if objective.tracked is not None:
      extra["tracked"] = objective.tracked.update(extra["tracked"], rest, tracking)
    norm = optax.tree.norm(grads)
    judged = jax.tree.map(jnp.mean, judged)
    after = state.replace(
      params=state.params | {"generator": new},
      opt=state.opt | {"generator": opt},
      ema=moved,
      extra=extra,
    )
    sound = (metrics["loss"], judged["critic_loss"], norm, judged["critic_grad_norm"])
    good = jnp.isfinite(jnp.stack(sound)).all()
    good &= jnp.isfinite(optax.tree.norm((after.params, extra)))
    after = keep_if(good, after, before)
    skipped = count_skipped(before.extra["skipped"], good)
    after = after.replace(
      step=before.step + 1, extra=after.extra | {"skipped": skipped}
    )
    metrics |= judged | {
      "grad_norm": norm,
      "learning_rate": schedule(done),
      "skipped": skipped[0],
      "skipped_in_a_row": skipped[1],
    }
    return after, metrics

  return family._replace(init=init, step=step, watched=WATCHED)


def at(tree: PyTree, path: tuple[str, ...]) -> PyTree:
  """The branch of nested dicts at a path."""
  return functools.reduce(lambda branch, name: branch[name], path, tree)
