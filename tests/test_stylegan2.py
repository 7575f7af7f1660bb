"""StyleGAN2's layers against their definitions, and what its networks read."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal

from core.errors import UserError
from nets import modulated, resample
from nets.modulated import EqualConv, EqualDense, minibatch_std
from nets.stylegan2 import Critic, Generator

KEY = jax.random.key(0)


def normal(i, *shape):
  return jax.random.normal(jax.random.fold_in(KEY, i), shape)


def upfirdn(x, up, down, pad):
  """scipy's, along both axes; its output runs on into zeros before and after."""
  taps = up * np.array([1, 3, 3, 1]) / 8
  for axis in (1, 2):
    size = up * (x.shape[axis] - 1) + 1
    y = scipy.signal.upfirdn(taps, x, up, 1, axis=axis)
    y = np.concatenate([np.zeros_like(y)] * 2 + [y] + [np.zeros_like(y)] * 2, axis=axis)
    # Full output 3 is the first that sees no zero before the picture.
    start = 2 * (size + 3) + 3 - pad
    stop = start + size + 2 * pad - 3
    x = y.take(np.arange(start, stop, down), axis=axis)
  return x


@pytest.mark.parametrize(
  ("make", "args"),
  [(resample.doubled, (2, 1, 2)), (resample.halved, (1, 2, 1))],
  ids=["doubled", "halved"],
)
def test_filters_are_scipys(make, args):
  x = normal(0, 2, 6, 4, 3)
  np.testing.assert_allclose(make(x), upfirdn(np.asarray(x), *args), atol=1e-6)


@pytest.mark.parametrize("pad", [1, 2, 3])
@pytest.mark.parametrize(("up", "down"), [(1, 1), (2, 1), (1, 2)])
def test_any_padding(up, down, pad):
  x = normal(0, 1, 6, 4, 2)
  got = resample.upfirdn(x, up, down, pad)
  np.testing.assert_allclose(got, upfirdn(np.asarray(x), up, down, pad), atol=1e-6)


def test_a_constant_stays_one_inside():
  one = jnp.ones((1, 8, 8, 1))
  assert (resample.doubled(one)[:, 1:-1, 1:-1] == 1).all()
  assert (resample.halved(one)[:, 1:-1, 1:-1] == 1).all()


CONVOLUTIONS = {
  resample.doubled_conv: ((3, 3, 6, 5), "lhs_dilate = [2, 2]"),
  resample.halved_conv: ((3, 3, 6, 5), "stride = [2, 2]"),
  resample.grouped_conv: ((3, 3, 2, 6), "feature_group_count = 3"),
}


@pytest.mark.parametrize("make", CONVOLUTIONS)
def test_accelerators_get_the_form_with_fewer_products(make):
  shape, mark = CONVOLUTIONS[make]
  traced = jax.jit(make).trace(normal(0, 2, 8, 8, 6), normal(1, *shape))
  for platform in ("cpu", "tpu", "cuda"):
    lowered = traced.lower(lowering_platforms=(platform,)).as_text()
    assert (mark in lowered) == (platform != "cpu")


@pytest.mark.parametrize("make", CONVOLUTIONS)
def test_both_forms_of_a_convolution_agree(make, monkeypatch):
  x, kernel = normal(0, 2, 8, 8, 6), normal(1, *CONVOLUTIONS[make][0])
  here = make(x, kernel)
  other = lambda *args, cpu, default: default(*args)  # noqa: E731
  monkeypatch.setattr(jax.lax, "platform_dependent", other)
  np.testing.assert_allclose(here, make(x, kernel), rtol=1e-4, atol=1e-4)


def test_convolution_of_the_doubled_picture():
  x, kernel = normal(0, 2, 4, 4, 3), normal(1, 3, 3, 3, 5)
  y = resample.doubled_conv(x, kernel)
  want = resample.conv(resample.doubled(x), kernel)
  # They differ at the edges alone, where the filter's tail is beyond the picture.
  np.testing.assert_allclose(y[:, 1:-1, 1:-1], want[:, 1:-1, 1:-1], atol=1e-4)


def test_convolution_of_the_halved_picture():
  x, kernel = normal(0, 2, 8, 8, 3), normal(1, 3, 3, 3, 5)
  y = resample.halved_conv(x, kernel)
  # Linear maps that do not change over the picture commute, away from its edges.
  want = resample.halved(resample.conv(x, kernel))
  np.testing.assert_allclose(y[:, 1:-1, 1:-1], want[:, 1:-1, 1:-1], atol=1e-4)


@pytest.mark.parametrize("up", [False, True])
@pytest.mark.parametrize("demodulate", [False, True])
def test_modulated_convolution_is_that_with_each_examples_kernel(up, demodulate):
  x, kernel, style = normal(0, 3, 4, 4, 5), normal(1, 3, 3, 5, 6), normal(2, 3, 5)
  got = modulated.modulated(x, kernel, style, demodulate, up)
  kernels = style[:, None, None, :, None] * kernel
  if demodulate:
    kernels /= jnp.sqrt((kernels**2).sum((1, 2, 3), keepdims=True) + 1e-8)
  conv = resample.doubled_conv if up else resample.conv
  want = [conv(x[i : i + 1], kernels[i])[0] for i in range(3)]
  np.testing.assert_allclose(got, jnp.stack(want), rtol=1e-4, atol=1e-4)


def test_equalised_learning_rate():
  x = normal(0, 4000, 50)
  layer = EqualDense(30, rate=0.01)
  params = layer.init(KEY, x)
  # Weights are drawn 1 / rate wide, and what comes out has variance 1.
  assert np.std(params["params"]["kernel"]) == pytest.approx(100, rel=0.05)
  y = layer.apply(params, x)
  assert np.var(y) == pytest.approx(1, rel=0.1)
  # A step of size s in the weights is one of s rate / sqrt(d).
  step = jax.tree.map(jnp.ones_like, params)
  moved = layer.apply(jax.tree.map(jnp.add, params, step), x)
  change = 0.01 * (x.sum(-1, keepdims=True) / math.sqrt(50) + 1)
  np.testing.assert_allclose(moved - y, jnp.tile(change, 30), atol=1e-4)


def test_equalised_convolution():
  x = normal(0, 2, 6, 6, 4)
  layer = EqualConv(5)
  params = layer.init(KEY, x)
  kernel = params["params"]["kernel"]
  assert np.std(kernel) == pytest.approx(1, rel=0.15)
  y = resample.conv(x, kernel) / 6  # sqrt(3 * 3 * 4)
  want = math.sqrt(2) * jnp.where(y > 0, y, 0.2 * y)
  np.testing.assert_allclose(layer.apply(params, x), want, atol=1e-5)


def test_minibatch_std_by_hand():
  # Two groups of two: rows differ by 2 and by 6 everywhere, so deviations are 1 and 3.
  rows = jnp.array([0.0, 2.0, 1.0, 7.0])
  x = jnp.broadcast_to(rows[:, None, None, None], (4, 2, 2, 3))
  y = minibatch_std(x, 2)
  assert (y[..., :3] == x).all()
  np.testing.assert_allclose(y[:, 0, 0, 3], [1, 1, 3, 3], rtol=1e-6)
  assert (y[..., 3:] == y[:, :1, :1, 3:]).all()
  # A batch that has no whole groups has smaller ones.
  np.testing.assert_allclose(minibatch_std(x, 6), y)


@functools.cache
def generator():
  return Generator((8, 8, 3), (6, 8), 10, 2)


@functools.cache
def variables():
  net = generator()
  made = jax.jit(net.init)(KEY, normal(0, 4, 5), normal(1, 4, 3))
  shaken = jax.tree.map(lambda p: p + 0.3 * normal(2, *p.shape), made["params"])
  return {**made, "params": shaken}


@functools.cache
def drawn(training=False):
  return jax.jit(functools.partial(generator().apply, training=training))


def keys(n, seed=1):
  return jax.random.split(jax.random.key(seed), n)


def test_every_input_of_the_generator_is_read():
  z, vec = normal(3, 4, 5), normal(4, 4, 3)
  y = drawn()(variables(), z, vec, keys(4))
  assert y.shape == (4, 8, 8, 3)
  for other in (
    (z + normal(5, 4, 5), vec, keys(4)),
    (z, vec + normal(5, 4, 3), keys(4)),
    (z, vec, keys(4, 2)),
    (z, vec),
  ):
    assert jnp.abs(drawn()(variables(), *other) - y).max() > 1e-3
  # z is normalised.
  np.testing.assert_allclose(drawn()(variables(), 2 * z, vec, keys(4)), y, atol=1e-4)


def test_noise_starts_without_strength():
  net = generator()
  z = normal(3, 4, 5)
  made = jax.jit(net.init)(KEY, z)
  assert (net.apply(made, z, None, keys(4)) == net.apply(made, z)).all()


def test_mapping_then_synthesis():
  z, vec = normal(3, 4, 5), normal(4, 4, 3)
  w = generator().apply(variables(), z, vec, method="mapping")
  assert w.shape == (4, 10)
  w = jnp.repeat(w[:, None], generator().styles, axis=1)
  y = generator().apply(variables(), w, method="synthesis")
  np.testing.assert_allclose(y, drawn()(variables(), z, vec), atol=1e-5)


def test_mean_of_w_follows_the_batch():
  z, vec = normal(3, 4, 5), normal(4, 4, 3)
  mean = normal(6, 10)
  given = {**variables(), "batch_stats": {"w": mean}}
  _, moved = generator().apply(given, z, vec, training=True, mutable=["batch_stats"])
  w = generator().apply(given, z, vec, method="mapping")
  want = 0.995 * mean + 0.005 * w.mean(0)
  np.testing.assert_allclose(moved["batch_stats"]["w"], want, rtol=1e-5)

  # Over two devices it is the same.
  @functools.partial(jax.pmap, axis_name="batch", in_axes=(None, 0, 0))
  def step(given, z, vec):
    call = functools.partial(generator().apply, training=True, axis="batch")
    return call(given, z, vec, mutable=["batch_stats"])[1]["batch_stats"]["w"]

  both = step(given, z.reshape(2, 2, 5), vec.reshape(2, 2, 3))
  np.testing.assert_allclose(both, jnp.stack([want, want]), rtol=1e-4)


def test_styles_are_mixed_in_training_by_the_examples_key():
  n = 32
  z, vec = jnp.tile(normal(3, 1, 5), (n, 1)), jnp.tile(normal(4, 1, 3), (n, 1))
  silent = jax.tree.map(lambda p: p * (p.ndim > 0), variables()["params"])
  given = {**variables(), "params": silent}
  plain = drawn()(given, z, vec, keys(n))
  y = drawn(True)(given, z, vec, keys(n))
  changed = np.abs(y - plain).max((1, 2, 3)) > 1e-4
  assert 0.7 < changed.mean() < 1
  # Half the batch gives half of the pictures; the order of rows does not count.
  part = drawn(True)(given, z[::2], vec[::2], keys(n)[::2])
  np.testing.assert_allclose(part, y[::2], rtol=1e-4, atol=1e-4)


def test_mixing_keeps_the_coarse_style():
  net = generator().clone(mixing=1.0).bind(variables())
  w = normal(5, 200, net.styles, 10)
  mixed = net._mixed(w, keys(200), (5,), normal(4, 200, 3))
  same = np.asarray((mixed == w).all(-1))
  assert same[:, 0].all()
  assert not same[:, -1].any()
  # Never back to the first style, and each layer has its turn as the first.
  assert (np.diff(same.astype(int), axis=1) <= 0).all()
  assert set(same.sum(1)) == {1, 2, 3}


@pytest.mark.parametrize("conditional", [False, True])
def test_critic_reads_everything_and_does_not_depend_on_the_cut(conditional):
  net = Critic((6, 8), layers=2)
  x, vec = normal(0, 8, 8, 8, 3), normal(1, 8, 3) if conditional else None
  given = jax.jit(net.init)(KEY, x, vec)
  score = jax.jit(net.apply)
  y = score(given, x, vec)
  assert y.shape == (8,)
  assert np.std(y) > 1e-3
  halves = [score(given, x[i : i + 4], None if vec is None else vec[i : i + 4])
            for i in (0, 4)]  # fmt: skip
  np.testing.assert_allclose(jnp.concatenate(halves), y, rtol=1e-4, atol=1e-5)
  # The rows of a group see one another, those of another group do not.
  other = score(given, x.at[0].add(1), vec)
  assert (np.abs(other - y)[:4] > 1e-6).all()
  np.testing.assert_allclose(other[4:], y[4:], rtol=1e-5, atol=1e-6)
  if conditional:
    assert (np.abs(score(given, x, vec + normal(5, 8, 3)) - y) > 1e-6).all()


def test_critic_by_hand():
  """Figure 7c of the paper, residual: (shortcut + branch) / sqrt(2)."""
  net = Critic((6, 8), layers=1, group=2)
  x, vec = normal(0, 4, 8, 8, 3), normal(1, 4, 5)
  made = jax.jit(net.init)(KEY, x, vec)
  p = jax.tree.map(lambda a: a + 0.2 * normal(2, *a.shape), made)["params"]
  leaky = modulated.leaky

  def scaled(name):
    kernel = p[name]["kernel"]
    return kernel / math.sqrt(kernel[..., 0].size)

  def conv(name, x):
    return leaky(resample.conv(x, scaled(name)) + p[name]["bias"])

  def dense(name, x):
    return x @ scaled(name) + p[name]["bias"]

  y = conv("in", x)
  branch = resample.halved_conv(conv("down_0_conv_0", y), scaled("down_0_conv_1"))
  branch = leaky(branch + p["down_0_conv_1"]["bias"])
  shortcut = resample.conv(resample.halved(y), scaled("down_0_shortcut"))
  y = minibatch_std((branch + shortcut) / math.sqrt(2), 2)
  y = leaky(dense("out_dense", conv("out_conv", y).reshape(4, -1)))
  own = p["mapper"]
  told = modulated.normalized(
    vec @ own["embed"]["kernel"] / math.sqrt(5) + own["embed"]["bias"]
  )
  mapped = told @ (0.01 * own["dense_0"]["kernel"]) / math.sqrt(8)
  told = leaky(mapped + 0.01 * own["dense_0"]["bias"])
  want = (dense("out", y) * told).sum(-1) / math.sqrt(8)
  np.testing.assert_allclose(net.apply({"params": p}, x, vec), want, rtol=1e-3)


def test_computation_in_bfloat16():
  net = generator().clone(dtype=jnp.bfloat16)
  z, vec = normal(3, 4, 5), normal(4, 4, 3)
  y = net.apply(variables(), z, vec)
  assert y.dtype == jnp.float32
  want = drawn()(variables(), z, vec)
  assert 0 < np.abs(y - want).max() < 0.1 * np.abs(want).max()
  critic = Critic((6, 8), dtype=jnp.bfloat16)
  given = critic.init(KEY, y)
  assert {p.dtype for p in jax.tree.leaves(given)} == {jnp.dtype("float32")}
  assert critic.apply(given, y).dtype == jnp.float32


def test_sides_that_cannot_be_halved():
  with pytest.raises(UserError, match="cannot be halved 2 times"):
    Generator((6, 6, 1), (4, 4, 4)).init(KEY, normal(0, 1, 3))
  with pytest.raises(UserError, match="cannot be halved 2 times"):
    Critic((4, 4, 4)).init(KEY, normal(0, 1, 6, 6, 1))
