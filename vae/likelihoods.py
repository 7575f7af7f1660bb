"""p(x | z) of a picture, from the raw output of a decoder.

Pictures have 256 grey levels, level k at 2k/255 - 1. Every log probability is of a
whole picture in nats, and of levels: the mass of a level, or, of a density, its value
in units of one level, so that bits a dimension of all kinds but bernoulli compare. A
density must be given `dequantized` pictures: E[log p(x + u)], u uniform in the level's
bin, is a bound on the log mass that p gives to the bin (Theis et al. 2016,
arXiv:1511.01844, section 3.1), and without the noise it has none.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key
from ml_collections import ConfigDict

from core import logistic_mixture as mixture
from core.errors import unknown
from core.levels import BIN, dequantized, total
from core.logistic import cut_mean, log_mass, log_scale

EPS = 0.1  # of the logit-Laplace map of pixels

Image = Float[Array, "b h w c"]
Raw = Float[Array, "b h w r"]


class Likelihood(NamedTuple):
  """p(x | z).

  Attributes:
    channels: r, the channels of the decoder's output.
    density: whether log_prob is of continuous pictures, to be `dequantized`.
    log_prob: (x, raw) -> nats of each picture, [b].
    mean: raw -> the expected picture, in [-1, 1].
  """

  channels: int
  density: bool
  log_prob: Callable[[Image, Raw], Float[Array, " b"]]
  mean: Callable[[Raw], Image]

  def log_levels(
    self, x: Image, raw: Raw, keys: Key[Array, " b"]
  ) -> Float[Array, " b"]:
    """log_prob of a picture's levels; of a density at one draw of noise in them."""
    return self.log_prob(dequantized(x, keys) if self.density else x, raw)


def make(vae: ConfigDict, channels: int) -> Likelihood:
  """The likelihood `vae.likelihood` of pictures with so many colour channels.

  Raises:
    UserError: unknown likelihood.
  """
  kinds = {
    "bernoulli": bernoulli,
    "gaussian": gaussian,
    "logistic": logistic,
    "logistic_mixture": lambda c: logistic_mixture(c, vae.components),
    "laplace": laplace,
  }
  if vae.likelihood not in kinds:
    raise unknown("vae.likelihood", vae.likelihood, kinds)
  return kinds[vae.likelihood](channels)


def bernoulli(channels: int) -> Likelihood:
  """t log p + (1 - t) log(1 - p), p = sigmoid(raw), t = (x + 1) / 2 in [0, 1].

  Kingma & Welling 2014 (arXiv:1312.6114), appendix C.1. Of pictures in black and white
  it is their log mass. On grey values it is neither a mass nor a density (they do not
  sum to 1: Loaiza-Ganem & Cunningham 2019, arXiv:1907.06845), so what follows from it
  in bits a dimension is a loss, and compares with no other likelihood.
  """

  def log_prob(x: Image, raw: Raw) -> Float[Array, " b"]:
    t = (x + 1) / 2
    return total(t * jax.nn.log_sigmoid(raw) + (1 - t) * jax.nn.log_sigmoid(-raw))

  return Likelihood(channels, False, log_prob, lambda raw: 2 * jax.nn.sigmoid(raw) - 1)


def gaussian(channels: int) -> Likelihood:
  """N(x; mu, sigma^2), with one sigma for each colour channel of a picture.

  raw is mu and a map whose mean over the picture is log sigma. A learned scale takes
  the place of a tuned weight of the KL term, as in sigma-VAE (Rybkin et al. 2021,
  arXiv:2006.13202, section 4), where one scale serves all pictures. The mean is cut to
  [-1, 1].
  """

  def parts(raw: Raw) -> tuple[Image, Float[Array, "b 1 1 c"]]:
    mu, scale = jnp.split(raw, 2, axis=-1)
    return mu, log_scale(scale.mean((1, 2), keepdims=True))

  def log_prob(x: Image, raw: Raw) -> Float[Array, " b"]:
    mu, log_sigma = parts(raw)
    off = (x - mu) * jnp.exp(-log_sigma)
    return total(math.log(BIN) - off**2 / 2 - log_sigma - math.log(2 * math.pi) / 2)

  return Likelihood(
    2 * channels, True, log_prob, lambda raw: jnp.clip(parts(raw)[0], -1, 1)
  )


def laplace(channels: int) -> Likelihood:
  """exp(-|logit(y) - mu| / b) / (2 b y (1 - y)) dy/dx, y = (1 - 2 eps) t + eps.

  The logit-Laplace of DALL-E 1 (Ramesh et al. 2021, arXiv:2102.12092, appendix A.3)
  with its map of pixels, t = (x + 1) / 2 and eps = 0.1; raw is mu and log b of each
  number. It also gives mass beyond [-1, 1], to t in (-1/8, 9/8). In place of the mean
  it has what DALL-E shows: the median sigmoid(mu), mapped back and cut to [-1, 1].
  """

  def log_prob(x: Image, raw: Raw) -> Float[Array, " b"]:
    mu, log_b = jnp.split(raw, 2, axis=-1)
    log_b = log_scale(log_b)
    y = (1 - 2 * EPS) * (x + 1) / 2 + EPS
    log_y, log_rest = jnp.log(y), jnp.log1p(-y)
    off = jnp.abs(log_y - log_rest - mu) * jnp.exp(-log_b)
    slope = math.log(BIN * (1 - 2 * EPS) / 2)
    return total(slope - off - math.log(2) - log_b - log_y - log_rest)

  def mean(raw: Raw) -> Image:
    mu, _ = jnp.split(raw, 2, axis=-1)
    t = (jax.nn.sigmoid(mu) - EPS) / (1 - 2 * EPS)
    return jnp.clip(2 * t - 1, -1, 1)

  return Likelihood(2 * channels, True, log_prob, mean)


def logistic(channels: int) -> Likelihood:
  """The mass that a logistic distribution gives to x's level.

  F(x + 1/2 level) - F(x - 1/2 level), F(v) = sigmoid((v - mu) / s), where the lowest
  and the highest level reach to infinity: Kingma et al. 2016 (arXiv:1606.04934);
  Salimans et al. 2017 (arXiv:1701.05517), eq. 2. raw is mu and log s of each number.
  The mean is `cut_mean`.
  """

  def parts(raw: Raw) -> tuple[Image, Image]:
    mu, scale = jnp.split(raw, 2, axis=-1)
    return mu, log_scale(scale)

  return Likelihood(
    2 * channels,
    False,
    lambda x, raw: total(log_mass(x, *parts(raw))),
    lambda raw: cut_mean(*parts(raw)),
  )


def logistic_mixture(channels: int, components: int) -> Likelihood:
  """`core/logistic_mixture.py`, of whole pictures."""

  def log_prob(x: Image, raw: Raw) -> Float[Array, " b"]:
    return total(mixture.log_prob(x, raw, components))

  return Likelihood(
    mixture.width(channels, components),
    False,
    log_prob,
    lambda raw: mixture.mean(raw, channels, components),
  )
