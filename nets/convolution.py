"""The convolution of all networks, with gradients that are products on CPUs.

XLA writes both gradients of a convolution as convolutions. The weights' has a picture
for its kernel, for which a CPU takes two to five times as long as for a product of
matrices, and a hundred times inside a loop. Accelerators keep XLA's.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

# Pixels a product is of: they and their neighbours stay in the cache of one core.
PIXELS = 1024


@jax.custom_vjp
def conv(
  x: Float[Array, "b h w i"], kernel: Float[Array, "k k i o"]
) -> Float[Array, "b h w o"]:
  """y_pqo = sum_uvi x_(p+u-r)(q+v-r)i K_uvio, r = (k - 1) / 2, with zeros around.

  The sides k are odd. Of any order in reverse mode; there is no forward mode.
  """
  return _same(x, kernel)


def _forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
  return conv(x, kernel), (x, kernel)


def _backward(saved: tuple[Array, Array], slope: ArrayLike) -> tuple[Array, Array]:
  # Outside of a compiled function the slope is what the caller gave.
  (x, kernel), slope = saved, jnp.asarray(slope)
  turned = kernel[::-1, ::-1].swapaxes(2, 3)
  return conv(slope, turned), kernel_slope(x, slope, kernel.shape[0])


conv.defvjp(_forward, _backward)


def kernel_slope(
  x: Float[Array, "b h w i"], slope: Float[Array, "b h w o"], k: int
) -> Float[Array, "{k} {k} i o"]:
  """What <slope, conv(x, K)> changes by with K: sum_bpq x_(p+u-r)(q+v-r)i slope_pqo."""

  def native(x: Array, slope: Array) -> Array:
    shape = (k, k, x.shape[-1], slope.shape[-1])
    (kernel,) = jax.linear_transpose(
      lambda kernel: _same(x, kernel), jax.ShapeDtypeStruct(shape, x.dtype)
    )(slope)
    return kernel

  def products(x: Array, slope: Array) -> Array:
    def add(total: Array, part: tuple[Array, Array]) -> tuple[Array, None]:
      return total + _product(*part, k), None

    exact = jnp.promote_types(x.dtype, jnp.float32)
    zeros = jnp.zeros((k, k, x.shape[-1], slope.shape[-1]), exact)
    total, _ = jax.lax.scan(add, zeros, (_cut(x, x), _cut(slope, x)))
    return total.astype(x.dtype)

  return jax.lax.platform_dependent(x, slope, cpu=products, default=native)


def _product(x: Array, slope: Array, k: int) -> Array:
  """x moved by some of u and v times the slope moved back by the others.

  Which, depends on which copies are the smallest.
  """
  i, o, r = x.shape[-1], slope.shape[-1], k // 2
  both = [(u, v) for u in range(-r, r + 1) for v in range(-r, r + 1)]
  row, column = [(0, v) for _, v in both[:k]], [(u, 0) for u, _ in both[::k]]
  none = [(0, 0)]
  own, others = min(
    (both, none),
    (row, column),
    (none, both),
    key=lambda s: i * len(s[0]) + o * len(s[1]),
  )
  x, slope = _moved(x, own), _moved(slope, [(-u, -v) for u, v in others])
  y = _product_over_rows(x, slope)
  if own is not row:
    y = y.reshape(len(own), i, len(others), o)
    return y.transpose(0, 2, 1, 3).reshape(k, k, i, o)
  return y.reshape(k, i, k, o).transpose(2, 0, 1, 3)


def _product_over_rows(x: Array, y: Array) -> Array:
  """x^T y, written so that the wider one is the second: 1.7 times as fast."""
  if x.shape[-1] > y.shape[-1]:
    return jax.lax.optimization_barrier(_product_over_rows(y, x)).T
  form = (((0,), (0,)), ((), ()))
  exact = jnp.promote_types(x.dtype, jnp.float32)
  return jax.lax.dot_general(x, y, form, preferred_element_type=exact)


def _moved(x: Array, by: list[tuple[int, int]]) -> Array:
  """Each pixel's channels with those of the pixels at these places from it."""
  _, h, w, _ = x.shape
  r = max(abs(step) for move in by for step in move)
  x = jnp.pad(x, ((0, 0), (r, r), (r, r), (0, 0)))
  views = [x[:, r + u : r + u + h, r + v : r + v + w] for u, v in by]
  y = jnp.concatenate(views, -1)
  return y.reshape(-1, y.shape[-1])


def by_parts(
  fn: Callable[[Array, Array], Array], x: Float[Array, "b h w c"], kernel: Array
) -> Array:
  """fn(x, kernel), of few examples at a time, here and in its gradients."""
  y = jax.lax.map(jax.checkpoint(lambda part: fn(part, kernel)), _cut(x, x))
  return y.reshape(len(x), *y.shape[2:])


def _cut(a: Array, x: Array) -> Array:
  """[parts, examples, ...], with as many examples as have `PIXELS` in x."""
  b, h, w, _ = x.shape
  some = next(n for n in range(max(PIXELS // (h * w), 1), 0, -1) if b % n == 0)
  return a.reshape(b // some, some, *a.shape[1:])


def _same(x: Array, kernel: Array) -> Array:
  form = ("NHWC", "HWIO", "NHWC")
  return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=form)
