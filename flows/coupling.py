"""Coupling layers: one part of the numbers tells how to change the other.

Dinh et al. 2015 (NICE, arXiv:1410.8516), section 3.2; Dinh et al. 2017 (RealNVP,
arXiv:1605.08803), section 3.2: z_1 = x_1, z_2 = g(x_2; net(x_1)), where g changes every
number by itself, so the Jacobian is triangular and the inverse needs no inverse of the
network.
"""

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from core.levels import total
from flows.bijector import Bijector, Half, Image, Nats, single
from text.cond import Cond, guide

Raw = Float[Array, "b h w r"]


class Elementwise(NamedTuple):
  """A monotone map of single numbers, g(x; raw); see `flows/elementwise.py`.

  Attributes:
    size: raw numbers that each number needs; those of one number lie side by side.
    forward: (x, raw [b h w c*size]) -> (z, log dz/dx of each number).
    inverse: (z, raw) -> x.
  """

  size: int
  forward: Callable[[Image, Raw], tuple[Image, Image]]
  inverse: Callable[[Image, Raw], Image]


# How many channels it gives -> a network (x, encoded Cond) -> [b, h, w, channels].
MakeNet = Callable[[int], nn.Module]


def guided(
  net: nn.Module,
  params: PyTree,
  x: Image,
  cond: Cond,
  guidance_scale: float | int = 1.0,
) -> Raw:
  """The network's output as precise as x, extrapolated from the null condition's.

  With a scale of 1 just the output. Else `cond` holds the condition and then the null
  one (`Cond.with_null`), and raw = null + guidance_scale (own - null), as Zhai et al.
  2024 (TarFlow, arXiv:2412.06329) guide the means and scales of their layers.
  """
  if guidance_scale == 1:
    return net.apply({"params": params}, x, cond).astype(x.dtype)
  twice = jnp.concatenate([x, x])
  both = net.apply({"params": params}, twice, cond).astype(x.dtype)
  return guide(both, guidance_scale)


def coupling(
  g: Elementwise, make_net: MakeNet, guidance_scale: float | int = 1.0
) -> Bijector:
  """The first half of the channels, rounded up, tells how to change the others.

  Args:
    g: what is done to each number.
    make_net: of the first half.
    guidance_scale: of the inverse, when it draws; see `guided`.
  """

  def parts(x: Image) -> tuple[Half, Half, nn.Module]:
    first, second = jnp.split(x, [-(-x.shape[-1] // 2)], axis=-1)
    return first, second, make_net(second.shape[-1] * g.size)

  def init(rng: Array, x: Image, cond: Cond) -> PyTree:
    first, _, net = parts(x)
    return net.init(rng, first, cond)["params"]

  def forward(params: PyTree, x: Image, cond: Cond) -> tuple[Image, Nats]:
    first, second, net = parts(x)
    z, logs = g.forward(second, guided(net, params, first, cond))
    return jnp.concatenate([first, z], axis=-1), total(logs)

  def inverse(params: PyTree, z: Image, cond: Cond) -> Image:
    first, second, net = parts(z)
    x = g.inverse(second, guided(net, params, first, cond, guidance_scale))
    return jnp.concatenate([first, x], axis=-1)

  return single(init, forward, inverse)


def masked_coupling(
  g: Elementwise,
  make_net: MakeNet,
  mask: Float[Array, "h w 1"],
  guidance_scale: float | int = 1.0,
) -> Bijector:
  """z = m x + (1 - m) g(x; net(m x)): RealNVP, eq. 9.

  Args:
    g: what is done to each number.
    make_net: of the whole picture, blank where the mask is 0.
    mask: 1 where the picture stays, 0 where it is changed.
    guidance_scale: as in `coupling`.
  """

  def init(rng: Array, x: Image, cond: Cond) -> PyTree:
    net = make_net(x.shape[-1] * g.size)
    return net.init(rng, mask * x, cond)["params"]

  def forward(params: PyTree, x: Image, cond: Cond) -> tuple[Image, Nats]:
    net = make_net(x.shape[-1] * g.size)
    z, logs = g.forward(x, guided(net, params, mask * x, cond))
    return mask * x + (1 - mask) * z, total((1 - mask) * logs)

  def inverse(params: PyTree, z: Image, cond: Cond) -> Image:
    net = make_net(z.shape[-1] * g.size)
    x = g.inverse(z, guided(net, params, mask * z, cond, guidance_scale))
    return mask * z + (1 - mask) * x

  return single(init, forward, inverse)


class FromCond(nn.Module):
  """`channels` numbers a picture, linear in the encoded condition, 0 at first."""

  channels: int

  @nn.compact
  def __call__(self, x: Image, cond: Cond) -> Float[Array, "b h w {self.channels}"]:
    """The same at every place of x."""
    raw = jnp.zeros((1, self.channels))
    if cond.pooled is not None:
      raw = nn.Dense(self.channels, kernel_init=nn.initializers.zeros)(cond.pooled)
    return jnp.broadcast_to(raw[:, None, None], (*x.shape[:-1], self.channels))


def prior(g: Elementwise, guidance_scale: float | int = 1.0) -> Bijector:
  """Every channel is changed as the condition says, the same at every place.

  With an affine g, what is left of the picture has a normal prior with a mean and a
  deviation learned for each class or text (Kingma & Dhariwal 2018, section 6).
  """

  def net(x: Image) -> nn.Module:
    return FromCond(x.shape[-1] * g.size)

  def init(rng: Array, x: Image, cond: Cond) -> PyTree:
    return net(x).init(rng, x, cond).get("params", {})

  def forward(params: PyTree, x: Image, cond: Cond) -> tuple[Image, Nats]:
    z, logs = g.forward(x, guided(net(x), params, x, cond))
    return z, total(logs)

  def inverse(params: PyTree, z: Image, cond: Cond) -> Image:
    return g.inverse(z, guided(net(z), params, z, cond, guidance_scale))

  return single(init, forward, inverse)
