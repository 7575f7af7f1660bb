"""Quantizers that are learned by gradients alone: Gumbel-softmax, and FSQ.

Gumbel-softmax (Jang et al. 2017, arXiv:1611.01144) as in DALL-E's discrete VAE (Ramesh
et al. 2021, arXiv:2102.12092, section 2.1 and appendix A.2): the encoder gives logits
of K codes, training sees a relaxed sample, a codec their argmax. FSQ (Mentzer et al.
2023, arXiv:2309.15505): each channel is rounded to one of a few levels; all
combinations are the codebook.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from core.errors import UserError

MARGIN = 1e-3  # by which the bounded values stay short of a level too many
SOFT = 0.5  # squared distance, in levels, at which another code is e times less likely


def relaxed(
  logits: Float[Array, "b *p k"],
  keys: Key[Array, " b"],
  temperature: float | int | Float[Array, ""],
) -> Float[Array, "b *p k"]:
  """softmax((logits + g) / temperature), g ~ Gumbel(0, 1) by the example's key.

  Jang et al. 2017, equation 2: one-hot as the temperature goes to 0, and then 1 at
  code k with probability softmax(logits)_k.
  """
  noise = jax.vmap(lambda key: jax.random.gumbel(key, logits.shape[1:]))(keys)
  return jax.nn.softmax((logits + noise) / temperature, axis=-1)


def likeliest(logits: Float[Array, "*p k"]) -> Int[Array, "*p"]:
  """argmax_k, the lowest of equals."""
  return jnp.argmax(logits, axis=-1).astype(jnp.int32)


def softmax_mean(
  logits: Float[Array, "*p k"], values: Float[Array, " k"]
) -> Float[Array, "*p"]:
  """sum_k q_k values_k, q = softmax(logits)."""
  return jax.nn.softmax(logits, axis=-1) @ values


def log_shares(shares: Float[Array, " k"]) -> Float[Array, " k"]:
  """log share_k, of 1e-3 of even use at least."""
  return jnp.log(jnp.maximum(shares, 1e-3 / shares.size))


def kl_to_uniform(logits: Float[Array, "b *p k"]) -> Float[Array, " b"]:
  """sum_p KL(q || uniform) = sum_p sum_k q log(q K), in nats an example."""
  log_q = jax.nn.log_softmax(logits, axis=-1)
  kl = jnp.sum(jnp.exp(log_q) * log_q, axis=-1) + math.log(logits.shape[-1])
  return jnp.sum(kl.reshape(len(kl), -1), axis=-1)


def annealed(
  updates: Int[Array, ""], start: float | int, end: float | int, steps: int
) -> Float[Array, ""]:
  """From `start` to `end` over `steps` updates along half a cosine; then `end`.

  start + (end - start) (1 - cos(pi updates / steps)) / 2, and `end` at once if there
  are no steps. DALL-E's temperature goes from 1 to 1/16 over 150,000 updates (appendix
  A.2).
  """
  share = jnp.minimum(updates / steps, 1.0) if steps else jnp.ones(())
  return start + (end - start) * (1 - jnp.cos(jnp.pi * share)) / 2


def check_levels(levels: tuple[int, ...]) -> int:
  """How many codes there are: the product of the levels.

  Raises:
    UserError: no channel, a channel of fewer than 2 levels, or more than 2^20 codes.
  """
  # Each is counted, and the counts are a part of the state.
  if not levels or min(levels) < 2 or math.prod(levels) > 2**20:
    raise UserError(
      f"vae.levels={levels} can't be taken: give each channel 2 levels or more, and no"
      " more than 2^20 codes in all."
    )
  return math.prod(levels)


def bound(h: Float[Array, "*p c"], levels: tuple[int, ...]) -> Float[Array, "*p c"]:
  """A range of L whole numbers for each channel, before they are rounded.

  half tanh(h + shift) - offset, half = (L - 1) (1 - MARGIN) / 2. Odd L: no offset and
  no shift, the numbers are -(L - 1)/2 ... (L - 1)/2. Even L: the offset is 1/2, the
  numbers are -L/2 ... L/2 - 1, and shift = tan(offset / half) takes h = 0 close to 0.
  Mentzer et al. 2023, appendix A.1 and their code. (One would expect artanh for
  tan: they differ by 4e-6 for 8 levels, 3e-4 for 4, and for 2 there is no artanh.)
  """
  count = np.asarray(levels, np.float32)
  half = (count - 1) * (1 - MARGIN) / 2
  offset = np.where(count % 2 == 0, 0.5, 0.0).astype(np.float32)
  return half * jnp.tanh(h + np.tan(offset / half)) - offset


def finite_scalar(
  h: Float[Array, "*p c"], levels: tuple[int, ...]
) -> Float[Array, "*p c"]:
  """z = round(bound(h)) / (L // 2) in [-1, 1], with the gradient of `bound`.

  Mentzer et al. 2023, section 3.1.
  """
  bounded = bound(h, levels)
  off = bounded - jax.lax.stop_gradient(bounded)  # 0, with the gradient
  return (jnp.round(jax.lax.stop_gradient(bounded)) + off) / half_width(levels)


def soft_mean(
  h: Float[Array, "*p c"], values: Float[Array, " k"], levels: tuple[int, ...]
) -> Float[Array, "*p"]:
  """sum_k q(k|h) values_k, q(k|h) prop. to exp(-|bound(h) - number of k|^2 / SOFT).

  q is a product over the channels, so the sum is taken a digit at a time.
  """
  bounded = bound(h, levels)
  for i, count in enumerate(levels):
    numbers = jnp.arange(count) - count // 2
    q = jax.nn.softmax(-((bounded[..., i, None] - numbers) ** 2) / SOFT)
    values = values.reshape(*values.shape[:-1], -1, count)
    values = jnp.einsum("...kl,...l->...k", values, q)
  return values[..., 0]


def to_index(z: Float[Array, "*p c"], levels: tuple[int, ...]) -> Int[Array, "*p"]:
  """The number of a code: a digit of base L a channel, the lowest first."""
  digits = jnp.round((z + 1) * half_width(levels)).astype(jnp.int32)
  return jnp.sum(digits * place_values(levels), axis=-1)


def from_index(
  indices: Int[Array, "*p"], levels: tuple[int, ...]
) -> Float[Array, "*p c"]:
  """z of a code's number, the inverse of `to_index`."""
  digits = indices[..., None] // place_values(levels) % np.asarray(levels, np.int32)
  return (digits - half_width(levels)) / half_width(levels).astype(np.float32)


def half_width(levels: tuple[int, ...]) -> np.ndarray:
  """L // 2, the number that becomes 1, or -1 where L is even."""
  return np.asarray(levels, np.int32) // 2


def place_values(levels: tuple[int, ...]) -> np.ndarray:
  """1, L_1, L_1 L_2, ...: what a digit counts."""
  return np.cumprod([1, *levels[:-1]]).astype(np.int32)
