"""Gumbel-softmax and FSQ: computed by hand, and against direct sums."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from core.errors import UserError
from vae import bottlenecks, quantizers

KEY = jax.random.key(0)
LOGITS = jnp.log(jnp.array([0.5, 0.3, 0.15, 0.05]))


def test_gumbel_samples_are_one_hot_in_the_limit_and_follow_the_softmax():
  n = 20_000
  keys = jax.random.split(KEY, n)
  logits = jnp.broadcast_to(LOGITS, (n, 4))
  hard = quantizers.relaxed(logits, keys, 1e-4)
  np.testing.assert_allclose(hard.sum(-1), 1.0, rtol=1e-5)
  assert jnp.mean(hard.max(-1) > 0.999) > 0.995
  p = np.exp(np.asarray(LOGITS, np.float64))
  assert (np.abs(hard.mean(0) - p) < 4 * np.sqrt(p * (1 - p) / n)).all()
  # The same noise at a higher temperature, so the same winner, but softer.
  soft = quantizers.relaxed(logits, keys, jnp.float32(1.0))
  np.testing.assert_array_equal(jnp.argmax(soft, -1), jnp.argmax(hard, -1))
  assert soft.max(-1).mean() < 0.8
  # An example's noise is its own.
  few = quantizers.relaxed(logits[:3], keys[5:8], 1.0)
  np.testing.assert_allclose(few, soft[5:8], rtol=1e-6)
  assert quantizers.likeliest(jnp.array([[0.0, 2, 2], [1, 0, 0]])).tolist() == [1, 0]


def test_kl_to_uniform_against_a_direct_sum():
  logits = np.random.default_rng(0).normal(size=(3, 2, 2, 5)) * 3
  q = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
  expected = (q * np.log(q * 5)).sum((1, 2, 3))
  kl = quantizers.kl_to_uniform(jnp.asarray(logits, jnp.float32))
  np.testing.assert_allclose(kl, expected, rtol=1e-5)
  ends = jnp.array([[0.0, 0, 0, 0], [500, 0, 0, 0]])
  found = quantizers.kl_to_uniform(ends)
  np.testing.assert_allclose(found, [0, math.log(4)], rtol=1e-6, atol=1e-6)


def test_annealing():
  at = lambda *args: float(quantizers.annealed(jnp.int32(args[0]), *args[1:]))  # noqa: E731
  dalle = (1.0, 1 / 16, 150_000)
  assert at(0, *dalle) == 1.0
  np.testing.assert_allclose(at(75_000, *dalle), 17 / 32, rtol=1e-6)
  np.testing.assert_allclose(at(50_000, *dalle), 1 - 15 / 64, rtol=1e-6)  # cos 60°
  assert at(150_000, *dalle) == at(999_999, *dalle) == 1 / 16
  np.testing.assert_allclose(at(5_000, 0, 6.6, 5_000), 6.6, rtol=1e-6)
  assert at(0, 0.0, 3.0, 0) == 3.0


@pytest.mark.parametrize("levels", [(8, 5, 5, 5), (2, 3, 4), (7,)])
def test_all_codes_of_fsq_come_back(levels):
  count = quantizers.check_levels(levels)
  indices = jnp.arange(count)
  z = quantizers.from_index(indices, levels)
  assert len(np.unique(z, axis=0)) == count
  assert float(jnp.abs(z).max()) == 1.0
  np.testing.assert_array_equal(quantizers.to_index(z, levels), indices)
  # What h are rounded to is a code, and each channel has all of its levels.
  h = jax.random.uniform(KEY, (500, len(levels)), minval=-4, maxval=4)
  found = quantizers.finite_scalar(h, levels)
  numbers = quantizers.to_index(found, levels)
  np.testing.assert_array_equal(quantizers.from_index(numbers, levels), found)
  for channel in range(len(levels)):
    np.testing.assert_array_equal(
      np.unique(found[:, channel]), np.unique(z[:, channel])
    )


def test_fsq_by_hand():
  levels = (3, 5, 4)
  # 0.999 tanh 0.25 = 0.24 is 0; 1.998 tanh 0.6 = 1.07 is 1 of 2; -7 is the least.
  z = quantizers.finite_scalar(jnp.array([0.25, 0.6, -7.0]), levels)
  assert z.tolist() == [0, 0.5, -1]
  assert int(quantizers.to_index(z, levels)) == 1 + 3 * 3 + 15 * 0
  assert quantizers.from_index(jnp.array(10), levels).tolist() == [0, 0.5, -1]
  near = quantizers.bound(jnp.zeros(3), levels)
  np.testing.assert_allclose(near, 0, atol=1e-3)
  # The gradient is that of half tanh(h + shift) / (L // 2).
  h = jnp.array([0.3, -0.8, 0.4])
  slope = jax.grad(lambda h: quantizers.finite_scalar(h, levels).sum())(h)
  half = np.array([0.999, 1.998, 1.4985])
  shift = np.array([0, 0, math.tan(0.5 / 1.4985)])
  expected = half / np.cosh(np.asarray(h) + shift) ** 2 / np.array([1, 2, 2])
  np.testing.assert_allclose(slope, expected, rtol=1e-5)


@pytest.mark.parametrize("levels", [(), (5, 1), (2048, 2048, 512)])
def test_levels_that_are_refused(levels):
  with pytest.raises(UserError, match="vae.levels"):
    quantizers.check_levels(levels)


def chances_of_fsq(h):
  """The chance of each code of 3 and 4 levels, by hand."""
  codes = quantizers.from_index(jnp.arange(12), (3, 4)) * np.array([1, 2])
  off = quantizers.bound(h, (3, 4))[..., None, :] - codes
  return jax.nn.softmax(-jnp.sum(off**2, axis=-1) / quantizers.SOFT)


@pytest.mark.parametrize(
  ("kind", "chances"), [("fsq", chances_of_fsq), ("gumbel", jax.nn.softmax)]
)
def test_pressure_towards_even_use_has_the_gradient_of_the_entropy(kind, chances):
  vae = base.vae()
  vae.bottleneck, vae.evenness, vae.beta, vae.codes, vae.levels = (
    kind,
    0.5,
    0,
    12,
    (3, 4),
  )
  bottleneck = bottlenecks.make(vae, 1, 5)
  h = jax.random.normal(KEY, (5, 2, 2, bottleneck.encoded))
  shares = chances(h).reshape(-1, 12).mean(0)
  mask = jnp.array([1.0, 1.0, 1.0, 0.0, 1.0])
  rows = bottlenecks.Rows(jnp.arange(5), jax.random.split(KEY, 5), mask, jnp.int32(0))

  def penalty(h):
    passed = bottleneck.train(h, {"shares": shares}, rows)
    return passed.penalty.mean(), passed

  def entropy(h):
    return jnp.sum(jax.scipy.special.entr(chances(h).reshape(-1, 12).mean(0)))

  found, passed = jax.grad(penalty, has_aux=True)(h)
  np.testing.assert_allclose(found, -0.5 * jax.grad(entropy)(h), rtol=1e-4, atol=1e-7)
  want = jnp.mean(chances(h) @ jnp.log(shares), axis=(1, 2))
  np.testing.assert_allclose(passed.metrics["log_share"], want, rtol=1e-5)
  # The shares move towards those of the codes that the unmasked rows take.
  taken = np.asarray(jnp.argmax(chances(h), -1))[np.asarray(mask, bool)]
  counts = np.bincount(taken.ravel(), minlength=12)
  moved = bottleneck.update({"shares": shares}, passed.sums, KEY)["shares"]
  np.testing.assert_allclose(moved, 0.9 * shares + 0.1 * counts / 16, rtol=1e-5)
