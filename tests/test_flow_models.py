"""Each flow is invertible, knows its determinant, and changes what its paper says."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from core.errors import UserError
from core.family import Spec, make
from flows import glow, jet, nsf, realnvp
from flows.bijector import Bijector
from tests.runs import load_config
from text.cond import Cond

KEY = jax.random.key(0)
SHAPE = (4, 4, 1)
SPEC = Spec(SHAPE)


def draw(i: int, *shape: int) -> jax.Array:
  return jax.random.normal(jax.random.fold_in(KEY, i), shape)


def config_of(name: str, **fields: object) -> ConfigDict:
  """A tiny config for pictures of SHAPE."""
  config = load_config(f"configs/flows/{name}.py")
  config.model.patch, config.model.dim = 2, 8
  for field, value in fields.items():
    group, name = field.split("__")
    config[group][name] = value
  return config


def glow_of(config: ConfigDict) -> Bijector:
  g, net = glow.elementwise_of(config), glow.conditioner(config)
  return glow.multi_scale(config, g, net, 1.0)


MAKERS: dict[str, Callable[[ConfigDict], Bijector]] = {
  "glow": glow_of,
  "realnvp": lambda config: realnvp.multi_scale(config, SPEC, 1.0),
  "nsf": lambda config: nsf.multi_scale(config, 1.0),
  "jet": lambda config: jet.couplings(config, SPEC, 1.0),
}


@pytest.mark.parametrize("name", list(MAKERS))
def test_inverse_determinant_and_condition(name):
  steps = jet.CYCLE + 1 if name == "jet" else 2  # both kinds of Jet's couplings
  flow = MAKERS[name](config_of(name, flow__steps=steps))
  x, other = draw(0, 2, *SHAPE), draw(1, 5)
  cond = Cond(pooled=draw(2, 2, 5), seq=draw(3, 2, 3, 5), mask=jnp.ones((2, 3), bool))
  # Many, or the actnorms would find a channel of nearly one value.
  many = jax.tree.map(lambda a: jnp.tile(a, (8,) + (1,) * (a.ndim - 1)), cond)
  params = jax.jit(flow.init)(KEY, draw(100, 16, *SHAPE), many)[0]
  leaves, form = jax.tree.flatten(params)  # no weight as it starts
  leaves = [a + 0.1 * draw(4 + i, *a.shape) for i, a in enumerate(leaves)]
  params = jax.tree.unflatten(form, leaves)

  @jax.jit
  def found(params, x, cond):
    z, logdet = flow.forward(params, x, cond)
    stages = flow.path(params, z, cond)
    one = jax.tree.map(lambda a: a[:1], cond)
    image = lambda x: flow.forward(params, x[None], one)[0].ravel()  # noqa: E731
    jacobian = jax.jacrev(image)(x[0]).reshape(x[0].size, x[0].size)
    return z, logdet, flow.inverse(params, z, cond), stages, jacobian

  z, logdet, back, stages, jacobian = found(params, x, cond)
  assert np.abs(z - x).max() > 0.1
  np.testing.assert_allclose(back, x, atol=1e-4)
  np.testing.assert_allclose(stages[-1], back, atol=1e-5)
  exact = np.linalg.slogdet(np.asarray(jacobian, np.float64))[1]
  np.testing.assert_allclose(logdet[0], exact, rtol=1e-4, atol=1e-3)

  # Another class of the second picture is of no matter to the first.
  changed = cond.replace(pooled=cond.pooled.at[1].set(other))
  z_other, logdet_other = found(params, x, changed)[:2]
  np.testing.assert_array_equal(z_other[0], z[0])
  assert np.abs(z_other[1] - z[1]).max() > 0.01
  log_p = lambda z, logdet: logdet - (z**2).sum((1, 2, 3)) / 2  # noqa: E731
  difference = np.abs(log_p(z_other, logdet_other) - log_p(z, logdet))
  assert difference[0] == 0
  assert difference[1] > 0.01


@pytest.mark.parametrize("name", list(MAKERS))
def test_bfloat16_networks_leave_the_determinant_in_float32(name):
  """Its error is less than 0.01 nats a number: that of the networks' output alone."""
  x, cond = draw(0, 16, *SHAPE), Cond(pooled=draw(1, 16, 5))
  configs = [config_of(name, model__dtype=d) for d in ("float32", "bfloat16")]
  exact, rough = (MAKERS[name](config) for config in configs)
  leaves, form = jax.tree.flatten(jax.jit(exact.init)(KEY, x, cond)[0])
  leaves = [a + 0.1 * draw(2 + i, *a.shape) for i, a in enumerate(leaves)]
  params = jax.tree.unflatten(form, leaves)
  z, logdet = jax.jit(exact.forward)(params, x, cond)
  z_rough, logdet_rough = jax.jit(rough.forward)(params, x, cond)
  assert z_rough.dtype == logdet_rough.dtype == jnp.float32
  difference = np.abs(logdet_rough - logdet).max() / x[0].size
  assert 0 < difference < 0.01
  # What bfloat16 made of x is undone by the same networks in bfloat16.
  back = jax.jit(rough.inverse)(params, z_rough, cond)
  np.testing.assert_allclose(back, x, atol=1e-3)


def times_changed(flow: Bijector) -> np.ndarray:
  """How often each number is: couplings add 1, the bias of networks of zeros."""
  x = jnp.zeros((1, *SHAPE))
  params = jax.eval_shape(flow.init, KEY, x, Cond())[0]

  def leaf(path, a):
    names = [getattr(key, "key", None) for key in path[-2:]]
    return jnp.full(a.shape, float(names == ["out", "bias"]))

  params = jax.tree_util.tree_map_with_path(leaf, params)
  return np.asarray(jax.jit(flow.forward)(params, x, Cond())[0]).reshape(SHAPE[:2])


def test_realnvp_alternates():
  """Once by two of each kind; then what goes on by three checkerboards more.

  That is the upper row of each square of 2x2 pixels, and of three checkerboards two
  change the squares whose row + column is odd.
  """
  fields = {"flow__coupling": "additive", "flow__steps": 2, "flow__levels": 2}
  config = config_of("realnvp", **fields, text__encoder="none")
  rows, columns = np.indices(SHAPE[:2])
  more = (rows % 2 == 0) * (1 + (rows // 2 + columns // 2) % 2)
  flow = MAKERS["realnvp"](config)
  np.testing.assert_allclose(times_changed(flow), 2 + more)


def test_jet_changes_half_of_the_numbers_each_time():
  count, (height, width, channels) = 6 * jet.CYCLE, (4, 6, 8)
  table = jet.orders(count, height, width, channels)
  numbers = np.arange(height * width * channels)
  np.testing.assert_array_equal(np.sort(table, axis=1), np.stack([numbers] * count))
  # changed[i, n]: whether coupling i changes number n.
  later = numbers % channels >= channels // 2
  changed = np.zeros(table.shape, bool)
  for own, order in zip(changed, table, strict=True):
    own[order[later]] = True
  assert (changed.sum(1) == len(numbers) // 2).all()
  assert changed[: jet.CYCLE].any(0).all()
  changed = changed.reshape(count, height, width, channels)
  for i, own in enumerate(changed):
    if i % jet.CYCLE < jet.CYCLE - 1:  # the same channels everywhere
      assert (own == own[0, 0]).all()
    else:
      assert (own == own[..., :1]).all()
  assert len(np.unique(changed[:4, 0, 0], axis=0)) == 4
  rows, columns = np.indices((height, width))
  places = changed[jet.CYCLE - 1 :: jet.CYCLE, :, :, 0]
  for kind, parity in enumerate((rows + columns, columns, rows)):
    np.testing.assert_array_equal(places[2 * kind], parity % 2 == 1)
    np.testing.assert_array_equal(places[2 * kind + 1], parity % 2 == 0)


def test_jet_couples_in_those_orders():
  steps = jet.CYCLE + 2
  fields = {"flow__coupling": "additive", "flow__steps": steps}
  flow = MAKERS["jet"](config_of("jet", **fields, text__encoder="none"))
  count = np.zeros(16)
  for order in jet.orders(steps, 2, 2, 4):
    count[order.reshape(4, 4)[:, 2:].ravel()] += 1
  # Each patch of 2x2 pixels is a row of `count`.
  expected = count.reshape(2, 2, 2, 2).transpose(0, 2, 1, 3).reshape(4, 4)
  np.testing.assert_allclose(times_changed(flow), expected)


@pytest.mark.parametrize(
  ("name", "shape", "fields", "message"),
  [
    ("jet", (6, 4, 1), {}, "6x4 pictures are not an even number of patches"),
    ("jet", (4, 4, 1), {"model__patch": 1}, "1x1x1 numbers has no halves"),
    ("jet", (4, 4, 1), {"flow__mixing": "reverse"}, "no use for flow.mixing='reverse'"),
    ("realnvp", (6, 6, 1), {"flow__levels": 3}, "cannot be halved 2 times"),
    ("realnvp", (8, 8, 1), {"model__blocks": (1, 2)}, "must be one number"),
    ("nsf", (6, 6, 1), {"flow__levels": 2}, "cannot be halved 2 times"),
    ("nsf", (8, 8, 1), {"flow__coupling": "splin"}, "did you mean 'spline'"),
  ],
)
def test_what_does_not_fit_is_refused(name, shape, fields, message):
  with pytest.raises(UserError, match=message):
    make(config_of(name, **fields), Spec(shape))
