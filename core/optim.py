"""Optimizers, learning-rate schedules and EMA decay, all from `config.optim`."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree
from ml_collections import ConfigDict

from core.errors import UserError, unknown


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
  lambda is `learning_rate * weight_decay`. Weight decay leaves vectors (biases,
  norm scales) alone.
  """
  parts = []
  if optim.grad_clip > 0:
    parts.append(optax.clip_by_global_norm(optim.grad_clip))
  parts.append(optax.scale_by_adam(optim.b1, optim.b2, optim.eps))
  if optim.weight_decay > 0:
    parts.append(optax.add_decayed_weights(optim.weight_decay, _matrices))
  parts.append(optax.scale_by_learning_rate(learning_rate(optim, steps)))
  return optax.chain(*parts)


def _matrices(params: PyTree) -> PyTree:
  return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def ema_decay(
  optim: ConfigDict, batch_size: int
) -> Callable[[Int[Array, ""]], Float[Array, ""]]:
  """step -> d in `ema = d ema + (1 - d) params`, by `config.optim`.

  constant: `ema_decay`; warmup: min(ema_decay, (1 + step) / (10 + step)), so
  that the first weights are forgotten fast; halflife: 0.5^(batch_size / h)
  with h = min(ema_halflife images, 5% of those seen), the ramp-up in the code of
  Karras et al. 2022.

  Raises:
    UserError: unknown `ema`, or a half-life that is not positive.
  """
  match optim.ema:
    case "constant":
      return lambda step: jnp.asarray(optim.ema_decay, jnp.float32)
    case "warmup":
      return lambda step: jnp.minimum(optim.ema_decay, (1.0 + step) / (10.0 + step))
    case "halflife":
      if optim.ema_halflife <= 0:
        raise UserError("optim.ema='halflife' needs optim.ema_halflife in images, > 0.")

      def decay(step: Int[Array, ""]) -> Float[Array, ""]:
        seen = 0.05 * batch_size * jnp.maximum(step, 1)
        return 0.5 ** (batch_size / jnp.minimum(seen, optim.ema_halflife))

      return decay
    case other:
      raise unknown("optim.ema", other, ("constant", "warmup", "halflife"))
