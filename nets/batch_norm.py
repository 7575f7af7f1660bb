"""Batch normalisation over all devices, told the condition if there is one."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from nets.layers import Dense


class BatchNorm(nn.Module):
  """scale (x - mean) / sqrt(var + 1e-5) + bias, moments over the batch and all places.

  Ioffe & Szegedy 2015 (arXiv:1502.03167), algorithm 1. With `vec`, scale - 1 and bias
  are linear maps of it (conditional batch norm: Dumoulin et al. 2017, arXiv:1610.07629;
  de Vries et al. 2017). In training the moments are those of the whole batch: `axis`
  names the mapped axis over which they are averaged besides. Elsewhere they are those
  in the collection "batch_stats", which training sets to its batch's, for its owner to
  average.

  Moments are float32; the result has the type of x.

  Attributes:
    tracked: keep moments; without, `training` must be True at all times.
  """

  tracked: bool = True

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "b *size c"],
    vec: Float[Array, "b e"] | None = None,
    training: bool = True,
    axis: str | None = None,
  ) -> Float[Array, "b *size c"]:
    c = x.shape[-1]
    over = tuple(range(x.ndim - 1))
    y = x.astype(jnp.float32)
    if training:
      moments = jnp.stack([y.mean(over), (y * y).mean(over)])
      if axis is not None:
        moments = jax.lax.pmean(moments, axis)
      mean, var = moments[0], jnp.maximum(moments[1] - moments[0] ** 2, 0)
    if self.tracked:
      start = lambda: jnp.stack([jnp.zeros(c), jnp.ones(c)])  # noqa: E731
      averages = self.variable("batch_stats", "moments", start)
      if not training:
        mean, var = averages.value
      elif not self.is_initializing() and self.is_mutable_collection("batch_stats"):
        averages.value = jnp.stack([mean, var])
    if vec is None:
      scale = self.param("scale", nn.initializers.ones, (c,))
      bias = self.param("bias", nn.initializers.zeros, (c,))
    else:
      dense = lambda name: Dense(c, use_bias=False, name=name)(vec)  # noqa: E731
      spread = (len(x),) + (1,) * (x.ndim - 2) + (c,)
      scale, bias = (1 + dense("scale")).reshape(spread), dense("bias").reshape(spread)
    gain = jax.lax.rsqrt(var + 1e-5) * scale
    return (y * gain + (bias - mean * gain)).astype(x.dtype)
