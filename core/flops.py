"""Floating-point operations of a function, counted in its jaxpr.

A product of matrices [m, k] and [k, n] takes 2 m n k, a convolution 2 for each product
of an input with a weight; all else is not counted, as is usual for networks. A scan
counts as often as it runs, where XLA's own analysis counts its body once.
"""

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend import core


class Count(NamedTuple):
  """Operations, and whether they are all.

  exact: False if a loop has a length that only its data tell; it is counted once.
  """

  flops: float
  exact: bool = True

  def __add__(self, other: "Count") -> "Count":  # type: ignore[override]
    return Count(self.flops + other.flops, self.exact and other.exact)

  def times(self, n: float | int) -> "Count":
    """As much, n times."""
    return Count(n * self.flops, self.exact)


def of(fn: Callable[..., Any], *args: Any) -> Count:
  """The operations of fn(*args); arguments may be shapes."""
  return of_jaxpr(jax.make_jaxpr(fn)(*args).jaxpr)


def of_jaxpr(jaxpr: core.Jaxpr) -> Count:
  """The operations of all equations of a jaxpr, and of those within them."""
  found = Count(0.0)
  for eqn in jaxpr.eqns:
    found += of_equation(eqn)
  return found


def of_equation(eqn: core.JaxprEqn) -> Count:
  """The operations of one equation."""
  match eqn.primitive.name:
    case "dot_general":
      (contracted, _), _ = eqn.params["dimension_numbers"]
      shape = eqn.invars[0].aval.shape
      inner = math.prod(shape[axis] for axis in contracted)
      return Count(2.0 * inner * eqn.outvars[0].aval.size)
    case "conv_general_dilated":
      return Count(of_convolution(eqn))
    case "scan":
      return _all(eqn).times(eqn.params["length"])
    case "while":
      inner = _all(eqn)
      return inner._replace(exact=inner.exact and not inner.flops)
    case "cond":
      branches = [of_jaxpr(branch.jaxpr) for branch in eqn.params["branches"]]
      # Of forms for several platforms the one with the fewest products is the function.
      pick = min if eqn.params["branches_platforms"] else max
      return pick(branches, key=lambda count: count.flops)
    case _:
      return _all(eqn)


def of_convolution(eqn: core.JaxprEqn) -> float:
  """2 for each product of a number of the input with a weight.

  What only meets padding, or the zeros of a dilated input, is no product.
  """
  left, right = (v.aval.shape for v in eqn.invars)
  out = eqn.outvars[0].aval.shape
  p, dims = eqn.params, eqn.params["dimension_numbers"]
  (batch, features, *space), kernel = dims.out_spec, dims.rhs_spec
  total = 2.0 * out[batch] * out[features] * right[kernel[1]]
  for i, axis in enumerate(space):
    total *= products(
      left[dims.lhs_spec[2 + i]],
      right[kernel[2 + i]],
      out[axis],
      p["window_strides"][i],
      p["padding"][i][0],
      p["lhs_dilation"][i],
      p["rhs_dilation"][i],
    )
  # Batches of a gradient's convolution share its output, as features' groups do.
  return total


@functools.lru_cache(4096)
def products(
  size: int,
  window: int,
  out: int,
  stride: int = 1,
  pad: int = 0,
  dilation: int = 1,
  window_dilation: int = 1,
) -> int:
  """How many pairs (output, tap) of a convolution over one axis meet a number.

  Args:
    size: numbers of the input.
    window: taps.
    out: numbers of the output.
    stride: of the window.
    pad: numbers before the first.
    dilation: of the input, which has dilation - 1 zeros between its numbers.
    window_dilation: of the taps.
  """
  last, found = (size - 1) * dilation, 0
  for tap in range(window):
    # Output i reads place i * stride + shift of the dilated input.
    shift = tap * window_dilation - pad
    if dilation == 1:
      low = max(0, -(shift // stride))  # the first with a place of 0 or more
      high = min(out - 1, (last - shift) // stride)
      found += max(0, high - low + 1)
    else:
      places = np.arange(out) * stride + shift
      real = (places >= 0) & (places <= last) & (places % dilation == 0)
      found += int(real.sum())
  return found


def _all(eqn: core.JaxprEqn) -> Count:
  found = Count(0.0)
  for jaxpr in _inner(eqn.params.values()):
    found += of_jaxpr(jaxpr)
  return found


def _inner(values: Any) -> Iterator[core.Jaxpr]:
  for value in values:
    if isinstance(value, core.ClosedJaxpr):
      yield value.jaxpr
    elif isinstance(value, core.Jaxpr):
      yield value
    elif isinstance(value, tuple | list):
      yield from _inner(value)
