"""A mixture of discretised logistics for the colours of a pixel together: PixelCNN++.

sum_i pi_i prod_c mass(x_c; mu_ic, s_ic), where the means of later channels are linear
in the earlier ones of the picture: mu_G + alpha x_R, and mu_B + beta x_R + gamma x_G
(Salimans et al. 2017, arXiv:1701.05517, eq. 2-3). What a network gives, raw, is for
each component: log pi, then mu, log s of each channel, then the coefficients before
their tanh.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from core.levels import from_levels, to_levels
from core.logistic import cut_mean, log_mass, log_scale

Raw = Float[Array, "*shape r"]
Pixel = Float[Array, "*shape c"]


class Parts(NamedTuple):
  """What raw numbers mean, k components of c channels.

  Attributes:
    log_pi: of the components.
    mu: means, without the share of earlier channels.
    log_s: logarithms of the scales.
    coupling: (channel, earlier one) -> the coefficient.
  """

  log_pi: Float[Array, "*shape k"]
  mu: Float[Array, "*shape k c"]
  log_s: Float[Array, "*shape k c"]
  coupling: dict[tuple[int, int], Float[Array, "*shape k"]]

  def mean_of(self, c: int, before: list[Array]) -> Float[Array, "*shape k"]:
    """The mean of channel c, given the channels before it."""
    return self.mu[..., c] + sum(self.coupling[c, d] * before[d] for d in range(c))


def width(channels: int, components: int) -> int:
  """How many raw numbers a pixel takes."""
  return components * (1 + 2 * channels + channels * (channels - 1) // 2)


def parts(raw: Raw, channels: int, components: int) -> Parts:
  """Raw numbers by their meaning."""
  pairs = [(c, d) for c in range(channels) for d in range(c)]
  raw = raw.reshape(*raw.shape[:-1], components, -1)
  mu, scale = raw[..., 1 : 1 + channels], raw[..., 1 + channels : 1 + 2 * channels]
  weights = jnp.tanh(raw[..., 1 + 2 * channels :])
  coupling = {pair: weights[..., i] for i, pair in enumerate(pairs)}
  return Parts(jax.nn.log_softmax(raw[..., 0]), mu, log_scale(scale), coupling)


def log_prob(x: Pixel, raw: Raw, components: int) -> Float[Array, "*shape"]:
  """log p of each pixel's levels, in nats."""
  channels = x.shape[-1]
  found = parts(raw, channels, components)
  seen = [x[..., c, None] for c in range(channels)]
  each = [
    log_mass(seen[c], found.mean_of(c, seen), found.log_s[..., c])
    for c in range(channels)
  ]
  return jax.nn.logsumexp(found.log_pi + sum(each), axis=-1)


def mean(raw: Raw, channels: int, components: int) -> Pixel:
  """The expected pixel, but for what the open ends cut off of earlier channels.

  The channels in turn, each component's given its own means of the channels before.
  """
  found, means = parts(raw, channels, components), []
  for c in range(channels):
    means.append(cut_mean(found.mean_of(c, means), found.log_s[..., c]))
  return jnp.einsum("...k,...kc->...c", jnp.exp(found.log_pi), jnp.stack(means, -1))


def draw(
  raw: Float[Array, "n r"], keys: Key[Array, " n"], channels: int, components: int
) -> Float[Array, "n c"]:
  """A pixel of each key: a component, then its channels in turn.

  A logistic variable, mu + s logit(u), goes to the nearest level, those beyond the ends
  to these: so each level comes with the mass that `log_prob` tells.
  """
  found = parts(raw, channels, components)
  keys = jax.vmap(jax.random.split)(keys)
  chosen = jax.vmap(jax.random.categorical)(keys[:, 0], found.log_pi)
  noise = jax.vmap(lambda key: jax.random.logistic(key, (channels,)))(keys[:, 1])

  def own(a: Float[Array, "n k"]) -> Float[Array, " n"]:
    return jnp.take_along_axis(a, chosen[:, None], axis=1)[:, 0]

  drawn = []
  for c in range(channels):
    before = [x[:, None] for x in drawn]
    mu, log_s = own(found.mean_of(c, before)), own(found.log_s[..., c])
    drawn.append(from_levels(to_levels(mu + jnp.exp(log_s) * noise[:, c])))
  return jnp.stack(drawn, axis=-1)
