"""Optimizers and learning-rate schedules, all from `config.optim`."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree
from ml_collections import ConfigDict

from core.errors import UserError, unknown

# Parameters with weight decay, by name: of linear maps, convolutions and tables.
DECAYS = ("kernel", "embedding", "positions", "targets")


def learning_rate(optim: ConfigDict, steps: int) -> optax.Schedule:
  """Linear warm-up over `warmup_steps`, then `schedule` until `steps`.

  constant; cosine: lr (1 + cos(pi p)) / 2; linear: lr (1 - p), both with
  p in [0, 1] the progress after warm-up; rsqrt: lr sqrt(warmup / step)
  (Vaswani et al. 2017, section 5.3).

  Raises:
    UserError: unknown schedule, or rsqrt without warm-up.
  """
  peak, warmup = optim.learning_rate, optim.warmup_steps
  rest = max(steps - warmup, 1)
  match optim.schedule:
    case "constant":
      after = optax.constant_schedule(peak)
    case "cosine":
      after = optax.cosine_decay_schedule(peak, rest)
    case "linear":
      after = optax.linear_schedule(peak, 0.0, rest)
    case "rsqrt":
      if warmup < 1:
        raise UserError("optim.schedule='rsqrt' needs optim.warmup_steps of 1 or more.")
      # Before the warm-up's end its value is not used, but must not divide by zero.
      late = lambda step: jnp.maximum(step, 0) + warmup  # noqa: E731
      after = lambda step: peak * jnp.sqrt(warmup / late(step))  # noqa: E731
    case other:
      known = ("constant", "cosine", "linear", "rsqrt")
      raise unknown("optim.schedule", other, known)
  if not warmup:
    return after
  # The first update already moves: it uses 1 / warmup of the peak, not 0.
  ramp = optax.linear_schedule(peak / warmup, peak, warmup)
  return optax.join_schedules([ramp, after], [warmup])


def make(optim: ConfigDict, steps: int) -> optax.GradientTransformation:
  """Clip by global norm (if `grad_clip` > 0), then AdamW (Adam at weight_decay 0).

  Kingma & Ba 2015, algorithm 1; Loshchilov & Hutter 2019, algorithm 2, whose
  lambda is `learning_rate * weight_decay`. What `DECAYS` does not name, such as biases
  and norms' scales, does not decay, be it of one layer or stacked over many.
  """
  parts = []
  if optim.grad_clip > 0:
    parts.append(optax.clip_by_global_norm(optim.grad_clip))
  parts.append(optax.scale_by_adam(optim.b1, optim.b2, optim.eps))
  if optim.weight_decay > 0:
    parts.append(optax.add_decayed_weights(optim.weight_decay, _decays))
  parts.append(optax.scale_by_learning_rate(learning_rate(optim, steps)))
  return optax.chain(*parts)


def _decays(params: PyTree) -> PyTree:
  def named(path: tuple, leaf: Array) -> bool:
    return getattr(path[-1], "key", None) in DECAYS

  return jax.tree_util.tree_map_with_path(named, params)
