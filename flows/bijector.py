"""Bijectors: invertible maps x <-> z that know their Jacobian's determinant.

Each is a record of pure functions of its parameters, as an optax optimizer is, and
bigger ones are made of smaller ones by ordinary functions. All have pictures [b h w c]
on both sides, in one layout from data to noise: a multi-scale flow (Dinh et al. 2017,
arXiv:1605.08803, section 3.6) is a chain whose later maps see only a part of the
picture's numbers (`at_level`), so that every stage can be looked at.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from nets.layers import squeeze, unsqueeze
from text.cond import Cond

Image = Float[Array, "b h w c"]
Half = Float[Array, "b h w _"]  # of the channels
Nats = Float[Array, " b"]


class Bijector(NamedTuple):
  """An invertible map; `cond` is encoded, and its gradient flows.

  Attributes:
    init: (rng, x, cond) -> (params, z); the parameters may follow from the batch.
    forward: (params, x, cond) -> (z, log |det dz/dx|), in nats, float32.
    inverse: (params, z, cond) -> x.
    path: (params, z, cond) -> x at every stage of `inverse` [k b h w c], x the last.
    parts: what a chain is made of.
  """

  init: Callable[[Array, Image, Cond], tuple[PyTree, Image]]
  forward: Callable[[PyTree, Image, Cond], tuple[Image, Nats]]
  inverse: Callable[[PyTree, Image, Cond], Image]
  path: Callable[[PyTree, Image, Cond], Float[Array, "k b h w c"]]
  parts: tuple["Bijector", ...] = ()


def single(
  init: Callable[[Array, Image, Cond], PyTree],
  forward: Callable[[PyTree, Image, Cond], tuple[Image, Nats]],
  inverse: Callable[[PyTree, Image, Cond], Image],
) -> Bijector:
  """A bijector of one stage; init: (rng, x, cond) -> params."""

  def init_both(rng: Array, x: Image, cond: Cond) -> tuple[PyTree, Image]:
    params = init(rng, x, cond)
    return params, forward(params, x, cond)[0]

  def path(params: PyTree, z: Image, cond: Cond) -> Array:
    return inverse(params, z, cond)[None]

  return Bijector(init_both, forward, inverse, path)


def chain(*parts: Bijector) -> Bijector:
  """The parts one after the other, from x to z; log-determinants add up.

  Parameters are a tuple. With f = f_n ... f_1, log |det| of f at x is the sum of those
  of f_i at f_{i-1} ... f_1(x) (Dinh et al. 2015, arXiv:1410.8516, section 3.1).
  """

  def init(rng: Array, x: Image, cond: Cond) -> tuple[PyTree, Image]:
    found = []
    for i, part in enumerate(parts):
      params, x = part.init(jax.random.fold_in(rng, i), x, cond)
      found.append(params)
    return tuple(found), x

  def forward(params: PyTree, x: Image, cond: Cond) -> tuple[Image, Nats]:
    logdet = jnp.zeros(len(x), x.dtype)
    for part, own in zip(parts, params, strict=True):
      x, more = part.forward(own, x, cond)
      logdet += more
    return x, logdet

  def inverse(params: PyTree, z: Image, cond: Cond) -> Image:
    for part, own in zip(parts[::-1], params[::-1], strict=True):
      z = part.inverse(own, z, cond)
    return z

  def path(params: PyTree, z: Image, cond: Cond) -> Array:
    stages = []
    for part, own in zip(parts[::-1], params[::-1], strict=True):
      stages.append(part.path(own, z, cond))
      z = stages[-1][-1]
    return jnp.concatenate(stages)

  return Bijector(init, forward, inverse, path, parts)


def repeat(
  make: Callable[[Int[Array, ""]], Bijector],
  count: int,
  *,
  reversible: bool,
  scan: bool = True,
) -> Bijector:
  """make(0), ..., make(count - 1) in a row, compiled once.

  `make` gets a traced index, so bijectors may differ by a table but not in shape.
  Parameters are stacked, [count, ...].

  Args:
    make: the index -> a bijector.
    count: how many.
    reversible: the backward pass keeps only z and makes each x of it again (Gomez et
      al. 2017, arXiv:1707.04585), so memory does not grow with `count`.
    scan: loop over one compiled bijector; else the loop is unrolled.
  """
  unroll = 1 if scan else count
  steps = jnp.arange(count)

  def init(rng: Array, x: Image, cond: Cond) -> tuple[PyTree, Image]:
    def body(x: Image, i: Array) -> tuple[Image, PyTree]:
      return make(i).init(jax.random.fold_in(rng, i), x, cond)[::-1]

    return jax.lax.scan(body, x, steps)[::-1]

  def forward(params: PyTree, x: Image, cond: Cond) -> tuple[Image, Nats]:
    def body(carry: tuple[Image, Nats], own: tuple) -> tuple[tuple, None]:
      x, logdet = carry
      z, more = make(own[0]).forward(own[1], x, cond)
      return (z, logdet + more), None

    start = (x, jnp.zeros(len(x), x.dtype))
    return jax.lax.scan(body, start, (steps, params), unroll=unroll)[0]

  def light(params: PyTree, x: Image, real: Cond, other: Cond) -> tuple[Image, Nats]:
    return forward(params, x, joined(real, other))

  def kept(
    params: PyTree, x: Image, real: Cond, other: Cond
  ) -> tuple[tuple[Image, Nats], tuple]:
    z, logdet = light(params, x, real, other)
    return (z, logdet), (params, z, real, other)

  def backward(kept: tuple, slopes: tuple[Image, Nats]) -> tuple:
    params, z, real, other = kept
    dz, dlogdet = slopes

    def body(carry: tuple, own: tuple) -> tuple[tuple, PyTree]:
      z, dz, dreal = carry
      x, dparams, dx, more = undo(make(own[0]), own[1], z, (real, other), (dz, dlogdet))
      return (x, dx, jax.tree.map(jnp.add, dreal, more)), dparams

    start = (z, dz, jax.tree.map(jnp.zeros_like, real))
    (_, dx, dreal), dparams = jax.lax.scan(
      body, start, (steps, params), reverse=True, unroll=unroll
    )
    return dparams, dx, dreal, None  # no gradient of what is not real

  def inverse(params: PyTree, z: Image, cond: Cond) -> Image:
    def body(z: Image, own: tuple) -> tuple[Image, None]:
      return make(own[0]).inverse(own[1], z, cond), None

    return jax.lax.scan(body, z, (steps, params), reverse=True, unroll=unroll)[0]

  def path(params: PyTree, z: Image, cond: Cond) -> Array:
    def body(z: Image, own: tuple) -> tuple[Image, Image]:
      return (make(own[0]).inverse(own[1], z, cond),) * 2

    stages = jax.lax.scan(body, z, (steps, params), reverse=True, unroll=unroll)[1]
    return stages[::-1]  # a reversed scan stacks in the order of the steps

  if not reversible:
    return Bijector(init, forward, inverse, path)
  inverted = jax.custom_vjp(light)
  inverted.defvjp(kept, backward)
  return Bijector(
    init, lambda params, x, cond: inverted(params, x, *split(cond)), inverse, path
  )


def undo(
  bijector: Bijector,
  params: PyTree,
  z: Image,
  cond: tuple[Cond, Cond],
  slopes: tuple[Image, Nats],
) -> tuple[Image, PyTree, Image, Cond]:
  """From z and the slopes of a loss in (z, logdet): x, and its slopes before.

  Part by part: so the compiler sees that a coupling's network is the same one for x and
  for the slopes, and runs it once. A masked coupling's runs twice.

  Args:
    bijector: what made z.
    params: its parameters.
    z: its result.
    cond: `split` in two.
    slopes: of the loss, in z and in the log-determinant.

  Returns:
    x, and the slopes in the parameters, in x and in the real part of the condition.
  """
  real, other = cond
  if not bijector.parts:
    x = jax.lax.stop_gradient(bijector.inverse(params, z, joined(real, other)))
    _, pull = jax.vjp(
      lambda params, x, real: bijector.forward(params, x, joined(real, other)),
      params,
      x,
      real,
    )
    return x, *pull(slopes)
  dz, dlogdet = slopes
  found, dreal = [], jax.tree.map(jnp.zeros_like, real)
  for part, own in zip(bijector.parts[::-1], params[::-1], strict=True):
    z, dparams, dz, more = undo(part, own, z, cond, (dz, dlogdet))
    found.append(dparams)
    dreal = jax.tree.map(jnp.add, dreal, more)
  return z, tuple(found[::-1]), dz, dreal


def split(cond: Cond) -> tuple[Cond, Cond]:
  """The numbers that have a gradient, and all else; None in place of the other."""
  real = lambda a: jnp.issubdtype(a.dtype, jnp.floating)  # noqa: E731
  return (
    jax.tree.map(lambda a: a if real(a) else None, cond),
    jax.tree.map(lambda a: None if real(a) else a, cond),
  )


def joined(real: Cond, other: Cond) -> Cond:
  """The inverse of `split`."""
  return jax.tree.map(
    lambda a, b: b if a is None else a, real, other, is_leaf=lambda a: a is None
  )


def squeezed(bijector: Bijector, by: int = 2) -> Bijector:
  """`bijector` between `squeeze` and its inverse."""

  def init(rng: Array, x: Image, cond: Cond) -> tuple[PyTree, Image]:
    params, z = bijector.init(rng, squeeze(x, by), cond)
    return params, unsqueeze(z, by)

  def forward(params: PyTree, x: Image, cond: Cond) -> tuple[Image, Nats]:
    z, logdet = bijector.forward(params, squeeze(x, by), cond)
    return unsqueeze(z, by), logdet

  def inverse(params: PyTree, z: Image, cond: Cond) -> Image:
    return unsqueeze(bijector.inverse(params, squeeze(z, by), cond), by)

  def path(params: PyTree, z: Image, cond: Cond) -> Array:
    stages = bijector.path(params, squeeze(z, by), cond)
    return jax.vmap(lambda x: unsqueeze(x, by))(stages)

  return Bijector(init, forward, inverse, path)


def halved(bijector: Bijector) -> Bijector:
  """`bijector` on the first half of the channels; the others stay as they are."""

  def rejoin(first: Half, x: Image) -> Image:
    return jnp.concatenate([first, x[..., x.shape[-1] // 2 :]], axis=-1)

  def half(x: Image) -> Half:
    return x[..., : x.shape[-1] // 2]

  def init(rng: Array, x: Image, cond: Cond) -> tuple[PyTree, Image]:
    params, z = bijector.init(rng, half(x), cond)
    return params, rejoin(z, x)

  def forward(params: PyTree, x: Image, cond: Cond) -> tuple[Image, Nats]:
    z, logdet = bijector.forward(params, half(x), cond)
    return rejoin(z, x), logdet

  def inverse(params: PyTree, z: Image, cond: Cond) -> Image:
    return rejoin(bijector.inverse(params, half(z), cond), z)

  def path(params: PyTree, z: Image, cond: Cond) -> Array:
    stages = bijector.path(params, half(z), cond)
    return jax.vmap(lambda x: rejoin(x, z))(stages)

  return Bijector(init, forward, inverse, path)


def at_level(bijector: Bijector, level: int) -> Bijector:
  """`bijector` on what is left at a level of a multi-scale flow, 0 being the picture.

  At each level the picture is squeezed, and half of its channels are done with.
  """
  for _ in range(level):
    bijector = squeezed(halved(bijector))
  return bijector
