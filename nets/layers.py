"""Small layers that every network shares."""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer


def _dot_2d(x: Array, kernel: Array, *_: Any, **__: Any) -> Array:
  """x @ kernel over the last axis of x, as one matrix product."""
  y = jax.lax.dot(x.reshape(-1, x.shape[-1]), kernel)
  return y.reshape(*x.shape[:-1], kernel.shape[-1])


# Flattened, the weights' gradient is a product XLA does without a transposed copy of
# its operands: on a CPU twice as fast as with nn.Dense's own dot_general.
Dense = functools.partial(nn.Dense, dot_general=_dot_2d)


class Dropout(nn.Module):
  """x * keep / (1 - rate), with one random key an example.

  The mask of an example follows from the step's 'dropout' key and the example's
  id alone, so it does not depend on how a batch is cut over devices. Without
  `ids` nothing is dropped, and no random key is needed. Srivastava et al. 2014.
  """

  rate: float

  @nn.compact
  def __call__(
    self, x: Float[Array, "b ..."], ids: Integer[Array, " b"] | None
  ) -> Float[Array, "b ..."]:
    if ids is None or self.rate == 0:
      return x
    keys = jax.vmap(jax.random.fold_in, (None, 0))(self.make_rng("dropout"), ids)
    keep = jax.vmap(lambda k: jax.random.bernoulli(k, 1 - self.rate, x.shape[1:]))(keys)
    return jnp.where(keep, x / (1 - self.rate), 0).astype(x.dtype)


class GroupNorm(nn.Module):
  """(x - mean) / std over each group of channels, then scale and shift.

  Wu & He 2018 (arXiv:1803.08494), eq. 7. There are gcd(32, c) groups, or as many
  fewer as leave `least` (1 or 4) channels in each. A given
  `scale_shift` [b, 2c] modulates the result: y (1 + scale) + shift (ADM, Dhariwal
  & Nichol 2021, arXiv:2105.05233, section 3.1).

  One pass over x gives the sums a channel; all that follows them is one
  multiply-add an element, which XLA fuses with the activation behind it.
  Statistics are float32; the result has the type of x.
  """

  least: int = 1

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "b *size c"],
    scale_shift: Float[Array, "b c2"] | None = None,
  ) -> Float[Array, "b *size c"]:
    b, *size, c = x.shape
    groups = min(math.gcd(32, c), max(1, c // self.least))
    gain = self.param("scale", nn.initializers.ones, (c,))
    bias = self.param("bias", nn.initializers.zeros, (c,))
    y = x.astype(jnp.float32).reshape(b, -1, c)

    def grouped(a: Float[Array, "b c"]) -> Float[Array, "b g"]:
      return a.reshape(b, groups, -1).mean(-1)

    mean = grouped(y.mean(1))
    var = jnp.maximum(grouped((y * y).mean(1)) - mean**2, 0)
    mean, rstd = (
      jnp.repeat(a, c // groups, axis=-1) for a in (mean, jax.lax.rsqrt(var + 1e-6))
    )
    if scale_shift is not None:
      scale, shift = jnp.split(scale_shift.astype(jnp.float32), 2, axis=-1)
      gain, bias = gain * (1 + scale), bias * (1 + scale) + shift
    gain = rstd * gain
    bias = bias - mean * gain
    y = y * gain[:, None] + bias[:, None]
    return y.reshape(b, *size, c).astype(x.dtype)
