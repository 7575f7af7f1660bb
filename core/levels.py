"""Pictures of 256 grey levels, level k at 2k/255 - 1, and their likelihood in bits."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

BIN = 2 / 255  # width of a grey level


LEVELS = 256


def to_levels(x: Float[Array, "..."]) -> Int[Array, "..."]:
  """The grey level of a number, the nearest of 0 to 255."""
  return jnp.clip(jnp.round((x + 1) / BIN), 0, LEVELS - 1).astype(jnp.int32)


def from_levels(level: Int[Array, "..."]) -> Float[Array, "..."]:
  """2 level / 255 - 1."""
  return level / ((LEVELS - 1) / 2) - 1


def dequantized(
  x: Float[Array, "b ..."], keys: Key[Array, " b"]
) -> Float[Array, "b ..."]:
  """x + u, u uniform in (-1/2, 1/2) of a level, drawn from each example's key.

  With it a density gives a bound on the log mass of the levels: E[log p(x + u)] + log
  BIN a number (Theis et al. 2016, arXiv:1511.01844, section 3.1).
  """
  draw = jax.vmap(lambda key: jax.random.uniform(key, x.shape[1:], x.dtype))(keys)
  return x + (draw - 0.5) * BIN


def total(a: Float[Array, "b ..."]) -> Float[Array, " b"]:
  """The sum over all but the first axis."""
  return a.reshape(len(a), -1).sum(1)


def bits(nats: Float[Array, " b"], dims: int) -> Float[Array, " b"]:
  """Nats of an example -> bits a dimension."""
  return nats / (dims * math.log(2))


def log_normal(z: Float[Array, "b ..."]) -> Float[Array, " b"]:
  """log N(z; 0, I) of each example, in nats."""
  return -total(z**2 + math.log(2 * math.pi)) / 2
