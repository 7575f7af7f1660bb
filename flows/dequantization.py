"""The noise that makes a density of grey levels: uniform, or drawn by a flow itself."""

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from core.levels import BIN, dequantized, log_normal, total
from flows.bijector import (
  Bijector,
  Image,
  Nats,
  chain,
  repeat,
  single,
  squeezed,
)
from flows.coupling import MakeNet, coupling
from flows.elementwise import affine
from flows.layers import conv_1x1
from nets.layers import squeeze
from text.cond import Cond


class Dequantizer(NamedTuple):
  """q(u | x) of a picture's noise u, in (0, 1) of a level's bin.

  E[log p(x + u) - log q(u | x)] is a bound on the log mass of the levels, tight where
  q(u | x) is p(u | x) (Ho et al. 2019, Flow++, arXiv:1902.00275, eq. 12).

  Attributes:
    init: (rng, x, cond) -> params.
    draw: (params, x, keys, cond) -> x with a draw of the noise, and log q(u | x) in
      nats; keys hold one an example.
  """

  init: Callable[[Array, Image, Cond], PyTree]
  draw: Callable[[PyTree, Image, Key[Array, " b"], Cond], tuple[Image, Nats]]


def uniform() -> Dequantizer:
  """log q = 0: Theis et al. 2016 (arXiv:1511.01844), section 3.1."""
  return Dequantizer(
    lambda rng, x, cond: {},
    lambda params, x, keys, cond: (dequantized(x, keys), jnp.zeros(len(x))),
  )


def none() -> Dequantizer:
  """For what has no levels: x itself."""
  return Dequantizer(
    lambda rng, x, cond: {}, lambda params, x, keys, cond: (x, jnp.zeros(len(x)))
  )


def variational(make_net: MakeNet, steps: int) -> Dequantizer:
  """u = f(eps; x), eps ~ N(0, I), by `noise_flow`: Flow++, section 3.1.

  log q(u | x) = log N(eps; 0, I) - log |det du/deps|.
  """
  flow = noise_flow(make_net, steps)

  def seen(x: Image, cond: Cond) -> Cond:
    return cond.replace(image=squeeze(x))

  def draw(
    params: PyTree, x: Image, keys: Key[Array, " b"], cond: Cond
  ) -> tuple[Image, Nats]:
    eps = jax.vmap(lambda key: jax.random.normal(key, x.shape[1:]))(keys)
    u, logdet = flow.forward(params, eps, seen(x, cond))
    return x + (u - 0.5) * BIN, log_normal(eps) - logdet

  return Dequantizer(lambda rng, x, cond: flow.init(rng, x, seen(x, cond))[0], draw)


def noise_flow(make_net: MakeNet, steps: int) -> Bijector:
  """eps -> u in (0, 1): Glow's steps that see the squeezed picture, then a sigmoid."""

  def step(i: Array) -> Bijector:
    seeing = lambda channels: SeesPicture(make_net(channels))  # noqa: E731
    return chain(conv_1x1(i), coupling(affine("glow"), seeing))

  return chain(squeezed(repeat(step, steps, reversible=False)), sigmoid())


class SeesPicture(nn.Module):
  """A network of (x, cond) that sees `cond.image` beside x."""

  net: nn.Module

  def __call__(self, x: Image, cond: Cond) -> Float[Array, "b h w r"]:
    """The network's output."""
    both = jnp.concatenate([x, cond.image], axis=-1)
    return self.net(both, cond.replace(image=None))


def sigmoid() -> Bijector:
  """z = 1 / (1 + exp(-x)), dz/dx = z (1 - z)."""

  def forward(params: PyTree, x: Image, cond: Cond) -> tuple[Image, Nats]:
    return jax.nn.sigmoid(x), total(jax.nn.log_sigmoid(x) + jax.nn.log_sigmoid(-x))

  def inverse(params: PyTree, z: Image, cond: Cond) -> Image:
    return jnp.log(z) - jnp.log1p(-z)

  return single(lambda rng, x, cond: {}, forward, inverse)
