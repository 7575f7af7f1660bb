"""Runge-Kutta methods: explicit ones of equal steps, and an adaptive one.

Dormand and Prince's method, `rk45`, has a step size for every example.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from core.noise import per_example

Field = Callable[[PyTree, Float[Array, " n"]], PyTree]  # (y, t) -> dy/dt


class Tableau(NamedTuple):
  """An explicit Runge-Kutta method (Hairer, Norsett & Wanner 1993, section II.1).

  k_i = f(y + h sum_j a_ij k_j, t + c_i h),  y(t + h) = y + h sum_i b_i k_i.
  """

  a: tuple[tuple[float, ...], ...]
  b: tuple[float, ...]
  c: tuple[float, ...]


TABLEAUS = {
  "euler": Tableau(a=((0.0,),), b=(1.0,), c=(0.0,)),
  # The trapezoidal one (Karras et al. 2022, algorithm 1).
  "heun": Tableau(a=((0.0, 0.0), (1.0, 0.0)), b=(0.5, 0.5), c=(0.0, 1.0)),
  "rk4": Tableau(
    a=(
      (0.0, 0.0, 0.0, 0.0),
      (0.5, 0.0, 0.0, 0.0),
      (0.0, 0.5, 0.0, 0.0),
      (0.0, 0.0, 1.0, 0.0),
    ),
    b=(1 / 6, 1 / 3, 1 / 3, 1 / 6),
    c=(0.0, 0.5, 0.5, 1.0),
  ),
}


def fixed(
  f: Field,
  y0: PyTree[Float[Array, "n ..."]],
  t0: float,
  t1: float,
  *,
  method: str,
  steps: int,
  show: Callable[[PyTree], PyTree] = lambda y: (),
) -> tuple[PyTree[Float[Array, "n ..."]], PyTree]:
  """y(t1) of dy/dt = f(y, t) by equal steps, and `show` of y after each [steps ...].

  The result has a gradient, for whose sake only y at each step is kept and all else is
  computed again. One loop; f is compiled once.

  Args:
    f: (y, t [n]) -> dy/dt, as y.
    y0: the start; every leaf leads with n.
    t0: where it starts; may be above t1.
    t1: where it ends.
    method: a name of `TABLEAUS`.
    steps: how many.
    show: y -> what is wanted of it.
  """
  first = jax.tree.leaves(y0)[0]
  n, dtype, h = first.shape[0], first.dtype, (t1 - t0) / steps
  a, b, c = (jnp.asarray(part, dtype) for part in TABLEAUS[method])
  size = jnp.full(n, h, dtype)

  def step(y: PyTree, i: Array) -> tuple[PyTree, PyTree]:
    def stage(k: PyTree, j: Array) -> tuple[PyTree, None]:
      t = jnp.full(n, t0 + (i + c[j]) * h, dtype)
      new = f(moved(y, size, weighted(a[j], k)), t)
      return jax.tree.map(lambda k, new: k.at[j].set(new), k, new), None

    k = jax.tree.map(lambda y: jnp.zeros((len(b), *y.shape), y.dtype), y)
    k, _ = jax.lax.scan(stage, k, jnp.arange(len(b)))
    y = moved(y, size, weighted(b, k))
    return y, show(y)

  # The loop itself keeps what is the same from being computed once.
  light = jax.checkpoint(step, prevent_cse=False)
  return jax.lax.scan(light, y0, jnp.arange(steps))


# Dormand & Prince 1980; Hairer, Norsett & Wanner 1993, table II.5.2. The last row of A
# is the weights of order 5, so the last stage is the first of the next step; E is their
# difference from the weights of order 4.
A = (
  (0, 0, 0, 0, 0, 0, 0),
  (1 / 5, 0, 0, 0, 0, 0, 0),
  (3 / 40, 9 / 40, 0, 0, 0, 0, 0),
  (44 / 45, -56 / 15, 32 / 9, 0, 0, 0, 0),
  (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729, 0, 0, 0),
  (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656, 0, 0),
  (35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84, 0),
)
C = (0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1, 1)
E = (71 / 57600, 0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)
ORDER, SAFETY, SHRINK, GROW = 5, 0.9, 0.2, 10.0

Tolerance = Float[Array, ""] | float
# (what was seen, y, dy/dt, t) -> what is seen: at the start of each attempted step, and
# at the end.
Watch = Callable[[PyTree, PyTree, PyTree, Float[Array, " n"]], PyTree]


class State(NamedTuple):
  """Of each example: where it is, its slope there, its next step and its history."""

  t: Float[Array, " n"]
  y: PyTree[Float[Array, "n ..."]]
  slope: PyTree[Float[Array, "n ..."]]
  size: Float[Array, " n"]  # of the next step, 0 or more
  active: Bool[Array, " n"]
  rejected: Bool[Array, " n"]  # the last attempt
  nfe: Int[Array, " n"]
  seen: PyTree
  attempts: Int[Array, ""]


def rk45(
  f: Field,
  y0: PyTree[Float[Array, "n ..."]],
  t0: Float[Array, "#n"],
  t1: Float[Array, "#n"],
  *,
  rtol: Tolerance,
  atol: Tolerance,
  max_steps: int,
) -> tuple[PyTree[Float[Array, "n ..."]], Int[Array, " n"]]:
  """y(t1) of dy/dt = f(y, t), and how often f was called for each example.

  Error estimate and control are Hairer, Norsett & Wanner 1993, section II.4 (eqs. 4.11
  to 4.14, there the first step too), as in scipy's RK45: a step is taken if the root
  mean square of error / (atol + rtol max(|y|, |y'|)) over the example is below 1, and
  the next is 0.9 / norm^(1/5) times as long, within [0.2, 10]. Every example has its
  own time and step, so its result does not depend on the others. One `while_loop`; f
  is compiled twice.

  Args:
    f: (y, t [n]) -> dy/dt, as y.
    y0: the start; every leaf leads with n.
    t0: where it starts, one for all or one for each; may be above t1.
    t1: where it ends.
    rtol: relative tolerance.
    atol: absolute tolerance.
    max_steps: attempts, taken or not. An example that has not arrived by then, or whose
      step has become too small for its time to move, is NaN.
  """
  y, nfe, _ = watched(
    f, y0, t0, t1, lambda *_: (), (), rtol=rtol, atol=atol, max_steps=max_steps
  )
  return y, nfe


def watched(
  f: Field,
  y0: PyTree[Float[Array, "n ..."]],
  t0: Float[Array, "#n"],
  t1: Float[Array, "#n"],
  watch: Watch,
  seen: PyTree,
  *,
  rtol: Tolerance,
  atol: Tolerance,
  max_steps: int,
) -> tuple[PyTree[Float[Array, "n ..."]], Int[Array, " n"], PyTree]:
  """`rk45`, with what `watch` has seen on the way, from `seen` on."""
  first = jax.tree.leaves(y0)[0]
  n, dtype = first.shape[0], first.dtype
  t0, t1 = (jnp.broadcast_to(jnp.asarray(t, dtype), (n,)) for t in (t0, t1))
  forward = jnp.sign(t1 - t0)
  a, c, e = (jnp.asarray(part, dtype) for part in (A, C, E))

  def attempt(state: State) -> State:
    left = jnp.abs(t1 - state.t)
    size = jnp.where(state.active, jnp.minimum(state.size, left), 0.0)
    h = forward * size
    k = jax.tree.map(
      lambda s: jnp.zeros((len(C), *s.shape), s.dtype).at[0].set(s), state.slope
    )

    def stage(carry: tuple, i: Array) -> tuple[tuple, None]:
      k, _ = carry
      y = moved(state.y, h, weighted(a[i], k))
      new = f(y, state.t + c[i] * h)
      return (jax.tree.map(lambda k, new: k.at[i].set(new), k, new), y), None

    (k, y), _ = jax.lax.scan(stage, (k, state.y), jnp.arange(1, len(C)))
    error = weighted(e, k)
    scale = jax.tree.map(
      lambda p, q: atol + rtol * jnp.maximum(jnp.abs(p), jnp.abs(q)), state.y, y
    )
    off = size * rms(jax.tree.map(jnp.divide, error, scale))
    good = state.active & (off < 1)  # NaN is not
    factor = jnp.clip(SAFETY * off ** (-1 / ORDER), SHRINK, GROW)
    factor = jnp.where(jnp.isnan(off), SHRINK, factor)
    # A step that was just found too long is not made longer at once.
    factor = jnp.where(state.rejected, jnp.minimum(factor, 1.0), factor)
    arrived = size >= left
    t = jnp.where(good, jnp.where(arrived, t1, state.t + h), state.t)
    too_small = ~good & ~(factor * size > 10 * jnp.finfo(dtype).eps * jnp.abs(t))
    return State(
      t=t,
      y=chosen(good, y, state.y),
      slope=chosen(good, jax.tree.map(lambda k: k[-1], k), state.slope),
      size=jnp.where(state.active, factor * size, state.size),
      active=state.active & ~(good & arrived) & ~too_small,
      rejected=~good,
      nfe=state.nfe + (len(C) - 1) * state.active,
      seen=watch(state.seen, state.y, state.slope, state.t),
      attempts=state.attempts + 1,
    )

  size, slope = first_step(f, y0, t0, t1, rtol=rtol, atol=atol)
  away = t0 != t1
  state = State(
    t=t0,
    y=y0,
    slope=slope,
    size=size,
    active=away,
    rejected=jnp.zeros(n, bool),
    nfe=2 * away.astype(jnp.int32),
    seen=seen,
    attempts=jnp.zeros((), jnp.int32),
  )
  state = jax.lax.while_loop(
    lambda s: jnp.any(s.active) & (s.attempts < max_steps), attempt, state
  )
  lost = jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), state.y)
  seen = watch(state.seen, state.y, state.slope, state.t)
  return chosen(state.t == t1, state.y, lost), state.nfe, seen


def filmed(
  f: Field,
  y0: Float[Array, "n ..."],
  t0: Float[Array, "#n"],
  t1: Float[Array, "#n"],
  frames: int,
  *,
  rtol: Tolerance,
  atol: Tolerance,
  max_steps: int,
) -> tuple[Float[Array, "{frames} n ..."], Int[Array, " n"]]:
  """`rk45` at equal times, the last t1, for no more calls of f.

  Between its steps y is the cubic with their values and slopes (Hermite's; Hairer,
  Norsett & Wanner 1993, eq. II.6.7).
  """
  n, dtype = y0.shape[0], y0.dtype
  t0, t1 = (jnp.broadcast_to(jnp.asarray(t, dtype), (n,)) for t in (t0, t1))
  times = t0 + (t1 - t0) * jnp.arange(1, frames + 1, dtype=dtype)[:, None] / frames

  def watch(seen: PyTree, y: Array, slope: Array, t: Array) -> PyTree:
    film, y0, slope0, before = seen
    h = t - before
    between = ((times - before) * h > 0) & ((t - times) * h >= 0)
    u = (times - before) / jnp.where(h == 0, 1, h)
    u, wide = (jax.vmap(per_example, (0, None))(a, y) for a in (u, between))
    h = per_example(h, y)
    bend = (1 - 2 * u) * (y - y0) + (u - 1) * h * slope0 + u * h * slope
    at_times = (1 - u) * y0 + u * y + u * (u - 1) * bend
    return jnp.where(wide, at_times, film), y, slope, t

  blank = jnp.full((frames, *y0.shape), jnp.nan, dtype)
  y, nfe, (film, *_) = watched(
    f,
    y0,
    t0,
    t1,
    watch,
    (blank, y0, jnp.zeros_like(y0), t0),
    rtol=rtol,
    atol=atol,
    max_steps=max_steps,
  )
  return film.at[-1].set(y), nfe


def first_step(
  f: Field,
  y0: PyTree[Float[Array, "n ..."]],
  t0: Float[Array, " n"],
  t1: Float[Array, " n"],
  *,
  rtol: Tolerance,
  atol: Tolerance,
) -> tuple[Float[Array, " n"], PyTree[Float[Array, "n ..."]]]:
  """(the size of the first step, the slope at t0), for two calls of f.

  Hairer, Norsett & Wanner 1993, section II.4, "starting step size": one explicit Euler
  step, small beside |y| / |y'|, tells the second derivative.
  """
  span = jnp.abs(t1 - t0)
  scale = jax.tree.map(lambda y: atol + rtol * jnp.abs(y), y0)

  def size_of(a: PyTree) -> Float[Array, " n"]:
    return rms(jax.tree.map(jnp.divide, a, scale))

  def probe(carry: tuple, _: None) -> tuple[tuple, PyTree]:
    slope, size = carry
    h = jnp.sign(t1 - t0) * size
    slope = f(moved(y0, h, slope), t0 + h)
    d0, d1 = size_of(y0), size_of(slope)
    small = (d0 < 1e-5) | (d1 < 1e-5)
    size = jnp.where(small, 1e-6, 0.01 * d0 / jnp.where(small, 1.0, d1))
    return (slope, jnp.minimum(size, span)), (slope, jnp.minimum(size, span))

  start = (jax.tree.map(jnp.zeros_like, y0), jnp.zeros_like(span))
  _, (slopes, sizes) = jax.lax.scan(probe, start, length=2)
  slope, size = jax.tree.map(lambda a: a[0], (slopes, sizes))
  bend = size_of(jax.tree.map(lambda s: s[1] - s[0], slopes)) / jnp.where(
    size > 0, size, 1.0
  )
  steep = jnp.maximum(size_of(slope), bend)
  best = (0.01 / jnp.where(steep > 1e-15, steep, 1.0)) ** (1 / ORDER)
  best = jnp.where(steep > 1e-15, best, jnp.maximum(1e-6, size * 1e-3))
  return jnp.minimum(jnp.minimum(100 * size, best), span), slope


def moved(y: PyTree, h: Float[Array, " n"], slope: PyTree) -> PyTree:
  """y + h slope."""
  return jax.tree.map(lambda y, s: y + per_example(h, y) * s, y, slope)


def weighted(weights: Float[Array, " k"], stages: PyTree) -> PyTree:
  """The sum over stages of weight times slope."""
  return jax.tree.map(lambda k: jnp.tensordot(weights.astype(k.dtype), k, 1), stages)


def chosen(mask: Bool[Array, " n"], yes: PyTree, no: PyTree) -> PyTree:
  """`yes` for the examples in the mask, `no` for the others."""

  def pick(yes: Array, no: Array) -> Array:
    return jnp.where(mask.reshape(-1, *(1,) * (yes.ndim - 1)), yes, no)

  return jax.tree.map(pick, yes, no)


def rms(tree: PyTree[Float[Array, "n ..."]]) -> Float[Array, " n"]:
  """The root mean square of all that belongs to an example."""
  leaves = [leaf.reshape(leaf.shape[0], -1) for leaf in jax.tree.leaves(tree)]
  total = sum(jnp.sum(leaf**2, axis=1) for leaf in leaves)
  return jnp.sqrt(total / sum(leaf.shape[1] for leaf in leaves))
