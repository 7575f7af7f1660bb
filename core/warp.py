"""Pictures looked up at other places than the pixels' own.

Places are (column, row). To transform a picture, follow each new pixel's place back,
through the last transformation first.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float


def centred(height: int, width: int) -> Float[Array, "h w 2"]:
  """The place of each pixel, from the middle of the picture."""
  rows, columns = jnp.meshgrid(jnp.arange(height), jnp.arange(width), indexing="ij")
  return jnp.stack([columns, rows], axis=-1) - middle(height, width)


def middle(height: int, width: int) -> Float[Array, "2"]:
  """Of a picture whose first pixel is at (0, 0)."""
  return jnp.array([(width - 1) / 2, (height - 1) / 2])


def rotated(
  at: Float[Array, "h w 2"], cos: Float[Array, ""], sin: Float[Array, ""]
) -> Float[Array, "h w 2"]:
  """(u, v) -> (cos u - sin v, sin u + cos v)."""
  u, v = at[..., 0], at[..., 1]
  return jnp.stack([cos * u - sin * v, sin * u + cos * v], axis=-1)


def looked_up(
  x: Float[Array, "h w c"], at: Float[Array, "h w 2"]
) -> Float[Array, "h w c"]:
  """x at places from its first pixel on: bilinear, reflected in the edges' pixels.

  Without end, however far a place is. At a pixel's own place this is the pixel exactly.
  """
  last = jnp.array([x.shape[1] - 1, x.shape[0] - 1])
  at = last - jnp.abs(last - jnp.mod(at, 2 * last))
  low = jnp.floor(at)
  part = at - low
  low = low.astype(jnp.int32)
  (c0, r0), (c1, r1) = (
    jnp.moveaxis(a, -1, 0) for a in (low, jnp.minimum(low + 1, last))
  )
  right, below = part[..., :1], part[..., 1:]
  above = x[r0, c0] * (1 - right) + x[r0, c1] * right
  under = x[r1, c0] * (1 - right) + x[r1, c1] * right
  return above * (1 - below) + under * below
