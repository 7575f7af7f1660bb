"""A noise schedule that is learned."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


class MonotoneLogsnr(nn.Module):
  """t -> logsnr, from `start` at t = 0 down to `end` at t = 1.

  Kingma et al. 2021 (arXiv:2107.00630), appendix H:
  g(t) = l1(t) + l3(sigmoid(l2(l1(t)))) with linear l1, l2, l3 whose weights are
  positive (softplus), so g increases. The result is
  start + (end - start) (g(t) - g(0)) / (g(1) - g(0)), which decreases strictly
  while end < start. Both ends are parameters, reached exactly; gamma in the paper
  is -logsnr.

  Attributes:
    hidden: outputs of l2.
    logsnr_max: where `start` starts.
    logsnr_min: where `end` starts.
  """

  hidden: int = 1024
  logsnr_max: float = 13.3
  logsnr_min: float = -5.0

  @nn.compact
  def __call__(self, t: Float[Array, "*s"]) -> Float[Array, "*s"]:
    constant, normal = nn.initializers.constant, nn.initializers.normal(1.0)
    start = self.param("start", constant(self.logsnr_max), ())
    end = self.param("end", constant(self.logsnr_min), ())
    w1 = self.param("w1", normal, ())
    w2 = self.param("w2", normal, (self.hidden,))
    b2 = self.param("b2", normal, (self.hidden,))
    w3 = self.param("w3", normal, (self.hidden,))

    # l1 and l3 need no bias: it cancels, or is one with that of l2.
    linear = jax.nn.softplus(w1) * jnp.stack([t, jnp.zeros_like(t), jnp.ones_like(t)])
    bent = jax.nn.sigmoid(jax.nn.softplus(w2) * linear[..., None] + b2)
    # The mean in place of the sum, so that l1 counts for as much as l3.
    g, low, high = linear + (jax.nn.softplus(w3) * bent).mean(-1)
    part = (g - low) / (high - low)
    return start * (1 - part) + end * part
