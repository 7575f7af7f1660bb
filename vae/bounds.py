"""Bounds on log p(x) of a model with latents z ~ N(0, I) and q(z|x) = N(mean, var).

All are in nats an example; `bits` turns them into bits a dimension.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from core.levels import total


class Posterior(NamedTuple):
  """q(z|x): independent normals, channels last."""

  mean: Float[Array, "b *place c"]
  logvar: Float[Array, "b *place c"]

  @classmethod
  def of(cls, moments: Float[Array, "b *place c2"]) -> "Posterior":
    """Mean and log variance side by side, as networks give them; logvar is cut."""
    mean, logvar = jnp.split(moments, 2, axis=-1)
    return cls(mean, jnp.clip(logvar, -30, 20))

  def at(self, eps: Float[Array, "b *place c"]) -> Float[Array, "b *place c"]:
    """z = mean + std eps (Kingma & Welling 2014, section 2.4)."""
    return self.mean + jnp.exp(self.logvar / 2) * eps

  def kl(self) -> Float[Array, "b c"]:
    """KL(q(z|x) || N(0, I)) of each channel: (mean^2 + var - 1 - log var) / 2, summed.

    Kingma & Welling 2014 (arXiv:1312.6114), appendix B.
    """
    each = (self.mean**2 + jnp.exp(self.logvar) - 1 - self.logvar) / 2
    return each.reshape(len(each), -1, each.shape[-1]).sum(1)

  def log_ratio(self, eps: Float[Array, "b *place c"]) -> Float[Array, " b"]:
    """log p(z) - log q(z|x) at z = mean + std eps, whose mean is -kl."""
    return total(eps**2 - self.at(eps) ** 2 + self.logvar) / 2


def loss(
  log_px: Float[Array, " b"],
  kl: Float[Array, "b c"],
  beta: Float[Array, ""] | float | int = 1,
  free: float | int = 0,
) -> Float[Array, " b"]:
  """-log p(x|z) + beta sum_c max(free, kl_c); minus the ELBO at beta 1 and free 0.

  beta: Higgins et al. 2017. free: Kingma et al. 2016 (arXiv:1606.04934), eq. 15, but
  with each example's own KL where they take the mean over a batch, which would depend
  on how the batch is cut.
  """
  return beta * jnp.maximum(kl, free).sum(-1) - log_px


def warmed(beta: float | int, updates: Int[Array, ""], steps: int) -> Float[Array, ""]:
  """beta after so many updates: from 0 evenly to its value over `steps`.

  Sønderby et al. 2016 (arXiv:1602.02282), section 2.3.
  """
  return jnp.float32(beta) * jnp.minimum((updates + (steps == 0)) / max(steps, 1), 1)


def iwae(
  log_weight: Callable[[Int[Array, ""]], Float[Array, " b"]], k: int
) -> Float[Array, " b"]:
  """log 1/k sum_i w_i, with log w_i = log p(x|z_i) + log p(z_i) - log q(z_i|x).

  Burda et al. 2016 (arXiv:1509.00519), eq. 8: at k = 1 in the mean the ELBO, and never
  less with a larger k. One draw after the other, so that memory does not grow with k.

  Args:
    log_weight: i -> log w_i, of draw i.
    k: the number of draws.
  """

  def add(sofar: Float[Array, " b"], i: Int[Array, ""]) -> tuple:
    return jnp.logaddexp(sofar, log_weight(i)), None

  first = log_weight(jnp.asarray(0))
  return jax.lax.scan(add, first, jnp.arange(1, k))[0] - math.log(k)
