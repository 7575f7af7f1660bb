"""The autoencoder: its maths by hand, sizes, condition and dropout."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core.errors import UserError
from nets.autoencoder import Autoencoder, Decoder, Encoder

KEY = jax.random.key(0)
SMALL = {"widths": (8, 16), "blocks": 1, "attention": (4,), "head_dim": 8}


def make(**options):
  return Autoencoder(image_channels=3, encoded=6, latent=2, **SMALL | options)


def inputs(b=2):
  x = jax.random.normal(KEY, (b, 8, 12, 3))
  return x, jax.random.normal(jax.random.fold_in(KEY, 1), (b, 5))


@functools.cache
def params(conditional=False):
  """The parameters of `make()` with noise on top, so that nothing starts at zero."""
  x, vec = inputs()
  args = (x, vec) if conditional else (x,)
  shapes = jax.eval_shape(make().init, KEY, *args)
  leaves, tree = jax.tree.flatten(shapes)
  rng = np.random.default_rng(0)
  return tree.unflatten(
    [jnp.asarray(0.2 * rng.normal(size=leaf.shape), jnp.float32) for leaf in leaves]
  )


@functools.cache
def compiled(net):
  """What images are encoded to, and two channels of it decoded."""

  def both(params, x, vec=None, ids=None, rngs=None):
    run = functools.partial(net.apply, params, vec=vec, ids=ids, rngs=rngs)
    y = run(x, method="encode")
    return y, run(y[..., :2], method="decode")

  return jax.jit(both)


@pytest.mark.parametrize("levels", range(1, 7))
def test_sizes(levels):
  f, widths = 2 ** (levels - 1), (8, 8, 16, 16, 8, 8)[:levels]
  encoder, decoder = (
    net(out, widths, blocks=1) for net, out in ((Encoder, 6), (Decoder, 3))
  )
  y, theta = jax.eval_shape(encoder.init_with_output, KEY, jnp.zeros((2, 2 * f, f, 3)))
  assert (y.shape, y.dtype) == ((2, 2, 1, 6), jnp.float32)
  assert sum(name.endswith("_conv") for name in theta["params"]) == levels - 1
  x, theta = jax.eval_shape(decoder.init_with_output, KEY, jnp.zeros((2, 2, 1, 4)))
  assert (x.shape, x.dtype) == ((2, 2 * f, f, 3), jnp.float32)
  # One block more a level than in the encoder, and two in the middle.
  blocks = [name for name, p in theta["params"].items() if "conv_0" in p]
  assert len(blocks) == 2 * levels + 2


def test_halving_by_hand():
  # No blocks but those in the middle, which start as the identity; `in` and `out` are
  # made the identity too.
  net = Encoder(2, widths=(2, 2), blocks=0, middle_attention=False)
  x = jax.random.normal(KEY, (1, 4, 6, 2))
  theta = net.init(KEY, x)["params"]
  one = jnp.zeros((3, 3, 2, 2)).at[1, 1].set(jnp.eye(2))
  theta["in"]["kernel"] = theta["out"]["kernel"] = one
  kernel = np.asarray(theta["down_1_conv"]["kernel"], np.float64)
  padded = np.zeros((5, 7, 2))
  padded[:4, :6] = x[0]  # zeros below and to the right only
  want = np.zeros((2, 3, 2))
  for i, j in np.ndindex(2, 3):
    square = padded[2 * i : 2 * i + 3, 2 * j : 2 * j + 3]
    want[i, j] = np.einsum("hwc,hwcd->d", square, kernel)
  want = (want - want.mean()) / np.sqrt(want.var() + 1e-6)  # one group
  want = want / (1 + np.exp(-want))
  np.testing.assert_allclose(net.apply({"params": theta}, x)[0], want, atol=1e-5)


def test_doubling_by_hand():
  net = Decoder(2, widths=(2, 2), blocks=0, middle_attention=False)
  z = jax.random.normal(KEY, (1, 2, 3, 2))
  theta = net.init(KEY, z)["params"]
  one = jnp.zeros((3, 3, 2, 2)).at[1, 1].set(jnp.eye(2))
  theta["in"]["kernel"] = theta["out"]["kernel"] = one
  kernel = np.asarray(theta["up_1_conv"]["kernel"], np.float64)
  padded = np.zeros((6, 8, 2))
  for i, j in np.ndindex(4, 6):
    padded[i + 1, j + 1] = z[0, i // 2, j // 2]  # the nearest pixel
  want = np.zeros((4, 6, 2))
  for i, j in np.ndindex(4, 6):
    square = padded[i : i + 3, j : j + 3]
    want[i, j] = np.einsum("hwc,hwcd->d", square, kernel)
  want = (want - want.mean()) / np.sqrt(want.var() + 1e-6)  # one group
  want = want / (1 + np.exp(-want))
  np.testing.assert_allclose(net.apply({"params": theta}, z)[0], want, atol=1e-5)


def test_linear_maps_around_the_latents():
  x, _ = inputs()

  def run(quant, bias, post):
    theta = {
      **params()["params"],
      "quant": {"kernel": quant, "bias": bias},
      "post_quant": {"kernel": post, "bias": jnp.zeros(2)},
    }
    return compiled(make())({"params": theta}, x)

  quant, bias, post = (
    np.random.default_rng(i).normal(size=shape).astype(np.float32)
    for i, shape in enumerate([(6, 6), (6,), (2, 2)])
  )
  h, image = run(np.eye(6, dtype=np.float32), 0 * bias, post)
  y, _ = run(quant, bias, post)
  np.testing.assert_allclose(y, h @ quant + bias, atol=1e-4)
  # The first two channels are decoded: a map behind them does what one before does.
  before = np.eye(6, dtype=np.float32)
  before[:2, :2] = post
  _, same = run(before, 0 * bias, np.eye(2, dtype=np.float32))
  np.testing.assert_allclose(same, image, atol=1e-4)
  assert jnp.abs(run(before, 0 * bias, post)[1] - image).max() > 1e-2
  first, image = jax.eval_shape(make().apply, params(), x)  # what init runs
  assert (first.shape, image.shape) == (y.shape, x.shape)


def test_condition():
  x, vec = inputs()
  plain, conditional = params(), params(True)
  added = {jax.tree_util.keystr(k) for k, _ in jax.tree.leaves_with_path(conditional)}
  added -= {jax.tree_util.keystr(k) for k, _ in jax.tree.leaves_with_path(plain)}
  # Encoder 1 + 1 + 2 blocks, decoder 2 + 2 + 2; each a kernel and a bias.
  assert len(added) == 2 * 10
  assert all("modulation" in name for name in added)
  run = functools.partial(compiled(make()), conditional, x)
  first, other = run(vec), run(vec.at[0].add(1))
  for a, b in zip(first, other, strict=True):
    differ = jnp.abs(a - b).max((1, 2, 3))
    assert differ[0] > 1e-3
    assert differ[1] == 0
  # A modulation of zero is none.
  zero = jax.tree_util.tree_map_with_path(
    lambda k, p: 0 * p if "modulation" in jax.tree_util.keystr(k) else p, conditional
  )
  found = compiled(make())(zero, x, vec)
  for a, b in zip(found, compiled(make())(conditional, x), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5)


def test_attention_where_asked():
  def names(**options):
    shapes = jax.eval_shape(make(**options).init, KEY, inputs()[0])["params"]
    return {
      f"{side}/{name}"
      for side in ("encoder", "decoder")
      for name in shapes[side]
      if "attention" in name
    }

  middle = {"encoder/middle_attention", "decoder/middle_attention"}
  assert names(attention=()) == middle
  assert names(attention=(8,), middle_attention=False) == {
    "encoder/down_0_0_attention",
    "decoder/up_0_0_attention",
    "decoder/up_0_1_attention",
  }
  assert names() == middle | {
    "encoder/down_1_0_attention",
    "decoder/up_1_0_attention",
    "decoder/up_1_1_attention",
  }
  # One head of all channels is not two of half.
  y, _ = compiled(make())(params(), inputs()[0])
  one, _ = compiled(make(head_dim=0))(params(), inputs()[0])
  assert jnp.abs(one - y).max() > 1e-4


def test_dropout_is_keyed_by_the_example():
  x, _ = inputs()
  ids, rngs = jnp.array([7, 2**31], jnp.uint32), {"dropout": KEY}
  run = compiled(make(dropout=0.5))
  found = run(params(), x, ids=ids, rngs=rngs)
  swapped = run(params(), x[::-1], ids=ids[::-1], rngs=rngs)
  for a, b in zip(swapped, found, strict=True):
    np.testing.assert_allclose(a[::-1], b, atol=5e-5)
  clean = compiled(make())(params(), x)
  for a, b in zip(run(params(), x), clean, strict=True):  # needs no key
    np.testing.assert_array_equal(a, b)
  for other in (clean, run(params(), x, ids=ids + 1, rngs=rngs)):
    for a, b in zip(other, found, strict=True):
      assert (jnp.abs(a - b).max((1, 2, 3)) > 1e-3).all()


def test_remat_changes_no_number():
  x, vec = inputs()
  small = {"widths": (8,), "attention": (), "dropout": 0.3}
  theta = jax.jit(make(**small).init)(KEY, x, vec)
  theta = jax.tree.map(lambda p: p + 0.1, theta)

  def grads(**options):
    def loss(theta):
      y = make(**small, **options).apply(
        theta, x, vec, jnp.arange(2), method="encode", rngs={"dropout": KEY}
      )
      return (y**2).mean()

    return jax.jit(jax.grad(loss))(theta)

  for a, b in zip(*map(jax.tree.leaves, (grads(remat=True), grads())), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5 + 1e-4 * jnp.abs(b).max())


def test_bfloat16_computes_on_float32_parameters():
  x, _ = inputs()
  net = make(dtype=jnp.bfloat16)
  for leaf in jax.tree.leaves(jax.eval_shape(net.init, KEY, x)):
    assert leaf.dtype == jnp.float32
  for a, b in zip(
    compiled(net)(params(), x), compiled(make())(params(), x), strict=True
  ):
    assert a.dtype == jnp.float32
    assert 0 < jnp.abs(a - b).max() < 0.1 * jnp.abs(b).max()


def test_what_does_not_fit_is_refused():
  x = jnp.zeros((1, 6, 10, 3))
  for net, sentence in (
    (Encoder(4, (8, 8, 8)), "6x10 cannot be halved 2 times.* 4x8 or 8x12"),
    (Encoder(4, (8, 16), head_dim=7), "width 16 does not divide into .* heads of 7"),
    (
      Decoder(4, (8, 12), attention=(12,), head_dim=12),
      "width 8 does not divide into .* heads of 12",
    ),
  ):
    with pytest.raises(UserError, match=sentence):
      jax.eval_shape(net.init, KEY, x)
