"""From logits to a draw: guidance, temperature, top-k and top-p."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key
from ml_collections import ConfigDict

from core.errors import UserError, unknown
from core.family import keys_at

SCHEDULES = ("constant", "linear", "cosine")

Logits = Float[Array, "*shape v"]


class Sampling(NamedTuple):
  """The fields of `config.sample` that decide a draw; see configs/base.py."""

  temperature: float | int = 1.0
  top_k: int = 0
  top_p: float | int = 1.0
  guidance_scale: float | int = 1.0
  guidance_schedule: str = "constant"


def make(sample: ConfigDict, vocab: int = 0) -> Sampling:
  """The Sampling of `config.sample`, for numbers of `vocab` values, if there are any.

  Raises:
    UserError: an unknown schedule, or more values than there are.
  """
  found = Sampling(**{field: sample[field] for field in Sampling._fields})
  if vocab and found.top_k > vocab:
    raise UserError(
      f"sample.top_k={found.top_k} is more than the {vocab} values there are; 0 draws"
      " among all."
    )
  if found.guidance_schedule not in SCHEDULES:
    raise unknown("sample.guidance_schedule", found.guidance_schedule, SCHEDULES)
  return found


def scale_at(sampling: Sampling, progress: Float[Array, ""]) -> Float[Array, ""]:
  """1 + (guidance_scale - 1) f(progress): guidance_scale where progress is 1.

  progress is the share that is drawn when this draw is done. f(p) = 1 (constant), p
  (linear, as the code of MAR, Li et al. 2024, has it) or (1 - cos(pi p)) / 2 (cosine).
  """
  share = {
    "constant": jnp.ones_like,
    "linear": lambda p: p,
    "cosine": lambda p: (1 - jnp.cos(jnp.pi * p)) / 2,
  }[sampling.guidance_schedule](progress)
  return 1 + (sampling.guidance_scale - 1) * share


def top_k(logits: Logits, k: int) -> Logits:
  """-inf but for the k largest, and those equal to the least of them.

  Fan et al. 2018 (arXiv:1805.04833).
  """
  if k >= logits.shape[-1]:
    return logits
  least = jax.lax.top_k(logits, k)[0][..., -1:]
  return jnp.where(logits >= least, logits, -jnp.inf)


def top_p(logits: Logits, p: float | int) -> Logits:
  """-inf but for the likeliest values that together have probability p.

  The fewest whose sum is p or more, at least one, and those as likely as the least of
  them: Holtzman et al. 2020 (arXiv:1904.09751), eq. 2.
  """
  sorted_ = jnp.flip(jnp.sort(logits, axis=-1), axis=-1)
  mass = jax.nn.softmax(sorted_)
  before = jnp.cumsum(mass, axis=-1) - mass
  # The first always counts.
  inside = (before < p).at[..., 0].set(True)
  least = jnp.min(jnp.where(inside, sorted_, jnp.inf), axis=-1, keepdims=True)
  return jnp.where(logits >= least, logits, -jnp.inf)


def filtered(logits: Logits, sampling: Sampling) -> Logits:
  """Temperature, then top-k, then top-p; at temperature 0 the likeliest alone."""
  if sampling.temperature == 0:
    return top_k(logits, 1)
  logits = logits / sampling.temperature
  if sampling.top_k:
    logits = top_k(logits, sampling.top_k)
  return top_p(logits, sampling.top_p) if sampling.top_p < 1 else logits


def draw(
  logits: Float[Array, "n ... v"], keys: Key[Array, " n"], i: Int[Array, ""]
) -> Int[Array, "n ..."]:
  """The i-th draw of each sample."""
  found = jax.vmap(jax.random.categorical)(keys_at(keys, i), logits)
  return found.astype(jnp.int32)
