"""The logistic distribution over the grey levels of `core/levels.py`."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from core.levels import BIN

# Of the logarithm of every scale: from a tenth of a level to a thousand ranges.
LOW, HIGH = -7.0, 7.0


def log_mass(
  x: Float[Array, "..."], mu: Float[Array, "..."], log_s: Float[Array, "..."]
) -> Float[Array, "..."]:
  """log of the mass of x's level: log(F(x + BIN / 2) - F(x - BIN / 2)).

  F(v) = sigmoid((v - mu) / s); the lowest and the highest level reach to infinity. With
  a > b the two ends in units of s, it is log sigmoid(a) + log sigmoid(-b) +
  log(1 - exp(b - a)): nothing cancels. The mean and the scale may be of any size.
  """
  x = jnp.clip(jnp.round((x + 1) / BIN), 0, 255) * BIN - 1
  inverse = jnp.exp(-log_s)
  below = jax.nn.log_sigmoid((x + BIN / 2 - mu) * inverse)
  above = jax.nn.log_sigmoid(-(x - BIN / 2 - mu) * inverse)
  inside = below + above + jnp.log(-jnp.expm1(-BIN * inverse))
  edge = 1 - BIN / 2
  return jnp.where(x < -edge, below, jnp.where(x > edge, above, inside))


def cut_mean(
  mu: Float[Array, "..."], log_s: Float[Array, "..."]
) -> Float[Array, "..."]:
  """E[v] of a logistic v cut to [-1, 1], within half a level of that of its levels.

  1 - integral of F from -1 to 1, F's integral being s softplus((v - mu) / s).
  """
  s = jnp.exp(log_s)
  high, low = (jax.nn.softplus((end - mu) / s) for end in (1, -1))
  return jnp.clip(1 - s * (high - low), -1, 1)


def log_scale(raw: Float[Array, "..."]) -> Float[Array, "..."]:
  """raw, kept above LOW softly, as Rybkin et al. 2021 do, and below HIGH."""
  return jnp.minimum(LOW + jax.nn.softplus(raw - LOW), HIGH)
