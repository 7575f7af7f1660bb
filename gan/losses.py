"""What the critic and the generator of a GAN minimise, of the critic's logits."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from core.errors import unknown

Logits = Float[Array, "*b"]


class Loss(NamedTuple):
  """What a pair of pictures costs both, by the logits of the real and the fake one.

  critic: (real, fake) -> what the critic minimises.
  generator: (real, fake) -> what the generator minimises; most read only `fake`.
  sure: (real, fake) -> what is above 0 where the critic takes the real one for real.
  """

  critic: Callable[[Logits, Logits], Logits]
  generator: Callable[[Logits, Logits], Logits]
  sure: Callable[[Logits, Logits], Logits] = lambda real, fake: real


def _log_sigmoids(real: Logits, fake: Logits) -> Logits:
  """-log D(x) - log(1 - D(G(z))) with D the sigmoid of the logit."""
  return jax.nn.softplus(-real) + jax.nn.softplus(fake)


def _beside(real: Logits, fake: Logits) -> Logits:
  """Of losses that leave the logits' level open."""
  return real - fake


LOSSES = {
  # Goodfellow et al. 2014 (arXiv:1406.2661), eq. 1: the generator minimises
  # log(1 - D(G(z))).
  "minimax": Loss(_log_sigmoids, lambda real, fake: -jax.nn.softplus(fake)),
  # The same, section 3: it minimises -log D(G(z)), whose gradient does not vanish where
  # the critic is right.
  "nonsaturating": Loss(_log_sigmoids, lambda real, fake: jax.nn.softplus(-fake)),
  # Mao et al. 2017 (arXiv:1611.04076), eq. 9: targets 1 and 0.
  "least_squares": Loss(
    lambda real, fake: ((real - 1) ** 2 + fake**2) / 2,
    lambda real, fake: (fake - 1) ** 2 / 2,
    lambda real, fake: real - 0.5,
  ),
  # Lim & Ye 2017 (arXiv:1705.02894), Miyato et al. 2018, eq. 16 and 17.
  "hinge": Loss(
    lambda real, fake: jax.nn.relu(1 - real) + jax.nn.relu(1 + fake),
    lambda real, fake: -fake,
  ),
  # Arjovsky et al. 2017 (arXiv:1701.07875), eq. 2; the critic must be kept Lipschitz.
  "wasserstein": Loss(
    lambda real, fake: fake - real, lambda real, fake: -fake, _beside
  ),
  # Pairs: Jolicoeur-Martineau 2019 (arXiv:1807.00734), eq. 3, with softplus, as Huang
  # et al. 2024 (arXiv:2501.05441), eq. 2.
  "relativistic": Loss(
    lambda real, fake: jax.nn.softplus(fake - real),
    lambda real, fake: jax.nn.softplus(real - fake),
    _beside,
  ),
}


def make(name: str) -> Loss:
  """The loss named by `gan.loss`.

  Raises:
    UserError: there is none of that name.
  """
  if name not in LOSSES:
    raise unknown("gan.loss", name, LOSSES)
  return LOSSES[name]


def mean(logits: Float[Array, "b ..."]) -> Float[Array, " b"]:
  """Of an example: a patch critic has a logit for each place."""
  return jnp.mean(logits.reshape(len(logits), -1), -1)
