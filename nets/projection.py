"""What every critic ends with, and what every generator starts from."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from core.errors import UserError
from nets.layers import Dense


def project(
  features: Float[Array, "b d"], vec: Float[Array, "b e"] | None
) -> Float[Array, " b"]:
  """w . features + b + (V vec) . features, the logit of a picture under a condition.

  The projection discriminator, Miyato & Koyama 2018 (arXiv:1802.05637), eq. 3. Its
  layers belong to the module that calls it.
  """
  features = features.astype(jnp.float32)
  logits = Dense(1, name="logit")(features)[:, 0]
  if vec is None:
    return logits
  own = Dense(features.shape[-1], use_bias=False, name="condition")(vec)
  return logits + jnp.sum(own * features, -1)


def bottom(shape: tuple[int, ...], halvings: int) -> tuple[int, int]:
  """The sides [h, w] of a picture of `shape` [h, w, c] after so many halvings.

  Raises:
    UserError: it cannot be halved so often.
  """
  height, width, _ = shape
  if height % 2**halvings or width % 2**halvings:
    raise UserError(
      f"pictures of {height}x{width} cannot be halved {halvings} times: set data.size"
      f" to a multiple of {2**halvings}, or give fewer model.widths and gan.widths."
    )
  return height >> halvings, width >> halvings
