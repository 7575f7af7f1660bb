"""R3GAN: how its networks start, and what they read."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core.errors import UserError
from nets import resample
from nets.r3gan import Block, Critic, Generator

KEY = jax.random.key(0)


def normal(i, *shape):
  return jax.random.normal(jax.random.fold_in(KEY, i), shape)


def shaken(made):
  """Away from what starts at zero."""
  return jax.tree.map(lambda p: p + 0.2 * normal(9, *p.shape), made)


@functools.cache
def generator():
  net = Generator((8, 8, 3), (8, 12), blocks=1, group=4)
  return net, jax.jit(net.init)(KEY, normal(0, 4, 5), normal(1, 4, 3))


@functools.cache
def critic(conditional=True):
  net = Critic((8, 12), blocks=1, group=4)
  vec = normal(1, 4, 3) if conditional else None
  return net, jax.jit(net.init)(KEY, normal(0, 4, 8, 8, 3), vec)


def test_a_block_by_its_formula():
  net = Block(blocks=3, expansion=2, group=4)
  x = normal(0, 2, 5, 5, 6)
  made = shaken(net.init(KEY, x))
  p = made["params"]
  act = lambda y: jnp.where(y > 0, y, 0.2 * y)  # noqa: E731
  y = act(x @ p["conv_0"]["kernel"] + p["bias_0"])
  groups = [
    resample.conv(y[..., i : i + 4], p["conv_1"][..., i : i + 4]) for i in (0, 4, 8)
  ]
  y = act(jnp.concatenate(groups, axis=-1) + p["bias_1"])
  want = x + y @ p["conv_2"]["kernel"]
  np.testing.assert_allclose(net.apply(made, x), want, rtol=1e-4, atol=1e-4)


def test_blocks_start_as_the_identity_and_with_fixups_weights():
  net = Block(blocks=16, expansion=2, group=16)
  x = normal(0, 1, 2, 2, 64)
  made = net.init(KEY, x)
  assert (net.apply(made, x) == x).all()
  p = made["params"]
  gain = math.sqrt(2 / 1.04) / 2
  assert np.std(p["conv_0"]["kernel"]) == pytest.approx(gain / 8, rel=0.05)
  assert np.std(p["conv_1"]) == pytest.approx(gain / 12, rel=0.05)


def test_generator_starts_as_its_doubled_basis():
  net, made = generator()
  z, vec = normal(2, 4, 5), normal(3, 4, 3)
  p = made["params"]
  both = jnp.concatenate([z, vec @ p["embed"]["kernel"]], axis=-1)
  x = p["basis"] * (both @ p["in"]["kernel"])[:, None, None]
  x = resample.doubled(x @ p["up_0_width"]["kernel"])
  want = x @ p["out"]["kernel"]
  np.testing.assert_allclose(net.apply(made, z, vec), want, rtol=1e-4, atol=1e-4)


def test_critic_starts_as_sums_of_the_halved_picture():
  net, made = critic()
  x, vec = normal(2, 4, 8, 8, 3), normal(3, 4, 3)
  p = made["params"]
  y = resample.halved(x @ p["in"]["kernel"]) @ p["down_1_width"]["kernel"]
  features = jnp.einsum("bhwc,hwc->bc", y, p["basis"]) @ p["out"]["kernel"]
  want = (features * (vec @ p["embed"]["kernel"])).sum(-1)
  np.testing.assert_allclose(net.apply(made, x, vec), want, rtol=1e-4, atol=1e-4)


def test_generator_reads_everything():
  net, made = generator()
  made, draw = shaken(made), jax.jit(net.apply)
  z, vec = normal(2, 4, 5), normal(3, 4, 3)
  y = draw(made, z, vec)
  assert y.shape == (4, 8, 8, 3)
  assert jnp.abs(draw(made, z + 1, vec) - y).max() > 1e-3
  assert jnp.abs(draw(made, z, vec + 1) - y).max() > 1e-3
  np.testing.assert_allclose(draw(made, z[:2], vec[:2]), y[:2], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("conditional", [False, True])
def test_critic_reads_everything(conditional):
  net, made = critic(conditional)
  made, score = shaken(made), jax.jit(net.apply)
  x = normal(2, 4, 8, 8, 3)
  vec = normal(3, 4, 3) if conditional else None
  y = score(made, x, vec)
  assert y.shape == (4,)
  # Each pixel counts.
  slope = jax.grad(lambda x: net.apply(made, x, vec).sum())(x)
  assert (np.abs(slope) > 0).all()
  if conditional:
    assert (np.abs(score(made, x, vec + 1) - y) > 1e-4).all()


def test_widths_of_the_paper():
  """CIFAR-10's generator: 768 channels at all of 4 resolutions, groups of 16."""
  net = Generator((32, 32, 3), (768,) * 4)
  shapes = jax.eval_shape(net.init, KEY, jnp.zeros((1, 64)))["params"]
  # conv_0 and conv_2 2 * 768 * 1536, conv_1 9 * 16 * 1536, two biases of 1536.
  block = 2 * 768 * 1536 + 9 * 16 * 1536 + 2 * 1536
  rest = 4 * 4 * 768 + 64 * 768 + 768 * 3
  assert sum(p.size for p in jax.tree.leaves(shapes)) == 8 * block + rest


def test_computation_in_bfloat16():
  net, made = generator()
  z, vec = normal(2, 4, 5), normal(3, 4, 3)
  y = net.clone(dtype=jnp.bfloat16).apply(made, z, vec)
  want = net.apply(made, z, vec)
  assert y.dtype == jnp.float32
  assert 0 < np.abs(y - want).max() < 0.05 * np.abs(want).max()
  judge, made = critic()
  judge = judge.clone(dtype=jnp.bfloat16)
  assert judge.apply(made, y, vec).dtype == jnp.float32
  assert {p.dtype for p in jax.tree.leaves(made)} == {jnp.dtype("float32")}


def test_refusals():
  with pytest.raises(UserError, match="cannot be halved 2 times"):
    Generator((6, 6, 1), (16, 16, 16)).init(KEY, normal(0, 1, 3))
  with pytest.raises(UserError, match="does not divide into groups of 16"):
    Critic((12,)).init(KEY, normal(0, 1, 4, 4, 1))
