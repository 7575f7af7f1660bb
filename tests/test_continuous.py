"""The continuous flow against flows whose solution is known, and against autodiff."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import expm

from configs.flows import ffjord as config_file
from core import ode
from core.errors import UserError
from core.family import Given, Spec, make
from flows import continuous
from flows.bijector import chain
from flows.continuous import Solver
from nets.velocity import ConvVelocity
from tests.runs import random_batch
from text.cond import Cond

KEY = jax.random.key(0)
SHAPE = (2, 1, 2)  # of a picture: four numbers
RK45 = Solver("rk45", rtol=1e-8, atol=1e-8)


@pytest.fixture(autouse=True)
def _float64():
  with jax.enable_x64(True):
    yield


def draw(i: int, *shape: int) -> np.ndarray:
  return np.random.default_rng(i).normal(size=shape)


# f = A x, so z = expm(A) x and log |det| = tr A.
A = 0.6 * draw(0, 4, 4)


def linear(x, t):
  return (x.reshape(len(x), 4) @ A.T).reshape(x.shape)


def curved(params, x, t, cond):
  """A field that bends, moves with time, and is not volume preserving."""
  first, second, shift = params
  y = x.reshape(len(x), 4)
  y = jnp.sin(y @ first + t[:, None] * shift) @ second
  return (y if cond.pooled is None else y * cond.pooled).reshape(x.shape)


PARAMS = (draw(1, 4, 4), 0.5 * draw(2, 4, 4), draw(3, 4))
X = draw(4, 3, *SHAPE)


def curved_flow(solver: Solver, **fields):
  return continuous.continuous(lambda rng, x, cond: PARAMS, curved, solver, **fields)


moved = functools.cache(
  lambda solver: jax.jit(
    lambda x: continuous.move(linear, x, solver, costs=solver.method != "rk45")
  )
)


@pytest.mark.parametrize("solver", [RK45, Solver("rk4", 40)])
def test_a_linear_field_is_solved_by_the_exponential_of_its_matrix(solver):
  way = moved(solver)(X)
  want = X.reshape(3, 4) @ expm(A).T
  np.testing.assert_allclose(way.z.reshape(3, 4), want, rtol=1e-6)
  np.testing.assert_allclose(way.logdet, np.full(3, np.trace(A)), rtol=1e-6)
  if solver.method == "rk45":
    return
  # What is added up: |J|^2 = |A|^2 all the way, and |f|^2 / 2 of x_t = expm(A t) x.
  np.testing.assert_allclose(way.jacobian, np.full(3, (A**2).sum()), rtol=1e-9)
  times = (np.arange(400) + 0.5) / 400
  speeds = [np.square(X.reshape(3, 4) @ (A @ expm(A * t)).T).sum(1) for t in times]
  np.testing.assert_allclose(way.kinetic, np.mean(speeds, 0) / 2, rtol=1e-5)


@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("heun", 2), ("rk4", 4)])
def test_equal_steps_have_the_order_of_their_method(method, order):
  exact = X.reshape(3, 4) @ expm(A).T
  ends = [moved(Solver(method, n))(X).z.reshape(3, 4) for n in (10, 20)]
  errors = [np.abs(end - exact).max() for end in ends]
  np.testing.assert_allclose(np.log2(errors[0] / errors[1]), order, atol=0.25)


def test_inverse_and_jacobian_of_a_field_that_bends():
  flow = curved_flow(RK45)
  params, z = jax.jit(flow.init)(KEY, X, Cond())
  forward = jax.jit(flow.forward)
  _, logdet = forward(params, X, Cond())
  np.testing.assert_allclose(jax.jit(flow.inverse)(params, z, Cond()), X, atol=1e-6)
  # By equal steps the map has a derivative, and the log-determinant is that of it.
  steps = curved_flow(Solver("rk4", 64))

  def one(x):
    return steps.forward(params, x.reshape(1, *SHAPE), Cond())[0].ravel()

  jacobians = jax.jit(jax.vmap(jax.jacobian(one)))(X.reshape(3, 4))
  np.testing.assert_allclose(logdet, np.linalg.slogdet(jacobians)[1], rtol=1e-6)
  # In a chain, and under a condition, which is each example's own.
  double, cond = chain(flow, flow), Cond(pooled=jnp.asarray(draw(5, 3, 4)))
  z, logdet = jax.jit(double.forward)((params, params), X, cond)
  back = jax.jit(double.inverse)((params, params), z, cond)
  np.testing.assert_allclose(back, X, atol=1e-6)
  assert np.abs(forward(params, X, cond)[1] - logdet).min() > 1e-3


def test_the_estimate_of_the_trace_is_right_on_average_over_all_signs():
  velocity = continuous.at(curved, PARAMS, Cond())
  x, t = jnp.asarray(X[:1]), jnp.full(1, 0.3)
  every = jnp.asarray(list(itertools.product([-1.0, 1.0], repeat=4)))
  rates = jax.jit(continuous.rates, static_argnums=(0, 4))
  mean = rates(velocity, x, t, every.reshape(16, 1, *SHAPE), "mean")
  exact = rates(velocity, x, t, continuous.basis(x), "sum")
  jacobian = jax.jacobian(lambda x: velocity(x.reshape(x.shape), t).ravel())(x)
  jacobian = jacobian.reshape(4, 4)
  for found in (mean, exact):
    np.testing.assert_allclose(found.logdet, [np.trace(jacobian)], rtol=1e-12)
    np.testing.assert_allclose(found.jacobian, [(jacobian**2).sum()], rtol=1e-12)
    np.testing.assert_array_equal(found.z, velocity(x, t))


def test_signs_are_each_examples_own():
  keys = jax.random.split(KEY, 3)
  x = jnp.asarray(X)
  found = continuous.signs(keys, x, 5)
  assert found.shape == (5, 3, *SHAPE)
  np.testing.assert_array_equal(np.abs(found), 1)
  alone = continuous.signs(keys[1:2], x[1:2], 5)
  np.testing.assert_array_equal(alone[:, 0], found[:, 1])
  assert (found[:, 0] != found[:, 1]).any()


def log_density(params, x, solver):
  velocity = continuous.at(curved, params, Cond())
  way = continuous.move(velocity, jnp.asarray(x), solver)
  return -jnp.sum(way.z**2, axis=(1, 2, 3)) / 2 + way.logdet


def test_the_gradient_that_trains_is_that_of_the_exact_density():
  solver = Solver("rk4", 32)
  slopes = jax.jit(jax.grad(lambda p: log_density(p, X, solver).sum()))(PARAMS)
  exact = jax.jit(lambda p: log_density(p, X, RK45).sum())
  for i in range(3):
    direction = draw(6 + i, *PARAMS[i].shape)
    ends = [
      exact((*PARAMS[:i], PARAMS[i] + s * direction, *PARAMS[i + 1 :]))
      for s in (1e-4, -1e-4)
    ]
    finite = (ends[0] - ends[1]) / 2e-4
    np.testing.assert_allclose((slopes[i] * direction).sum(), finite, rtol=1e-4)


@pytest.mark.parametrize("solver", [RK45, Solver("rk4", 12)])
def test_the_path_is_where_the_flow_is_at_equal_times(solver):
  velocity = continuous.at(curved, PARAMS, Cond())
  film, calls = jax.jit(lambda z: continuous.travel(velocity, z, solver, 4))(X)
  assert film.shape == (4, *X.shape)
  for i, t in enumerate([0.75, 0.5, 0.25, 0.0]):
    want, _ = jax.jit(
      lambda z, t: ode.rk45(
        velocity, z, jnp.ones(1), t[None], rtol=1e-10, atol=1e-10, max_steps=1000
      )
    )(X, jnp.asarray(t))
    np.testing.assert_allclose(film[i], want, atol=1e-4)
  if solver.method == "rk4":
    np.testing.assert_array_equal(calls, [48] * 3)
    return
  # The film costs nothing, and changes nothing.
  picture, alone = jax.jit(lambda z: continuous.travel(velocity, z, solver, 1))(X)
  np.testing.assert_array_equal(calls, alone)
  np.testing.assert_allclose(picture[0], film[-1], rtol=1e-12)
  assert ((alone - 2) % 6 == 0).all()


def test_a_density_integrates_to_one():
  # Two numbers a picture; z of a grid, wide enough for both.
  params = (draw(9, 2, 2), draw(10, 2, 2), draw(11, 2))

  def velocity(x, t):
    y = jnp.sin(x.reshape(-1, 2) @ params[0] + t[:, None] * params[2]) @ params[1]
    return y.reshape(x.shape)

  side = np.linspace(-9, 9, 121)
  grid = np.stack(np.meshgrid(side, side), -1).reshape(-1, 1, 1, 2)
  way = jax.jit(lambda x: continuous.move(velocity, x, Solver("rk4", 24)))(grid)
  log_p = -np.square(way.z).sum((1, 2, 3)) / 2 - np.log(2 * np.pi) + way.logdet
  assert way.logdet.std() > 0.1
  mass = np.exp(log_p).sum() * (side[1] - side[0]) ** 2
  np.testing.assert_allclose(mass, 1, rtol=1e-4)


def test_guidance_leads_away_from_the_null_condition():
  cond = Cond(pooled=jnp.asarray(draw(5, 3, 4)))
  x, t = jnp.asarray(X), jnp.full(3, 0.4)
  own, null = (curved(PARAMS, x, t, c) for c in (cond, cond.null_like()))
  guided = continuous.at(curved, PARAMS, cond.with_null(), 3.0)(x, t)
  np.testing.assert_allclose(guided, null + 3 * (own - null), rtol=1e-12)


def test_the_network_starts_at_zero_and_reads_time_and_each_condition():
  net, x = ConvVelocity((4, 8), patch=2), jnp.asarray(draw(0, 2, 8, 8, 1), jnp.float32)
  t, cond = jnp.full(2, 0.3), Cond(pooled=jnp.asarray(draw(1, 2, 3), jnp.float32))
  params = jax.jit(net.init)(KEY, x, t, cond)
  run = jax.jit(net.apply)
  np.testing.assert_array_equal(run(params, x, t, cond), np.zeros_like(x))
  params = moved_by_noise(params, 0.1)
  y = run(params, x, t, cond)
  assert y.shape == x.shape
  assert y.dtype == jnp.float32
  for changed in (
    (x.at[1].add(1), t, cond),
    (x, t.at[1].add(0.5), cond),
    (x, t, cond.replace(pooled=cond.pooled.at[1].add(1))),
  ):
    difference = np.abs(run(params, *changed) - y).max((1, 2, 3))
    assert difference[0] == 0 < difference[1]
  # A pixel is told of the whole picture.
  far = np.abs(run(params, x.at[0, 0, 0].add(1), t, cond) - y)
  assert far[0, -1, -1].max() > 0


def config_of(**fields: object):
  config = config_file.get_config("tiny")
  config.data.size, config.model.widths, config.model.patch = 2, (4,), 1
  config.text.drop = 0.0
  for name, value in fields.items():
    group, field = name.split("__")
    config[group][field] = value
  return config


def moved_by_noise(tree, by: float):
  leaves, form = jax.tree.flatten(tree)
  noise = [by * draw(i, *a.shape).astype(a.dtype) for i, a in enumerate(leaves)]
  return jax.tree.unflatten(form, [a + n for a, n in zip(leaves, noise, strict=True)])


def test_the_family_scores_exactly_or_by_signs_and_counts_what_it_calls():
  tight = {"eval__ode_tolerance": 1e-6, "sample__rtol": 1e-6, "sample__atol": 1e-6}
  with jax.enable_x64(False):
    spec, batch = Spec((2, 2, 1)), random_batch(config_of())
    exact, signed, fixed = (
      make(config_of(**tight, **fields), spec)
      for fields in (
        {"eval__ode_probes": 0, "sample__frames": 3},
        {"eval__ode_probes": 200},
        {"sample__sampler": "heun", "sample__steps": 6, "sample__frames": 4},
      )
    )
    state = jax.jit(exact.init)(KEY, batch)
    state = state.replace(ema=moved_by_noise(state.ema, 0.5))
    scores = [
      jax.jit(family.evals["bpd"])(state, batch, KEY) for family in (exact, signed)
    ]
    # The same noise in the pixels, and 200 signs for a trace of 4 numbers.
    np.testing.assert_allclose(*scores, atol=0.1)
    assert np.abs(scores[0] - scores[1]).max() > 1e-4
    assert "bpd_iwae" in exact.evals
    assert "bpd_iwae" not in signed.evals

    pictures = batch["x"][:3]
    given = Given(jnp.asarray(pictures), jnp.ones((3, 2, 2, 1)))
    cond = jax.tree.map(lambda a: a[:3], batch["cond"])
    # The ends of the line between two pictures are those pictures.
    samples = jax.jit(exact.edits["interpolate"])(state, KEY, cond, given)
    ends = np.asarray(samples.images)[[0, -1]]
    np.testing.assert_allclose(ends, pictures[[0, -1]], atol=1e-3)
    np.testing.assert_array_equal(samples.images, samples.frames[-1])
    assert samples.frames.shape == (3, 3, 2, 2, 1)
    assert ((samples.nfe - 2) % 6 == 0).all()
    drawn = jax.jit(fixed.sample, static_argnums=3)(state, KEY, cond, 3)
    assert drawn.frames.shape == (4, 3, 2, 2, 1)
    np.testing.assert_array_equal(drawn.nfe, [12] * 3)


def test_a_critic_sees_draws_that_have_a_gradient():
  """Though samples are taken by rk45, which has none."""
  with jax.enable_x64(False):
    family, batch = make(config_of(), Spec((2, 2, 1))), random_batch(config_of())
    params = moved_by_noise(jax.jit(family.objective.init)(KEY, batch), 0.5)

    @jax.jit
    def slope(params, batch):
      play = family.objective.play
      return jax.grad(lambda p: play((p, {}), batch, KEY).fakes.sum())(params)

    assert config_of().sample.sampler == "rk45"
    found = jax.tree.leaves(slope(params, batch)["flow"])
    assert all(np.isfinite(a).all() and np.abs(a).max() > 0 for a in found)


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"flow__ode_method": "rk45"}, "flow.ode_method"),
    ({"sample__sampler": "ddim"}, "sample.sampler"),
    ({"model__blocks": (1, 2)}, "model.blocks"),
    ({"model__widths": (4, 4, 4)}, "data.size"),
    ({"flow__coupling": "spline"}, "flow.coupling"),
  ],
)
def test_settings_refused(fields, message):
  with pytest.raises(UserError, match=message):
    make(config_of(**fields), Spec((2, 2, 1)))
