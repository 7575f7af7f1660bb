"""Transformed pictures to learn from, where the network is told what was done."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key
from ml_collections import ConfigDict

from core import warp
from core.errors import UserError
from core.family import Spec

LABELS = 9


def augmented(
  keys: Key[Array, " b"], x: Float[Array, "b h w c"], p: float
) -> tuple[Float[Array, "b h w c"], Float[Array, "b 9"]]:
  """EDM's geometric transformations and their labels, 0 for what was not done.

  Karras et al. 2022 (arXiv:2206.00364), appendix F.2: mirrored with probability 1/2,
  and each with probability p

    upside down, with 1/2            a1 in {0, 1}
    scaled by 2^(0.2 a2)             a2 ~ N(0, 1)
    rotated by a3                    a3 ~ U(-pi, pi)
    stretched by 2^(0.2 a5), across
      its direction a4 as much less  a5 ~ N(0, 1), a4 = 0 or U(-pi, pi), 1/2 each
    shifted by (a6, a7) / 8 sides    a6, a7 ~ N(0, 1)

  in this order. The labels are a0 (mirrored), a1, a2, cos a3 - 1, sin a3, a5 cos a4,
  a5 sin a4, a6 and a7; those of a5 are the same for the reverse, -a5 at a4 + pi, as in
  the paper's code. All is one bilinear look-up, reflected at the edges without end;
  that code reflects once, and doubles the picture before and halves it after by a
  wavelet's filter.
  """

  def one(key: Array, x: Array) -> tuple[Array, Array]:
    gates, *own = jax.random.split(key, 7)
    on = (jax.random.uniform(gates, (5,)) < p).astype(x.dtype)
    flips = jax.random.bernoulli(own[0], shape=(2,)) * jnp.stack([1.0, on[0]])
    scale = on[1] * jax.random.normal(own[1])
    turn, direction = jax.random.uniform(own[2], (2,), minval=-jnp.pi, maxval=jnp.pi)
    turn *= on[2]
    direction *= on[3] * jax.random.bernoulli(own[3])
    stretch = on[3] * jax.random.normal(own[4])
    shift = on[4] * jax.random.normal(own[5], (2,))
    turns = [jnp.cos(turn) - 1, jnp.sin(turn)]
    stretches = [stretch * jnp.cos(direction), stretch * jnp.sin(direction)]
    labels = jnp.stack([*flips, scale, *turns, *stretches, *shift])

    h, w, _ = x.shape
    at = warp.centred(h, w) - shift * jnp.array([w, h]) / 8
    cos, sin = jnp.cos(direction), jnp.sin(direction)
    wider = jnp.exp2(0.2 * stretch)
    at = warp.rotated(at, cos, sin) / jnp.stack([wider, 1 / wider])
    at = warp.rotated(at, cos, -sin)
    at = warp.rotated(at, jnp.cos(turn), jnp.sin(turn)) / jnp.exp2(0.2 * scale)
    return warp.looked_up(x, at * (1 - 2 * flips) + warp.middle(h, w)), labels

  return jax.vmap(one)(keys, x)


def check(config: ConfigDict, spec: Spec) -> None:
  """Raises UserError for `diffusion.augment` of latents, or of mirrored pictures."""
  p = config.diffusion.augment
  if p and not spec.pixels:
    raise UserError(
      f"diffusion.augment={p} moves pixels, and here are latents: set it to 0."
    )
  if p and config.data.flip:
    raise UserError(
      f"diffusion.augment={p} tells the network which pictures are mirrored, and"
      " data.flip mirrors others: set that to False."
    )
