"""The end of a critic that knows a condition."""

import jax.numpy as jnp
from jaxtyping import Array, Float

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
