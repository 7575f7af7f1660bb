"""Layers of GANs' networks against Flax's own, or their formulas."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core.errors import UserError
from nets import dcgan, patch_critic, resnet_gan, subpixel
from nets.batch_norm import BatchNorm
from nets.projection import project
from nets.subpixel import Resized
from nets.unet import double, halve

KEY = jax.random.key(0)


def normal(i, *shape):
  return jax.random.normal(jax.random.fold_in(KEY, i), shape)


def noisy(params, i=50):
  """Parameters without zeros, so that each is seen to be read."""
  leaves, form = jax.tree.flatten(params)
  draws = [a + 0.3 * normal(i + n, *a.shape) for n, a in enumerate(leaves)]
  return jax.tree.unflatten(form, draws)


def test_double_is_a_transposed_convolution():
  x = normal(0, 2, 3, 5, 4)
  ours, flaxs = dcgan.Double(6), nn.ConvTranspose(6, (4, 4), (2, 2), padding="SAME")
  params = noisy(ours.init(KEY, x))
  assert params["params"]["kernel"].shape == (4, 4, 4, 6)
  np.testing.assert_allclose(ours.apply(params, x), flaxs.apply(params, x), atol=1e-5)
  weight = normal(1, 2, 6, 10, 6)
  got, wanted = (
    jax.grad(lambda p, x, net=net: jnp.sum(weight * net.apply(p, x)), (0, 1))(params, x)
    for net in (ours, flaxs)
  )
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), got, wanted)


@pytest.mark.parametrize("up", [True, False])
def test_resized_convolution_is_flaxs_of_the_doubled_or_halved(up):
  init, x = nn.initializers.normal(1.0), normal(0, 2, 4, 6, 3)
  ours, flaxs = Resized(5, up, init), nn.Conv(5, (3, 3), kernel_init=init)
  both = ours.init(KEY, x), flaxs.init(KEY, x)
  jax.tree.map(np.testing.assert_array_equal, *both)
  params = noisy(both[0])

  def plain(params, x):
    return flaxs.apply(params, double(x)) if up else halve(flaxs.apply(params, x))

  np.testing.assert_allclose(ours.apply(params, x), plain(params, x), atol=1e-4)
  weight = normal(1, *plain(params, x).shape)
  got, wanted = (
    jax.grad(lambda p, x, net=net: jnp.sum(weight * net(p, x)), (0, 1))(params, x)
    for net in (ours.apply, plain)
  )
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-3), got, wanted)


@pytest.mark.parametrize(
  ("make", "mark"),
  [(subpixel.transposed, "lhs_dilate = [2, 2]"), (subpixel.strided, "stride = [2, 2]")],
)
def test_accelerators_get_a_convolution_and_cpus_the_same_product(make, mark):
  x, kernel = normal(0, 2, 6, 4, 3), normal(1, 4, 4, 3, 5)
  traced = jax.jit(make).trace(x, kernel)
  for platform in ("cpu", "tpu", "cuda"):
    lowered = traced.lower(lowering_platforms=(platform,)).as_text()
    assert (mark in lowered) == (platform != "cpu")
  choose = lambda *args, cpu, default: default(*args)  # noqa: E731
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(jax.lax, "platform_dependent", choose)
    other = make(x, kernel)
  np.testing.assert_allclose(make(x, kernel), other, atol=1e-4)


def test_strided_convolution_is_flaxs():
  flaxs, x = (
    nn.Conv(5, (4, 4), (2, 2), padding=1, use_bias=False),
    normal(0, 2, 6, 4, 3),
  )
  params = flaxs.init(KEY, x)
  got = subpixel.strided(x, params["params"]["kernel"])
  np.testing.assert_allclose(got, flaxs.apply(params, x), atol=1e-5)


def test_batch_norm_is_flaxs():
  ours, flaxs = BatchNorm(), nn.BatchNorm(momentum=0.0, epsilon=1e-5)
  x = 2 * normal(0, 6, 4, 4, 3) + 1
  variables = ours.init(KEY, x)
  params = noisy(variables["params"])
  state = {"params": params, "batch_stats": variables["batch_stats"]}
  wanted = flaxs.init(KEY, x, use_running_average=False) | {"params": params}
  for i in range(2):
    x = 2 * normal(i, 6, 4, 4, 3) + 1
    y, moved = ours.apply(state, x, mutable=["batch_stats"])
    z, stats = flaxs.apply(
      wanted, x, use_running_average=False, mutable=["batch_stats"]
    )
    np.testing.assert_allclose(y, z, atol=1e-5)
    state, wanted = state | moved, wanted | stats
  mean, var = state["batch_stats"]["moments"]
  np.testing.assert_allclose(mean, wanted["batch_stats"]["mean"], atol=1e-6)
  np.testing.assert_allclose(var, wanted["batch_stats"]["var"], rtol=1e-5)
  still = ours.apply(state, x, training=False)
  np.testing.assert_allclose(
    still, flaxs.apply(wanted, x, use_running_average=True), atol=1e-5
  )


def test_conditional_batch_norm_by_hand():
  net, x, vec = BatchNorm(), 3 * normal(0, 6, 2, 2, 3) - 1, normal(1, 6, 5)
  variables = net.init(KEY, x, vec)
  params = noisy(variables["params"])
  y, _ = net.apply(variables | {"params": params}, x, vec, mutable=["batch_stats"])
  x, vec = np.asarray(x, np.float64), np.asarray(vec)
  normalised = (x - x.mean((0, 1, 2))) / np.sqrt(x.var((0, 1, 2)) + 1e-5)
  scale = 1 + vec @ np.asarray(params["scale"]["kernel"])
  bias = vec @ np.asarray(params["bias"]["kernel"])
  wanted = scale[:, None, None] * normalised + bias[:, None, None]
  np.testing.assert_allclose(y, wanted, atol=1e-4)


def test_batch_norm_over_an_axis_is_that_of_the_whole_batch():
  net, x = BatchNorm(), 2 * normal(0, 8, 4, 4, 3) + 1
  state = net.init(KEY, x)
  whole, moved = net.apply(state, x, mutable=["batch_stats"])

  def part(x):
    return net.apply(state, x, None, True, "devices", mutable=["batch_stats"])

  cut, stats = jax.vmap(part, axis_name="devices")(x.reshape(4, 2, 4, 4, 3))
  np.testing.assert_allclose(cut.reshape(x.shape), whole, atol=1e-5)
  for row in stats["batch_stats"]["moments"]:
    np.testing.assert_allclose(row, moved["batch_stats"]["moments"], rtol=1e-5)


def test_untracked_batch_norm_keeps_nothing():
  assert set(BatchNorm(tracked=False).init(KEY, normal(0, 4, 2, 2, 3))) == {"params"}


def test_self_attention_by_its_formula():
  net = resnet_gan.Attention(resnet_gan.INITS["xavier"])
  x = normal(0, 2, 4, 6, 16)
  params = net.init(KEY, x)
  np.testing.assert_array_equal(net.apply(params, x), x)  # gamma starts at 0
  params = noisy(params)
  kernels = {
    name: np.asarray(params["params"][name]["kernel"])
    for name in ("q", "k", "v", "out")
  }
  assert [a.shape[-1] for a in kernels.values()] == [2, 2, 8, 16]
  got, gamma = net.apply(params, x), float(params["params"]["gamma"])
  for picture, wanted in zip(np.asarray(x), np.asarray(got), strict=True):
    pooled = lambda y: y.reshape(2, 2, 3, 2, -1).max((1, 3)).reshape(6, -1)  # noqa: E731
    keys, values = (pooled(picture @ kernels[name]) for name in ("k", "v"))
    for at in np.ndindex(4, 6):
      scores = np.exp(keys @ (picture[at] @ kernels["q"]))
      seen = (scores / scores.sum()) @ values @ kernels["out"]
      np.testing.assert_allclose(wanted[at], picture[at] + gamma * seen, atol=1e-4)


class Projection(nn.Module):
  @nn.compact
  def __call__(self, features, vec=None):
    return project(features, vec)


def test_projection_by_hand():
  net, features, vec = Projection(), normal(0, 4, 6), normal(1, 4, 3)
  params = noisy(net.init(KEY, features, vec))["params"]
  w, b = np.asarray(params["logit"]["kernel"])[:, 0], float(params["logit"]["bias"][0])
  v = np.asarray(params["condition"]["kernel"])
  alone = np.asarray(features) @ w + b
  own = alone + np.einsum("be,ed,bd->b", vec, v, features)
  np.testing.assert_allclose(
    net.apply({"params": params}, features, vec), own, rtol=1e-4
  )
  np.testing.assert_allclose(net.apply({"params": params}, features), alone, rtol=1e-4)


def test_a_patchs_condition_is_a_projection_at_its_place():
  net, x, vec = patch_critic.Critic((4, 8)), normal(0, 4, 8, 8, 3), normal(1, 4, 3)
  params = noisy(net.init(KEY, x, vec))["params"]
  apart = {**params, "condition": {"kernel": 0 * params["condition"]["kernel"]}}
  without = net.apply(
    {"params": {k: v for k, v in params.items() if k != "condition"}}, x
  )
  assert without.shape == (4, 2, 2)
  np.testing.assert_allclose(net.apply({"params": apart}, x, vec), without, atol=1e-5)
  assert np.abs(net.apply({"params": params}, x, vec) - without).min() > 1e-4


def convolved(params, x):
  """A 3x3 convolution of the same size."""
  return nn.Conv(params["bias"].size, (3, 3)).apply({"params": params}, x)


def linear(params, x):
  return x @ params["kernel"] + params["bias"]


def test_residual_generator_by_hand():
  """Miyato et al. 2018, figure 9b and table 4, with BigGAN's noise for every block."""
  net = resnet_gan.Generator((8, 8, 3), (4, 5, 6), chunks=True)
  z, vec = normal(0, 4, 7), normal(1, 4, 3)
  p = noisy(net.init(KEY, z, vec)["params"])
  got, _ = net.apply({"params": p}, z, vec, training=True, mutable=["batch_stats"])

  def norm(name, x, told=None):
    y = (x - x.mean((0, 1, 2))) / jnp.sqrt(x.var((0, 1, 2)) + 1e-5)
    if told is None:
      return jax.nn.relu(p[name]["scale"] * y + p[name]["bias"])
    scale, bias = (told @ p[name][key]["kernel"] for key in ("scale", "bias"))
    return jax.nn.relu((1 + scale[:, None, None]) * y + bias[:, None, None])

  # Seven numbers in three parts: 3, 2, 2.
  x = linear(p["in"], z[:, :3]).reshape(4, 2, 2, 6)
  for level, part in enumerate((z[:, 3:5], z[:, 5:])):
    told, name = jnp.concatenate([vec, part], -1), f"block_{level}"
    y = convolved(p[f"{name}_conv_0"], double(norm(f"{name}_norm_0", x, told)))
    y = convolved(p[f"{name}_conv_1"], norm(f"{name}_norm_1", y, told))
    x = y + linear(p[f"{name}_shortcut"], double(x))
  wanted = jnp.tanh(convolved(p["out"], norm("norm", x)))
  np.testing.assert_allclose(got, wanted, atol=1e-3)


def test_residual_critic_by_hand():
  """Miyato et al. 2018, figure 9 and table 4: halved, halved, and one that is not."""
  net = resnet_gan.Critic((5, 6), extra=1)
  x, vec = normal(0, 2, 8, 8, 3), normal(1, 2, 4)
  p = noisy(net.init(KEY, x, vec)["params"])
  relu = jax.nn.relu
  got = net.apply({"params": p}, x, vec)
  y = convolved(p["block_0_conv_1"], relu(convolved(p["block_0_conv_0"], x)))
  x = halve(y) + linear(p["block_0_shortcut"], halve(x))
  y = convolved(p["block_1_conv_0"], relu(x))
  assert y.shape[-1] == 5  # as wide as what the block is given
  y = convolved(p["block_1_conv_1"], relu(y))
  x = halve(y) + halve(linear(p["block_1_shortcut"], x))
  y = convolved(p["block_2_conv_0"], relu(x))
  x = x + convolved(p["block_2_conv_1"], relu(y))
  features = relu(x).sum((1, 2))
  own = (vec @ p["condition"]["kernel"] * features).sum(-1)
  np.testing.assert_allclose(got, linear(p["logit"], features)[:, 0] + own, rtol=1e-3)


@pytest.mark.parametrize("net", [dcgan.Generator, resnet_gan.Generator])
def test_generators_read_all_they_are_told(net):
  made = net(
    (8, 8, 3), (4, 4, 8), **({} if net is dcgan.Generator else {"chunks": True})
  )
  z, vec = normal(0, 4, 6), normal(1, 4, 3)
  variables = made.init(KEY, z, vec)
  params = noisy(variables["params"])

  def total(params, z, vec):
    y, _ = made.apply(
      variables | {"params": params}, z, vec, training=True, mutable=["batch_stats"]
    )
    assert y.shape == (4, 8, 8, 3)
    return jnp.sum(y * normal(2, 4, 8, 8, 3))

  grads = jax.grad(total, (0, 1, 2))(params, z, vec)
  for path, grad in jax.tree_util.tree_leaves_with_path(grads):
    name = jax.tree_util.keystr(path)
    # A norm takes away again what a bias before it adds.
    lost = name.endswith("['bias']") and "norm" not in name
    assert lost or np.abs(grad).max() > 1e-3, name


def test_sides_that_cannot_be_halved():
  z, x = normal(0, 2, 6), normal(0, 2, 6, 6, 3)
  for net, given in (
    (dcgan.Generator((6, 6, 3), (4, 8)), z),
    (resnet_gan.Generator((6, 6, 3), (4, 4, 8)), z),
    (dcgan.Critic((4, 8)), x),
    (resnet_gan.Critic((4, 8)), x),
    (patch_critic.Critic((4, 8)), x),
  ):
    with pytest.raises(UserError):
      net.init(KEY, given)
