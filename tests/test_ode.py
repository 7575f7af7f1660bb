"""Runge-Kutta methods: their orders, the adaptive one against scipy's."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp

from core.ode import TABLEAUS, rk45


@pytest.fixture(autouse=True)
def _float64():
  with jax.enable_x64(True):
    yield


@pytest.mark.parametrize("name", TABLEAUS)
def test_tableaus_meet_the_order_conditions(name):
  # Hairer, Norsett & Wanner 1993, theorem II.2.1 and table II.2.2, up to order 4.
  a, b, c = (np.asarray(part) for part in TABLEAUS[name])
  np.testing.assert_allclose(a.sum(1), c)
  conditions = [
    [b.sum() - 1],
    [b @ c - 1 / 2],
    [b @ c**2 - 1 / 3, b @ a @ c - 1 / 6],
    [
      b @ c**3 - 1 / 4,
      (b * c) @ a @ c - 1 / 8,
      b @ a @ c**2 - 1 / 12,
      b @ a @ a @ c - 1 / 24,
    ],
  ]
  for met in conditions[: {"euler": 1, "heun": 2, "rk4": 4}[name]]:
    np.testing.assert_allclose(met, 0, atol=1e-12)


# The adaptive one: every example by itself.


def field(y, t):
  """Lotka and Volterra's equations driven by time, and an integral along the way."""
  prey, hunters = y["x"][:, 0], y["x"][:, 1]
  x = jnp.stack([prey * (1.1 - hunters), hunters * (prey - 0.9)], axis=1)
  return {"x": x * (1 + 0.5 * jnp.sin(3 * t))[:, None], "sum": jnp.cos(t) * prey}


def numpy_field(t, y):
  prey, hunters, _ = y
  pace = 1 + 0.5 * np.sin(3 * t)
  rates = [pace * prey * (1.1 - hunters), pace * hunters * (prey - 0.9)]
  return [*rates, np.cos(t) * prey]


STARTS = np.array([[1.0, 1.0, 0.0], [0.2, 2.5, 1.0], [3.0, 0.1, -2.0], [1.5, 0.4, 0.0]])
T0, T1 = np.array([0.0, 1.0, 6.0, 2.0]), np.array([8.0, 1.5, -1.0, 2.0])


@functools.cache
def compiled(max_steps):
  return jax.jit(
    lambda y, t0, t1, rtol: rk45(
      field, y, t0, t1, rtol=rtol, atol=rtol / 10, max_steps=max_steps
    )
  )


def solve(starts, t0, t1, rtol=1e-6, max_steps=1000):
  y = {"x": starts[:, :2], "sum": starts[:, 2]}
  y, nfe = jax.device_get(compiled(max_steps)(y, t0, t1, rtol))
  return np.column_stack([y["x"], y["sum"]]), nfe


def scipys(start, t0, t1, rtol=1e-6, method="RK45"):
  out = solve_ivp(numpy_field, (t0, t1), start, method, rtol=rtol, atol=rtol / 10)
  return out.y[:, -1], out.nfev


@pytest.mark.parametrize("rtol", [1e-3, 1e-6, 1e-10])
def test_each_example_takes_the_steps_of_scipys_rk45(rtol):
  # Forwards, a short way, and backwards, in one batch.
  got, nfe = solve(STARTS, T0, T1, rtol)
  for i in range(3):
    want, calls = scipys(STARTS[i], T0[i], T1[i], rtol)
    assert nfe[i] == calls
    np.testing.assert_allclose(got[i], want, rtol=1e-9, atol=1e-12)


def test_error_falls_with_the_tolerance_at_order_5():
  exact, _ = scipys(STARTS[0], 0.0, 8.0, 1e-13, method="DOP853")
  tolerances = np.array([1e-7, 1e-9, 1e-11])
  ends = [solve(STARTS[:1], T0[:1], T1[:1], rtol) for rtol in tolerances]
  errors = np.array([np.abs(y[0] - exact).max() for y, _ in ends])
  calls = np.array([nfe[0] for _, nfe in ends])
  assert (errors < 100 * tolerances).all(), errors
  order = -np.diff(np.log(errors)) / np.diff(np.log(calls))
  # Above 5 where the tighter run had a smaller share of its steps rejected.
  assert (order > 4.6).all(), order
  assert (order < 6.4).all(), order


def test_nothing_depends_on_the_other_examples():
  together, calls = solve(STARTS, T0, T1)
  broken = STARTS.copy()
  broken[0] = np.nan  # never arrives
  beside, _ = solve(broken, T0, T1)
  assert np.isnan(beside[0]).all()
  np.testing.assert_allclose(beside[1:], together[1:], rtol=1e-13)
  for i in range(4):
    alone, nfe = solve(STARTS[i : i + 1], T0[i : i + 1], T1[i : i + 1])
    assert nfe[0] == calls[i]
    np.testing.assert_allclose(alone[0], together[i], rtol=1e-13)


def test_no_way_to_go_is_no_call():
  got, nfe = solve(STARTS, T0, T1)
  np.testing.assert_array_equal(got[3], STARTS[3])
  assert nfe[3] == 0


def test_one_that_does_not_arrive_is_nan():
  whole, calls = solve(STARTS, T0, T1)
  attempts = (calls - 2) // 6
  got, nfe = solve(STARTS, T0, T1, max_steps=int(attempts[1]))
  assert attempts[1] < min(attempts[0], attempts[2])
  np.testing.assert_array_equal(np.isnan(got).all(1), [True, False, True, False])
  np.testing.assert_allclose(got[1], whole[1], rtol=1e-13)
  assert nfe[0] == calls[1]


def test_a_singularity_ends_in_nan_before_all_steps_are_used():
  with jax.enable_x64(False):
    y, nfe = jax.jit(
      lambda: rk45(
        lambda y, t: y**2,  # y = 1 / (1 - t)
        jnp.ones((1, 1)),
        jnp.zeros(1),
        jnp.full(1, 2.0),
        rtol=1e-5,
        atol=1e-5,
        max_steps=10**6,
      )
    )()
  assert np.isnan(y).all()
  assert nfe[0] < 6 * 10**4
