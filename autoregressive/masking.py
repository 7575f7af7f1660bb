"""How much of a picture is hidden, in training and step by step while it is drawn."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from core.errors import unknown

# Progress in [0, 1] -> the share that is hidden, from 1 to 0.
SCHEDULES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
  "cosine": lambda r: np.cos(np.pi * r / 2),
  "linear": lambda r: 1 - r,
  "square": lambda r: 1 - r**2,
  "cubic": lambda r: 1 - r**3,
  "root": lambda r: 1 - np.sqrt(r),
}


def hidden_shares(schedule: str, steps: int) -> Float[np.ndarray, " points"]:
  """gamma(t / steps), t = 1, ..., steps: the share that is hidden after each step.

  Chang et al. 2022 (arXiv:2202.04200), section 3.3 and figure 3: cosine is
  cos(pi r / 2).

  Raises:
    UserError: unknown schedule.
  """
  shares = _named(schedule)(np.arange(1, steps + 1) / steps)
  shares[-1] = 0.0  # the cosine of pi / 2 is not
  return shares


def _named(schedule: str) -> Callable[[np.ndarray], np.ndarray]:
  if schedule not in SCHEDULES:
    raise unknown("autoregressive.schedule", schedule, SCHEDULES)
  return SCHEDULES[schedule]


def share_at(schedule: str, r: Float[Array, " b"]) -> Float[Array, " b"]:
  """gamma(r)."""
  grid = np.linspace(0, 1, 1025)
  return jnp.interp(r, grid, _named(schedule)(grid))


def count_of(
  share: Float[Array, "..."] | float, length: Int[Array, "..."] | int
) -> Int[Array, "..."]:
  """ceil(share length), not one more for a rounding error."""
  return jnp.ceil(share * length - 1e-3).astype(jnp.int32)


def lowest(score: Float[Array, "b l"], count: Int[Array, " b"]) -> Bool[Array, "b l"]:
  """True at the `count` lowest of each row; of equals the first."""
  order = jnp.argsort(score, axis=1, stable=True)
  rank = jnp.argsort(order, axis=1)
  return rank < count[:, None]


def truncated_normal(u: Float[Array, " b"], low: float, std: float) -> Array:
  """A draw of N(1, std^2) cut to [low, 1], from u ~ U(0, 1)."""
  cdf = jax.scipy.stats.norm.cdf
  least = cdf((low - 1) / std)
  z = jax.scipy.special.ndtri(least + u * (0.5 - least))
  return jnp.clip(1 + std * z, low, 1)
