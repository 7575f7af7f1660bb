"""Continuous flows: z = x + the integral of f(x_t, t) from t = 0 to 1.

Any network that is smooth may be f: x_t moves through different points at any t, so the
flow has an inverse, the same integral backwards, and d log |det dx_t/dx| / dt is the
divergence of f, the trace of its Jacobian (Chen et al. 2018, arXiv:1806.07366, eq. 8).
"""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree

from core import ode
from core.levels import total
from flows.bijector import Bijector, Image, Nats
from text.cond import Cond, guide

MAX_ATTEMPTS = 10_000  # steps of rk45

# (params, x, t, encoded Cond) -> dx/dt.
Net = Callable[[PyTree, Image, Nats, Cond], Image]
# One or more directions in which the Jacobian is looked at.
Directions = Float[Array, "k b h w c"]


class Solver(NamedTuple):
  """How an integral is taken.

  Attributes:
    method: rk45, or a name of `core.ode.TABLEAUS`.
    steps: of all methods but rk45.
    rtol, atol: tolerances of rk45, relative and absolute.
  """

  method: str = "rk45"
  steps: int = 0
  rtol: float = 1e-5
  atol: float = 1e-5


class Way(NamedTuple):
  """Where x has gone, and what was added up on the way; see `rates`."""

  z: Image
  logdet: Nats
  kinetic: Nats
  jacobian: Nats


def rates(
  velocity: Callable[[Image, Nats], Image],
  x: Image,
  t: Nats,
  directions: Directions,
  reduce: Literal["mean", "sum"],
) -> Way:
  """d/dt of all of a `Way`: f, tr J, |f|^2 / 2 and |J|^2, J the Jacobian of f in x.

  With `mean` over random signs e, tr J is the mean of e . J e (Hutchinson's estimate;
  Grathwohl et al. 2019, arXiv:1810.01367, section 3.1) and |J|^2, the sum of its
  squares, the mean of |e J|^2; with `sum` over `basis` both are exact.
  """
  value, pull = jax.vjp(lambda x: velocity(x, t), x)

  def look(e: Image) -> tuple[Nats, Nats]:
    (pulled,) = pull(e)
    return total(e * pulled), total(pulled**2)

  found = jax.lax.map(look, directions)
  trace, squares = jax.tree.map(lambda a: getattr(a, reduce)(0), found)
  return Way(value, trace, total(value**2) / 2, squares)


def basis(x: Image) -> Directions:
  """Every direction by itself: the trace is exact, for a derivative a number."""
  dims = math.prod(x.shape[1:])
  one = jnp.eye(dims, dtype=x.dtype).reshape(dims, 1, *x.shape[1:])
  return jnp.broadcast_to(one, (dims, *x.shape))


def signs(keys: Key[Array, " b"], x: Image, probes: int) -> Directions:
  """`probes` draws of +1 and -1 for each number, the same on the whole way."""

  def draw(key: Key[Array, ""]) -> Float[Array, "k h w c"]:
    return jax.random.rademacher(key, (probes, *x.shape[1:]), x.dtype)

  return jax.vmap(draw)(keys).swapaxes(0, 1)


def move(
  velocity: Callable[[Image, Nats], Image],
  x: Image,
  solver: Solver,
  directions: Directions | None = None,
  *,
  costs: bool = False,
) -> Way:
  """The flow from x, with its log-determinant.

  Args:
    velocity: (x, t) -> dx/dt.
    x: where it starts at t = 0.
    solver: of the integral; only those of equal steps have a gradient.
    directions: `signs`; None for the exact trace.
    costs: whether `kinetic` and `jacobian` are wanted; else they are 0.
  """
  exact = directions is None
  looked = basis(x) if exact else directions
  blank = jnp.zeros(len(x), x.dtype)
  start = Way(x, blank, blank, blank)[: 4 if costs else 2]

  def slope(state: tuple, t: Nats) -> tuple:
    found = rates(velocity, state[0], t, looked, "sum" if exact else "mean")
    return tuple(found)[: len(state)]

  if solver.method == "rk45":
    end, _ = ode.rk45(
      slope,
      start,
      jnp.zeros(1),
      jnp.ones(1),
      rtol=solver.rtol,
      atol=solver.atol,
      max_steps=MAX_ATTEMPTS,
    )
  else:
    end, _ = ode.fixed(slope, start, 0.0, 1.0, method=solver.method, steps=solver.steps)
  return Way(*end, *[blank] * (4 - len(end)))


def travel(
  velocity: Callable[[Image, Nats], Image],
  x: Image,
  solver: Solver,
  stages: int,
  *,
  start: float = 1.0,
) -> tuple[Float[Array, "{stages} b h w c"], Int[Array, " b"]]:
  """(x_t at `stages` times from x to the other end; calls of the velocity).

  The times are equal, or, of a solver of equal steps, those of its steps that come
  next. Backwards from z at t = 1, or forwards if `start` is 0.
  """
  end = 1 - start
  if solver.method == "rk45":
    return ode.filmed(
      velocity,
      x,
      jnp.full(1, start),
      jnp.full(1, end),
      stages,
      rtol=solver.rtol,
      atol=solver.atol,
      max_steps=MAX_ATTEMPTS,
    )
  method, steps = solver.method, solver.steps
  _, film = ode.fixed(
    velocity, x, start, end, method=method, steps=steps, show=lambda x: x
  )
  places = [-(-(i + 1) * steps // stages) - 1 for i in range(stages)]
  calls = steps * len(ode.TABLEAUS[method].c)
  return film[jnp.asarray(places)], jnp.full(len(x), calls, jnp.int32)


def at(
  net: Net, params: PyTree, cond: Cond, guidance_scale: float = 1.0
) -> Callable[[Image, Nats], Image]:
  """The velocity under a condition, (x, t) -> dx/dt.

  Guided, it is null + guidance_scale (own - null), of a `Cond.with_null`, as
  classifier-free guidance has it of a diffusion's.
  """
  if guidance_scale == 1:
    return lambda x, t: net(params, x, t, cond)

  def guided(x: Image, t: Nats) -> Image:
    both = net(params, jnp.concatenate([x, x]), jnp.concatenate([t, t]), cond)
    return guide(both, guidance_scale)

  return guided


def continuous(
  init: Callable[[Array, Image, Cond], PyTree],
  net: Net,
  solver: Solver,
  *,
  guidance_scale: float = 1.0,
  stages: int = 1,
) -> Bijector:
  """The flow as a bijector, with the exact trace: one derivative a number.

  Args:
    init: (rng, x, cond) -> params of the network.
    net: the velocity.
    solver: of the integral, there and back.
    guidance_scale: of the inverse; see `at`.
    stages: of the path, at equal times.
  """

  def start(rng: Array, x: Image, cond: Cond) -> tuple[PyTree, Image]:
    params = init(rng, x, cond)
    return params, forward(params, x, cond)[0]

  def forward(params: PyTree, x: Image, cond: Cond) -> tuple[Image, Nats]:
    found = move(at(net, params, cond), x, solver)
    return found.z, found.logdet

  def path(params: PyTree, z: Image, cond: Cond) -> Float[Array, "k b h w c"]:
    return travel(at(net, params, cond, guidance_scale), z, solver, stages)[0]

  def inverse(params: PyTree, z: Image, cond: Cond) -> Image:
    return travel(at(net, params, cond, guidance_scale), z, solver, 1)[0][-1]

  return Bijector(start, forward, inverse, path)
