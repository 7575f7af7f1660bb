"""An update of the critic."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree
from ml_collections import ConfigDict

from core import optim
from core.family import Batch, Metrics, Objective, State, example_keys, keys_at
from core.step import keep_if, updates_done
from gan import augment, losses, penalties, rows
from gan.critic import Critic
from text.cond import Cond

# (state, batch, rng, axis, count) -> (params, opt, extra) of the critic after one more
# update than `count`, and metrics.
Update = Callable[..., tuple[tuple[PyTree, PyTree, PyTree], Metrics]]


def make(
  config: ConfigDict, objective: Objective, critic: Critic
) -> tuple[optax.GradientTransformation, Update]:
  """The critic's optimizer, and its update: `gan.loss` and the penalties of `gan`.

  Before `gan.start` nothing of the critic moves, and its learning rate begins there.
  """
  gan, parts = config.gan, config.gan.critic_steps
  loss = losses.make(gan.loss)
  tx = optim.make(optimizer(config), max(config.train.steps - gan.start, 1) * parts)

  def update(
    state: State, batch: Batch, rng: Array, axis: str | None, count: Array
  ) -> tuple[tuple[PyTree, PyTree, PyTree], Metrics]:
    playing, looking = jax.random.split(rng)
    play = objective.play(
      weights(state, state.params["generator"]), batch, playing, axis
    )
    keys = example_keys(looking, batch["_id"])
    before, extra = state.params["critic"], state.extra["critic"]
    cond, strength = batch["cond"], extra["strength"]
    # A critic that learned alone before it counts would be certain from the start.
    begun = updates_done(state) >= gan.start

    def total(params: PyTree) -> tuple[Float[Array, ""], tuple[Metrics, PyTree]]:
      ready, moved = critic.ready(params, extra)

      def judge(x: Array, branch: int, cond: Cond = cond) -> Float[Array, "b ..."]:
        own = keys_at(keys, branch)
        return critic.judge(ready, x, cond, play, own, strength, axis)

      real, fake = judge(play.reals, 0), judge(play.fakes, 1)
      found = losses.mean(loss.critic(real, fake))
      if gan.mismatch:
        # Reed et al. 2016 (arXiv:1605.05396), algorithm 1: a real picture with the
        # text of another is as wrong as a fake one. One with the same text is not.
        other = jax.tree.map(rows.neighbours, cond)
        wrong = judge(play.reals, 2, other)
        share = gan.mismatch * ~rows.alike(cond, other)
        mismatched = losses.mean(loss.critic(real, wrong))
        found = (1 - share) * found + share * mismatched
      penalty = penalties.of_critic(gan, judge, play, keys, count)
      metrics = {
        "critic_loss": found,
        "critic_accuracy": losses.mean((real > fake).astype(jnp.float32)),
        "critic_real": losses.mean(real),
        "critic_fake": losses.mean(fake),
        "confidence": losses.mean(jnp.sign(loss.sure(real, fake))),
        "penalty": penalty,
      }
      return begun * jnp.sum(found + penalty), (jax.tree.map(jnp.sum, metrics), moved)

    grads, (sums, moved) = jax.grad(total, has_aux=True)(before)
    metrics, grads = rows.mean((sums, grads), len(batch["x"]), axis)
    updates, opt = tx.update(grads, state.opt["critic"], before)
    confidence = metrics.pop("confidence")
    if gan.augment in ("ada", "noise"):
      size = config.data.batch_size // parts
      moved = moved | {
        "strength": augment.adjust(
          strength, confidence, size, gan.augment_target, gan.augment_kimg
        )
      }
    metrics |= {"critic_grad_norm": optax.tree.norm(grads), "strength": strength}
    params = optax.apply_updates(before, updates)
    # Without a gradient weights still decay, augmentation moves, and Adam counts, whose
    # first steps would then be too long by (1 - b1) / sqrt(1 - b2) and more.
    old = before, state.opt["critic"], extra
    return keep_if(begun, (params, opt, moved), old), metrics

  return tx, update


def optimizer(config: ConfigDict) -> ConfigDict:
  """`config.optim` for the critic: its own learning rate, and as many more updates.

  Heusel et al. 2017 (arXiv:1706.08500): two time scales.
  """
  own = ConfigDict(config.optim.to_dict())
  own.learning_rate = config.gan.learning_rate or config.optim.learning_rate
  own.warmup_steps = config.optim.warmup_steps * config.gan.critic_steps
  return own


def weights(state: State, params: PyTree) -> tuple[PyTree, PyTree]:
  """What `Objective.play` takes of a state: params, and what is tracked."""
  return params, {**state.extra.get("tracked", {}), "updates": updates_done(state)}
