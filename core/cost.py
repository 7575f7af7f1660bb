"""What a function costs by the compiler's own count, with its loops in full.

This is all that a step does: products, as `core/flops.py` counts them, and norms,
activations, draws and the optimizer besides.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, jaxpr_as_fun


class Cost(NamedTuple):
  """Floating-point operations of one call.

  Attributes:
    always: with the cheapest branch of every `lax.cond`.
    most: with the dearest, as a lazy penalty has it at the updates where it is due.
  """

  always: float
  most: float

  def every(self, n: int) -> float:
    """The mean of n calls of which one takes the dearest branches."""
    return self.always + (self.most - self.always) / n


def count(fn: Callable[..., Any], *args: Any) -> Cost:
  """The operations of fn(*args), of which only the shapes matter.

  It is XLA's cost analysis of the lowered program, so it needs no compilation and is
  the same on every machine; 2 for each multiply-add, those of a convolution without the
  padding. XLA counts the body of a loop once and of a conditional the dearest branch.
  Here a `lax.scan` counts its body `length` times, for which each body is lowered by
  itself, and conditionals have both ends. A `while_loop` of a length that is not known
  counts once.
  """
  shapes = jax.tree.map(jax.typeof, args)
  lowered = jax.jit(fn).lower(*shapes)
  least, most = _corrections(jax.make_jaxpr(fn)(*shapes).jaxpr)
  flops = _of(lowered)
  return Cost(flops + least, flops + most)


def _corrections(jaxpr: Jaxpr) -> tuple[float, float]:
  """What XLA's count of a program is short of, at least and at most."""
  least = most = 0.0
  for eqn in jaxpr.eqns:
    params = eqn.params
    match eqn.primitive.name:
      case "scan":
        own = _alone(params["jaxpr"])
        found = _corrections(params["jaxpr"].jaxpr)
        length, unroll = params["length"], params["unroll"]
        seen = min(length, unroll + length % unroll)  # copies of the body
        more = [length * (own + f) - seen * own for f in found]
      case "cond":
        branches = params["branches"]
        own = [_alone(branch) for branch in branches]
        found = [_corrections(branch.jaxpr) for branch in branches]
        low = min(o + f[0] for o, f in zip(own, found, strict=True))
        high = max(o + f[1] for o, f in zip(own, found, strict=True))
        more = [low - max(own), high - max(own)]
      case _:
        inner = [_corrections(sub) for sub in _inside(params)]
        more = [sum(f[0] for f in inner), sum(f[1] for f in inner)]
    least, most = least + more[0], most + more[1]
  return least, most


def _alone(program: ClosedJaxpr) -> float:
  """XLA's count of a program by itself, 0 if it has no result."""
  if not program.jaxpr.outvars:
    return 0.0
  shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in program.in_avals]
  return _of(jax.jit(jaxpr_as_fun(program)).lower(*shapes))


def _of(lowered: Any) -> float:
  return float((lowered.cost_analysis() or {}).get("flops", 0.0))


def _inside(params: dict[str, Any]) -> Iterator[Jaxpr]:
  """The programs that an operation calls once: those of jit, remat, custom_vjp ..."""
  for value in params.values():
    for item in value if isinstance(value, tuple | list) else (value,):
      if isinstance(item, ClosedJaxpr):
        yield item.jaxpr
      elif isinstance(item, Jaxpr):
        yield item
