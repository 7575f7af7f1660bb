"""`nets/convolution.py` against the gradients that XLA makes of its own convolution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nets import convolution, layers
from nets.convolution import conv, kernel_slope


def native(x, kernel):
  form = ("NHWC", "HWIO", "NHWC")
  return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=form)


def operands(k, i, o, shape=(6, 5, 7), dtype=jnp.float32):
  draw = np.random.default_rng(0).standard_normal
  arrays = draw((*shape, i)), draw((k, k, i, o)), draw((*shape, o))
  return [jnp.asarray(a, dtype) for a in arrays]


# With these widths copies are of the input, of both, and of the slope.
WIDTHS = [(1, 16), (4, 5), (16, 1)]


@pytest.mark.parametrize(("i", "o"), WIDTHS)
@pytest.mark.parametrize("k", [1, 3, 5])
def test_value_and_gradients_are_those_of_xla(k, i, o):
  x, kernel, slope = operands(k, i, o)
  values = [jax.vjp(fn, x, kernel) for fn in (conv, native)]
  np.testing.assert_array_equal(values[0][0], values[1][0])
  for ours, xla in zip(values[0][1](slope), values[1][1](slope), strict=True):
    np.testing.assert_allclose(ours, xla, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("i", "o"), WIDTHS)
def test_gradient_of_a_gradient_is_that_of_xla(i, o):
  """As in the penalties of critics."""
  x, kernel, slope = operands(3, i, o)

  def penalty(fn, kernel):
    return jnp.sum(jax.grad(lambda x: jnp.sum(slope * jnp.tanh(fn(x, kernel))))(x) ** 2)

  ours, xla = (
    jax.grad(lambda k, fn=fn: penalty(fn, k))(kernel) for fn in (conv, native)
  )
  np.testing.assert_allclose(ours, xla, rtol=1e-3, atol=1e-3)


def test_a_slope_may_be_numpys():
  x, kernel, slope = operands(3, 4, 5)
  found = jax.vjp(conv, x, kernel)[1](np.asarray(slope))
  for a, b in zip(found, jax.vjp(native, x, kernel)[1](slope), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_kernel_slope_by_hand():
  """One pixel in, one out: the only tap that joins them."""
  x, slope = jnp.zeros((1, 4, 4, 1)), jnp.zeros((1, 4, 4, 1))
  found = kernel_slope(x.at[0, 1, 2, 0].set(2.0), slope.at[0, 2, 1, 0].set(3.0), 3)
  expected = np.zeros((3, 3))
  expected[0, 2] = 6.0  # the output looks a row up and a column to the right
  np.testing.assert_array_equal(found[..., 0, 0], expected)


@pytest.mark.parametrize("pixels", [1, 70, 1000])
def test_how_many_pixels_go_together_changes_nothing(monkeypatch, pixels):
  x, _, slope = operands(3, 4, 5)
  whole = kernel_slope(x, slope, 3)
  monkeypatch.setattr(convolution, "PIXELS", pixels)
  np.testing.assert_allclose(kernel_slope(x, slope, 3), whole, rtol=1e-5, atol=1e-5)


def test_half_precision_adds_up_in_float32():
  x, kernel, slope = operands(3, 4, 5, (64, 8, 8), jnp.bfloat16)
  found = jax.vjp(conv, x, kernel)[1](slope)[1]
  exact = jax.vjp(native, *(a.astype(jnp.float32) for a in (x, kernel)))[1](
    slope.astype(jnp.float32)
  )[1]
  assert found.dtype == jnp.bfloat16
  np.testing.assert_allclose(found.astype(jnp.float32), exact, rtol=1e-2, atol=0.1)


def test_a_layer_with_a_stride_is_xlas():
  x, kernel, _ = operands(3, 4, 5, (2, 8, 8))
  layer = layers.Conv(5, strides=2, use_bias=False)
  found = layer.apply({"params": {"kernel": kernel}}, x)
  np.testing.assert_allclose(
    found, native(x, kernel)[:, ::2, ::2], rtol=1e-4, atol=1e-4
  )
