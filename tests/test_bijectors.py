"""Bijectors, in float64: inverses, Jacobians, gradients without memory, densities."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from core.errors import UserError
from flows import elementwise, layers
from flows.bijector import (
  at_level,
  chain,
  halved,
  repeat,
  single,
  squeezed,
)
from flows.coupling import coupling, guided, masked_coupling, prior
from flows.dequantization import sigmoid
from nets.layers import squeeze, unsqueeze
from tests.runs import largest_difference
from text.cond import Cond

KEY = jax.random.key(0)

MAPS = {
  "additive": elementwise.additive(),
  **{kind: elementwise.affine(kind) for kind in ("glow", "tanh", "jet", "exp")},
  "spline": elementwise.rational_quadratic(4, 2.0),
}


class Net(nn.Module):
  """Sees the neighbours and the condition."""

  channels: int

  @nn.compact
  def __call__(self, x, cond):
    y = nn.Dense(4)(jnp.concatenate([x, jnp.roll(x, 1, axis=2)], axis=-1))
    y = jnp.tanh(y + nn.Dense(4)(cond.pooled)[:, None, None])
    return nn.Dense(self.channels)(y)


def checkerboard(h, w, i=0):
  return ((jnp.arange(h)[:, None] + jnp.arange(w) + i) % 2)[..., None] * 1.0


def orders(count, n):
  """`count` orders of n numbers."""
  return jnp.asarray(np.random.default_rng(0).permuted([np.arange(n)] * count, axis=1))


def step(i):
  return chain(layers.actnorm(), layers.conv_1x1(i), chain(coupling(MAPS["glow"], Net)))


def jet_step(i, n):
  there, back = orders(3, n)[i], jnp.argsort(orders(3, n), axis=1)[i]
  inner = coupling(MAPS["jet"], Net)
  return chain(layers.permute_all(there), inner, layers.permute_all(back))


# (height, width, channels) -> a bijector.
BIJECTORS = {
  "coupling": lambda h, w, c: coupling(MAPS["glow"], Net),
  "additive": lambda h, w, c: coupling(MAPS["additive"], Net),
  "spline": lambda h, w, c: coupling(MAPS["spline"], Net),
  "masked": lambda h, w, c: masked_coupling(MAPS["tanh"], Net, checkerboard(h, w)),
  "prior": lambda h, w, c: prior(MAPS["exp"]),
  "actnorm": lambda h, w, c: layers.actnorm(),
  "conv_1x1": lambda h, w, c: layers.conv_1x1(1),
  "permute": lambda h, w, c: layers.permute(orders(1, c)[0]),
  "shuffle": lambda h, w, c: layers.shuffle(2),
  "reverse": lambda h, w, c: layers.reverse(),
  "permute_all": lambda h, w, c: layers.permute_all(orders(1, h * w * c)[0]),
  "logit": lambda h, w, c: layers.logit(),
  "sigmoid": lambda h, w, c: sigmoid(),
  "squeezed": lambda h, w, c: squeezed(layers.reverse()),
  "halved": lambda h, w, c: halved(layers.conv_1x1(0)),
  "at_level": lambda h, w, c: at_level(chain(layers.actnorm(), layers.shuffle(0)), 1),
  "repeat": lambda h, w, c: repeat(step, 2, reversible=True),
  "unrolled": lambda h, w, c: repeat(
    lambda i: jet_step(i, h * w * c), 2, reversible=False, scan=False
  ),
}


def random_params(params, scale=0.3):
  """Parameters moved at random: some start at zero."""
  leaves, tree = jax.tree.flatten(params)
  rng = np.random.default_rng(1)
  return tree.unflatten([a + scale * rng.normal(size=a.shape) for a in leaves])


def example(b, h, w, c):
  """Pictures in [-1, 1], and a condition with numbers that have no gradient."""
  rng = np.random.default_rng(b + h + w + c)
  cond = Cond(
    label=jnp.arange(b),
    seq=jnp.asarray(rng.normal(size=(b, 2, 3))),
    mask=jnp.ones((b, 2), bool),
    pooled=jnp.asarray(rng.normal(size=(b, 3))),
  )
  return jnp.asarray(rng.uniform(-1, 1, (b, h, w, c))), cond


# Sides are even, for squeezing. Few shapes, as each is compiled.
shapes = st.tuples(
  st.integers(1, 2), st.sampled_from([2, 4]), st.sampled_from([2, 4]), st.integers(2, 4)
)
few = settings(
  max_examples=3,
  derandomize=True,
  deadline=None,
  database=None,
  phases=[Phase.generate],  # a failure is told as it is: smaller ones take compiling
  suppress_health_check=list(HealthCheck),
)


@pytest.mark.parametrize("name", BIJECTORS)
@few
@given(shape=shapes)
def test_the_inverse_undoes_and_the_determinant_is_that_of_autodiff(name, shape):
  """The Jacobian over the batch also shows that no picture depends on another."""
  b, *sides = shape
  bijector = BIJECTORS[name](*sides)

  @jax.jit
  def measure(x, cond):
    params = random_params(bijector.init(KEY, x, cond)[0])

    def both(x):
      z, logdet = bijector.forward(params, x, cond)
      return z, (z, logdet)

    slope, (z, logdet) = jax.jacrev(both, has_aux=True)(x)
    slope = slope.reshape(b, x[0].size, b, x[0].size)
    own = jnp.linalg.slogdet(slope[jnp.arange(b), :, jnp.arange(b)])[1]
    return {
      "inverse": bijector.inverse(params, z, cond) - x,
      "determinant": logdet - own,
      "others": slope * (1 - jnp.eye(b))[:, None, :, None],
    }

  with jax.enable_x64(True):
    errors = measure(*example(*shape))
    worst = {what: float(abs(error).max()) for what, error in errors.items()}
  assert max(worst.values()) < 1e-9, worst


@pytest.mark.parametrize("name", MAPS)
@few
@given(scale=st.floats(0.1, 5))
def test_maps_of_numbers_have_their_slopes_and_inverses(name, scale):
  g = MAPS[name]
  rng = np.random.default_rng(0)
  x = np.broadcast_to(np.linspace(-3, 3, 101)[:, None, None], (3, 101, 1, 2))
  raw = np.repeat(scale * rng.normal(size=(3, 1, 1, 2 * g.size)), 101, axis=1)
  with jax.enable_x64(True):
    z, logs, slope, back = map(np.asarray, measure_map(g, x, raw))
  np.testing.assert_allclose(back, x, atol=1e-8)
  np.testing.assert_allclose(logs, np.log(slope), atol=1e-8)
  assert (np.diff(z, axis=1) > 0).all()


@jax.jit(static_argnums=0)
def measure_map(g, x, raw):
  z, logs = g.forward(x, raw)
  return z, logs, jax.grad(lambda x: g.forward(x, raw)[0].sum())(x), g.inverse(z, raw)


@pytest.mark.parametrize("name", MAPS)
def test_raw_zeros_are_the_identity(name):
  g = MAPS[name]
  x = jnp.linspace(-3, 3, 60).reshape(1, 5, 6, 2)
  z, logs = g.forward(x, jnp.zeros((1, 5, 6, 2 * g.size)))
  factor = jax.nn.sigmoid(2.0) if name == "glow" else 1.0
  np.testing.assert_allclose(z, factor * x, rtol=1e-6, atol=1e-6)
  np.testing.assert_allclose(logs, np.log(factor), rtol=1e-6, atol=1e-6)


def test_glows_factor_has_a_least_value():
  """So the inverse of a number that no data led to stays finite."""
  x, raw = jnp.ones((1, 1, 1, 1)), jnp.array([0.0, -100.0])[None, None, None]
  z, logs = MAPS["glow"].forward(x, raw)
  np.testing.assert_allclose(z, elementwise.LEAST, rtol=1e-6)
  np.testing.assert_allclose(logs, np.log(elementwise.LEAST), rtol=1e-6)
  np.testing.assert_allclose(MAPS["glow"].inverse(z, raw), x, rtol=1e-6)


def test_a_spline_is_the_identity_outside_and_smooth_where_that_begins():
  g = MAPS["spline"]
  rng = np.random.default_rng(0)
  raw = jnp.broadcast_to(jnp.asarray(rng.normal(size=11), jnp.float32), (1, 6, 1, 11))
  x = jnp.array([-9.0, -2.001, -1.99999, 1.99999, 2.001, 9.0])[None, :, None, None]

  def total(raw):
    z, logs = g.forward(x, raw)
    return logs.sum(), (z, logs)

  slopes, (z, logs) = jax.jit(jax.grad(total, has_aux=True))(raw)
  np.testing.assert_allclose(z, x, atol=1e-5)
  np.testing.assert_allclose(logs, 0, atol=1e-3)
  assert np.isfinite(slopes).all()
  assert (slopes[0, [0, 1, 4, 5]] == 0).all()


def test_a_spline_is_inverted_in_float32():
  """x is as exact as float32 holds it in z, unless bins are steep or flat."""
  g = elementwise.rational_quadratic(8, 3.0)
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.uniform(-3, 3, (50, 4, 4, 2)), jnp.float32)
  raw = jnp.asarray(rng.normal(size=(50, 4, 4, 46)), jnp.float32)
  z, logs, _, back = measure_map(g, x, raw)
  assert (abs(back - x) * jnp.minimum(jnp.exp(logs), 1)).max() < 1e-5
  z, _, _, back = measure_map(g, x, 10 * raw)
  assert abs(measure_map(g, back, 10 * raw)[0] - z).max() < 1e-3


def test_what_is_done_to_numbers_is_refused_when_unknown():
  with pytest.raises(UserError, match="did you mean 'glow'"):
    elementwise.affine("glo")
  with pytest.raises(UserError, match=r"set flow\.bins"):
    elementwise.rational_quadratic(1000, 3.0)


def test_actnorm_begins_with_mean_0_and_variance_1():
  """A channel that is constant keeps its scale."""
  rng = np.random.default_rng(0)
  x = jnp.asarray(3 + 0.1 * rng.normal(size=(4, 3, 3, 3)), jnp.float32)
  x = x.at[..., 1].set(0.7)
  params, z = layers.actnorm().init(KEY, x, Cond())
  np.testing.assert_allclose(z.mean((0, 1, 2)), 0, atol=1e-5)
  np.testing.assert_allclose(z.var((0, 1, 2)), [1, 0, 1], atol=1e-4)
  assert params["log_scale"][1] == 0


def test_each_actnorm_of_a_repeat_sees_what_the_one_before_made():
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.normal(size=(8, 2, 2, 4)), jnp.float32)
  flow = repeat(
    lambda i: chain(coupling(MAPS["spline"], Net), layers.actnorm()),
    3,
    reversible=True,
  )
  cond = Cond(pooled=jnp.ones((8, 3)))
  params, z = jax.jit(flow.init)(KEY, 5 * x, cond)
  np.testing.assert_allclose(z.mean((0, 1, 2)), 0, atol=1e-5)
  np.testing.assert_allclose(z.var((0, 1, 2)), 1, rtol=1e-4)
  assert (np.diff(params[0]["Dense_0"]["kernel"], axis=0) != 0).all()


def matrix_of(bijector, params, channels):
  """[c, c]: what it does to the unit vectors, as rows."""
  return bijector.forward(params, jnp.eye(channels)[:, None, None], Cond())[0][:, 0, 0]


def test_a_1x1_convolution_begins_as_a_rotation_of_its_own():
  x = jnp.ones((1, 2, 2, 5))
  made = {}
  for i in range(2):
    bijector = layers.conv_1x1(i)
    params, _ = bijector.init(KEY, x, Cond())
    made[i] = matrix_of(bijector, params, 5)
    np.testing.assert_allclose(made[i] @ made[i].T, np.eye(5), atol=1e-5)
    found = jax.jit(lambda i, params=params: matrix_of(layers.conv_1x1(i), params, 5))(
      i
    )
    np.testing.assert_allclose(found, made[i], atol=1e-6)
  # The same numbers, in another order.
  assert (abs(made[0] - made[1]) > 1e-3).any()
  np.testing.assert_allclose(np.sort(made[0]), np.sort(made[1]), atol=1e-6)


def test_halves_that_do_not_count_have_no_gradient():
  bijector = layers.conv_1x1(0)
  x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 2, 2, 4)), jnp.float32)
  params, _ = bijector.init(KEY, x, Cond())
  slope = jax.grad(lambda p: (bijector.forward(p, x, Cond())[0] ** 3).sum())(params)
  assert (np.triu(slope["lower"]) == 0).all()
  assert (np.tril(slope["upper"]) == 0).all()
  assert (np.tril(slope["lower"], -1) != 0).sum() == 6


def test_orders_are_permutations_and_differ():
  found = np.array([layers.permutation(i, 16) for i in range(8)])
  np.testing.assert_array_equal(np.sort(found, 1), np.tile(np.arange(16), (8, 1)))
  assert len(np.unique(found, axis=0)) == 8


def test_permuted_numbers_are_where_the_order_says():
  x = jnp.arange(12.0).reshape(1, 2, 3, 2)
  order = orders(1, 12)[0]
  z = layers.permute_all(order).forward((), x, Cond())[0]
  np.testing.assert_array_equal(z.ravel(), order)
  z = layers.permute(jnp.array([1, 0])).forward((), x, Cond())[0]
  np.testing.assert_array_equal(z, x[..., ::-1])


def test_the_logit_takes_black_and_white_with_noise():
  x = jnp.array([-1 - 1 / 255, 0, 1 + 1 / 255]).reshape(1, 1, 3, 1)
  z, _ = layers.logit(0.05).forward((), x, Cond())
  end = np.log(0.95 / 0.05)
  np.testing.assert_allclose(z.ravel(), [-end, 0, end], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("by", [2, 3])
def test_squeezed_pixels_are_squares(by):
  x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 6, 12, 3)))
  z = squeeze(x, by)
  np.testing.assert_array_equal(z[1, 0, 1].reshape(by, by, 3), x[1, :by, by : 2 * by])
  np.testing.assert_array_equal(unsqueeze(z, by), x)


def test_a_later_level_leaves_the_numbers_done_with_alone():
  """The first half of a square's 2 x 2 pixels is its upper row."""
  x, cond = example(2, 4, 4, 2)
  bijector = at_level(layers.actnorm(), 1)
  params, z = bijector.init(KEY, x, cond)
  np.testing.assert_array_equal(z[:, 1::2], x[:, 1::2])
  assert (z[:, ::2] != x[:, ::2]).all()


def test_a_half_is_rounded_up():
  """Of three channels the first two tell about the last."""
  x, cond = example(1, 2, 2, 3)
  bijector = coupling(MAPS["additive"], Net)
  params = random_params(bijector.init(KEY, x, cond)[0])
  z, _ = bijector.forward(params, x, cond)
  np.testing.assert_array_equal(z[..., :2], x[..., :2])
  assert (z[..., 2] != x[..., 2]).all()


@pytest.mark.parametrize(("scan", "levels"), [(True, 0), (False, 1)])
def test_reversible_gradients_are_those_of_what_is_stored(scan, levels):
  """In parameters, pictures and conditions, of z and of the determinant."""

  def gradients(reversible, x, cond):
    steps = repeat(step, 3, reversible=reversible, scan=scan)
    flow = chain(at_level(steps, levels), prior(MAPS["exp"]))
    params = random_params(flow.init(KEY, x, cond)[0])

    def loss(params, x, pooled, seq):
      z, logdet = flow.forward(params, x, cond.replace(pooled=pooled, seq=seq))
      return (jnp.sin(z) * jnp.arange(z.size).reshape(z.shape)).sum() + (
        logdet * jnp.arange(1, 3)
      ).sum()

    return jax.grad(loss, (0, 1, 2, 3))(params, x, cond.pooled, cond.seq)

  with jax.enable_x64(True):
    x, cond = example(2, 4, 4, 4)
    ours, stored = (
      jax.device_get(jax.jit(gradients, static_argnums=0)(kind, x, cond))
      for kind in (True, False)
    )
  assert largest_difference(ours, stored) < 1e-10
  assert all(abs(a).max() > 0 for a in (*jax.tree.leaves(stored[0]), *stored[1:3]))


def temporary(reversible, count):
  """Bytes that a gradient of `count` steps takes besides what goes in and out."""
  x = jnp.zeros((8, 8, 8, 8))
  cond = Cond(pooled=jnp.zeros((8, 3)))
  flow = repeat(step, count, reversible=reversible)
  params = jax.eval_shape(flow.init, KEY, x, cond)[0]
  loss = lambda params, x: sum(a.sum() for a in flow.forward(params, x, cond))  # noqa: E731
  program = jax.jit(jax.grad(loss)).lower(params, x).compile()
  return program.memory_analysis().temp_size_in_bytes


def test_memory_does_not_grow_with_the_number_of_reversible_steps():
  """But for the gradients themselves, which are in the result; stored, z of each is."""
  picture = 8 * 8 * 8 * 8 * 4
  assert temporary(True, 16) - temporary(True, 4) < picture
  assert temporary(False, 16) - temporary(False, 4) > 12 * picture


def test_guidance_leads_away_from_the_null_condition():
  x, cond = example(2, 2, 2, 4)
  g, mask = MAPS["tanh"], checkerboard(2, 2)
  for make in (
    lambda scale: coupling(g, Net, scale),
    lambda scale: masked_coupling(g, Net, mask, scale),
    lambda scale: prior(g, scale),
  ):

    @jax.jit
    def measure(x, cond, make=make):
      params = random_params(make(1.0).init(KEY, x, cond)[0])
      drawn = lambda scale: make(scale).inverse(params, x, cond.with_null())  # noqa: E731
      return {
        "own": make(1.0).inverse(params, x, cond),
        "null": make(1.0).inverse(params, x, cond.null_like()),
        "nearly 1": drawn(1 + 1e-6),
        "0": drawn(0.0),
        "seen": make(1.0).forward(params, x, cond)[0],
        "seen at 3": make(3.0).forward(params, x, cond)[0],
      }

    found = measure(x, cond)
    np.testing.assert_allclose(found["0"], found["null"], atol=1e-6)
    np.testing.assert_allclose(found["nearly 1"], found["own"], atol=1e-5)
    assert abs(found["own"] - found["null"]).max() > 0.01
    # Guidance is for drawing: the likelihood is that of the condition alone.
    np.testing.assert_allclose(found["seen"], found["seen at 3"], atol=1e-6)


def test_guided_numbers_by_hand():
  x, cond = example(2, 2, 2, 4)
  net = Net(2)
  params = net.init(KEY, x, cond)["params"]
  own, null = (net.apply({"params": params}, x, c) for c in (cond, cond.null_like()))
  found = guided(net, params, x, cond.with_null(), 3.0)
  np.testing.assert_allclose(found, 3 * own - 2 * null, atol=1e-5)


@pytest.mark.parametrize("g", ["spline", "glow"])
def test_the_density_of_a_flow_integrates_to_1(g):
  """Of two numbers, over a grid; for each of two conditions."""
  flow = chain(
    repeat(
      lambda i: chain(layers.actnorm(), layers.conv_1x1(i), coupling(MAPS[g], Net)),
      2,
      reversible=True,
    ),
    prior(MAPS["exp"]),
  )
  side = jnp.linspace(-8, 8, 601)
  x = jnp.stack(jnp.meshgrid(side, side), axis=-1).reshape(-1, 1, 1, 2)
  for pooled in (jnp.ones(3), -jnp.ones(3)):
    cond = Cond(pooled=jnp.broadcast_to(pooled, (len(x), 3)))
    total = mass(flow, x, cond) * (side[1] - side[0]) ** 2
    assert total == pytest.approx(1, abs=1e-3)


@jax.jit(static_argnums=0)
def mass(flow, x, cond):
  start = jax.random.normal(KEY, (64, 1, 1, 2))
  few = jax.tree.map(lambda a: a[:64], cond)
  # Moved by little, or peaks are narrower than the grid.
  params = random_params(flow.init(KEY, start, few)[0], 0.1)
  z, logdet = flow.forward(params, x, cond)
  return jnp.exp(jax.scipy.stats.norm.logpdf(z).sum((1, 2, 3)) + logdet).sum()


def test_the_last_stage_is_the_picture_at_every_level():
  x, cond = example(2, 4, 4, 4)
  flow = at_level(chain(layers.shuffle(0), layers.reverse()), 1)
  path = flow.path(((), ()), x, cond)
  assert path.shape == (2, 2, 4, 4, 4)
  np.testing.assert_array_equal(path[-1], flow.inverse(((), ()), x, cond))
  np.testing.assert_array_equal(path[:, :, 1::2], jnp.stack([x, x])[:, :, 1::2])


def test_stages_are_those_of_the_inverse_one_by_one():
  x, cond = example(2, 2, 2, 4)
  add = lambda t: single(  # noqa: E731
    lambda *_: (),
    lambda params, x, cond: (x + t, jnp.zeros(len(x))),
    lambda params, z, cond: z - t,
  )
  flow = chain(add(1.0), repeat(lambda i: add(10.0 * (i + 1)), 3, reversible=False))
  path = flow.path(flow.init(KEY, x, cond)[0], x, cond)
  found = [float(v) for v in (path - x).mean((1, 2, 3, 4))]
  np.testing.assert_allclose(found, [-30, -50, -60, -61], rtol=1e-5)
