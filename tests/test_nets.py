"""U-Net, DiT and transformer: what they read, what they ignore, where they start."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core.errors import UserError
from nets.attention import attend
from nets.dit import DiT, patchify, unpatchify
from nets.embeddings import NoiseEmbedding, positions_2d, sinusoidal
from nets.layers import Dropout, GroupNorm
from nets.transformer import Encoder
from nets.unet import UNet
from text.cond import Cond

KEY = jax.random.key(0)
NETS = {
  "unet": functools.partial(
    UNet, out_channels=2, widths=(8, 16), blocks=1, attention=(4,), head_dim=8
  ),
  "dit": functools.partial(DiT, dim=16, depth=2, heads=2, patch=2, out_channels=2),
}
net = pytest.mark.parametrize("make", list(NETS.values()), ids=list(NETS))


def shuffled(params):
  """Parameters with noise on top, so that nothing hides behind a zero."""
  leaves, tree = jax.tree.flatten(params)
  keys = jax.random.split(jax.random.key(1), len(leaves))
  return tree.unflatten(
    [p + 0.2 * jax.random.normal(k, p.shape) for p, k in zip(leaves, keys, strict=True)]
  )


def inputs(b=4):
  x, seq, pooled = (
    jax.random.normal(jax.random.fold_in(KEY, i), (b, *shape))
    for i, shape in enumerate([(8, 8, 3), (5, 6), (6,)])
  )
  mask = jnp.arange(5) < 1 + jnp.arange(b)[:, None]
  return x, jnp.linspace(-4, 4, b), Cond(seq=seq, mask=mask, pooled=pooled)


@functools.cache
def fresh(module):
  """The module's parameters, as it makes them."""
  return jax.jit(module.init)(KEY, *inputs())


@functools.cache
def compiled(module):
  return jax.jit(module.apply)


def run(module, params, *args, **kwargs):
  return compiled(module)(params, *args, **kwargs)


@net
def test_output_starts_at_zero(make):
  assert (run(make(), fresh(make()), *inputs()) == 0).all()


@net
def test_every_input_is_read(make):
  x, logsnr, cond = inputs()
  apply = functools.partial(run, make(), shuffled(fresh(make())))
  y = apply(x, logsnr, cond)
  for other in (
    (x + 1, logsnr, cond),
    (x, logsnr + 1, cond),
    (x, logsnr, cond.replace(seq=cond.seq[..., ::-1])),
    (x, logsnr, cond.replace(pooled=cond.pooled + 1)),
  ):
    differ = jnp.abs(apply(*other) - y).max(axis=(1, 2, 3))
    assert (differ > 1e-4).all()


@net
def test_examples_do_not_see_one_another(make):
  x, logsnr, cond = inputs()
  apply = functools.partial(run, make(), shuffled(fresh(make())))
  y = apply(x, logsnr, cond)
  np.testing.assert_array_equal(apply(x.at[1:].set(0), logsnr, cond)[0], y[0])


@net
def test_padding_is_not_read(make):
  x, logsnr, cond = inputs()
  apply = functools.partial(run, make(), shuffled(fresh(make())))
  y = apply(x, logsnr, cond)
  junk = jnp.where(cond.mask[..., None], cond.seq, 1e3)
  np.testing.assert_array_equal(apply(x, logsnr, cond.replace(seq=junk)), y)
  # Four tokens at most are text: without the fifth, and without a mask, the same.
  cut = cond.replace(seq=cond.seq[:, :4], mask=None)
  np.testing.assert_allclose(apply(x, logsnr, cut)[3], y[3], atol=2e-5)


@net
def test_null_condition_is_well_defined(make):
  x, logsnr, cond = inputs()
  params = shuffled(fresh(make()))

  def loss(params, cond):
    return (make().apply(params, x, logsnr, cond) ** 2).mean()

  grad = jax.jit(jax.grad(loss))
  null = cond.null_like()
  for leaf in jax.tree.leaves(grad(params, null)):
    assert jnp.isfinite(leaf).all()
  # What the null condition's sequence holds makes no difference.
  y = run(make(), params, x, logsnr, null)
  other = null.replace(seq=cond.seq)
  np.testing.assert_array_equal(run(make(), params, x, logsnr, other), y)


@net
def test_dropout_does_not_depend_on_how_the_batch_is_cut(make):
  x, logsnr, cond = inputs()
  module = make(dropout=0.5)
  params, ids = shuffled(fresh(make())), jnp.array([7, 3, 8, 2**31], jnp.uint32)
  apply = functools.partial(run, module, params, rngs={"dropout": KEY})
  y = apply(x, logsnr, cond, ids)
  for rows in (slice(0, 2), slice(2, 4)):
    part = jax.tree.map(lambda a, rows=rows: a[rows], (x, logsnr, cond, ids))
    np.testing.assert_allclose(apply(*part), y[rows], atol=2e-5)
  clean = run(module, params, x, logsnr, cond)  # needs no key
  np.testing.assert_array_equal(clean, run(make(), params, x, logsnr, cond))
  assert (jnp.abs(y - clean).max(axis=(1, 2, 3)) > 1e-3).all()
  assert jnp.abs(apply(x, logsnr, cond, ids + 1) - y).max() > 1e-3


@pytest.mark.parametrize(
  ("make", "options"),
  [
    (NETS["unet"], {"remat": True}),
    (NETS["dit"], {"remat": True}),
    (NETS["dit"], {"scan": False}),
    (NETS["dit"], {"remat": True, "scan": False}),
  ],
)
def test_memory_and_compile_options_change_no_number(make, options):
  args, params = inputs(), shuffled(fresh(make()))
  ids = jnp.arange(4)

  def value_and_grad(module):
    def loss(params):
      y = module.apply(params, *args, ids, rngs={"dropout": KEY})
      return (y**2).mean(), y

    return jax.jit(jax.value_and_grad(loss, has_aux=True))(params)

  (_, y), grads = value_and_grad(make(dropout=0.3))
  (_, y2), grads2 = value_and_grad(make(dropout=0.3, **options))
  np.testing.assert_allclose(y2, y, atol=2e-5)
  for a, b in zip(jax.tree.leaves(grads2), jax.tree.leaves(grads), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5 + 1e-4 * jnp.abs(b).max())


@net
def test_bfloat16_computes_on_float32_parameters(make):
  module = make(dtype=jnp.bfloat16)
  for leaf in jax.tree.leaves(jax.eval_shape(module.init, KEY, *inputs())):
    assert leaf.dtype == jnp.float32
  params = jax.tree.map(lambda p: p / 2, shuffled(fresh(make())))
  y = run(make(), params, *inputs())
  half = run(module, params, *inputs())
  assert half.dtype == jnp.float32
  error = jnp.abs(half - y).max() / jnp.abs(y).max()
  assert 0 < error < 0.05


@net
def test_any_fitting_size_with_the_same_parameters(make):
  x, logsnr, cond = inputs()
  wide = jnp.concatenate([x, x], axis=2)
  params = shuffled(fresh(make()))
  assert run(make(), params, wide, logsnr, cond).shape == (4, 8, 16, 2)


def test_dit_knows_where_a_patch_is():
  x, logsnr, cond = inputs()
  apply = functools.partial(run, NETS["dit"](), shuffled(fresh(NETS["dit"]())))
  moved = apply(jnp.roll(x, 2, axis=2), logsnr, cond)
  y = jnp.roll(apply(x, logsnr, cond), 2, axis=2)
  assert jnp.abs(moved - y).max() > 1e-2


def test_every_pixel_reaches_every_other():
  x, logsnr, cond = inputs(1)
  for make in NETS.values():
    params = shuffled(fresh(make()))

    def corner(x, make=make, params=params):
      return make().apply(params, x, logsnr, cond)[0, 0, 0, 0]

    assert (jnp.abs(jax.jit(jax.grad(corner))(x)).sum(axis=-1) > 0).all()


def test_encoder_ignores_padding_and_order():
  x = jax.random.normal(KEY, (2, 5, 8))
  mask = jnp.array([[True] * 3 + [False] * 2, [False] * 5])
  module = Encoder(dim=8, depth=2, heads=2)
  params = shuffled(jax.jit(module.init)(KEY, x, mask))
  y = run(module, params, x, mask)
  assert jnp.isfinite(y).all()
  np.testing.assert_allclose(run(module, params, x[:1, :3], None), y[:1, :3], atol=2e-5)
  # Positions come with x, so the encoder itself only sees a set.
  order = jnp.array([4, 2, 0, 3, 1])
  np.testing.assert_allclose(
    run(module, params, x[:, order], mask[:, order]), y[:, order], atol=2e-5
  )

  def loss(params):
    return (module.apply(params, x, mask) ** 2).mean()

  for leaf in jax.tree.leaves(jax.jit(jax.grad(loss))(params)):
    assert jnp.isfinite(leaf).all()


def test_attention_by_hand():
  q, k, v = (
    jax.random.normal(jax.random.fold_in(KEY, i), (2, n, 3, 4))
    for i, n in enumerate([5, 7, 7])
  )
  mask = jnp.arange(7) < jnp.array([[7], [4]])
  want = np.zeros(q.shape)
  for (b, i, h), _ in np.ndenumerate(want[..., 0]):
    weights = np.exp(np.asarray(k[b, :, h] @ q[b, i, h]) / 2) * mask[b]
    want[b, i, h] = weights / weights.sum() @ v[b, :, h]
  np.testing.assert_allclose(attend(q, k, v, mask), want, atol=1e-6)
  # Large logits neither overflow nor lose the gradient.
  value, grad = jax.value_and_grad(lambda q: attend(q, k, v).sum())(1e4 * q)
  assert jnp.isfinite(value)
  assert jnp.isfinite(grad).all()


def test_attention_gradient_is_that_of_softmax():
  q, k, v = jax.random.normal(KEY, (3, 2, 5, 3, 4))

  def plain(q, k, v):
    weights = jax.nn.softmax(jnp.einsum("blhd,bmhd->bhlm", q, k) / 2)
    return jnp.einsum("bhlm,bmhd->blhd", weights, v)

  got, want = (
    jax.grad(lambda args, f=f: jnp.sin(f(*args)).sum())((q, k, v))
    for f in (attend, plain)
  )
  for a, b in zip(got, want, strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5)


def test_group_norm():
  x = 3 + 2 * jax.random.normal(KEY, (2, 5, 6, 48))  # 16 groups of 3 channels
  y = GroupNorm().apply({"params": {"scale": jnp.ones(48), "bias": jnp.zeros(48)}}, x)
  groups = np.asarray(x).reshape(2, 30, 16, 3)
  mean, std = (f(groups, axis=(1, 3), keepdims=True) for f in (np.mean, np.std))
  want = ((groups - mean) / std).reshape(x.shape)
  np.testing.assert_allclose(y, want, atol=1e-5)
  gain, bias, scale, shift = jax.random.normal(KEY, (4, 48))
  y = GroupNorm().apply(
    {"params": {"scale": gain, "bias": bias}},
    x,
    jnp.tile(jnp.concatenate([scale, shift]), (2, 1)),
  )
  want = (want * gain + bias) * (1 + scale) + shift
  np.testing.assert_allclose(y, want, atol=1e-5)


def test_dropout_keeps_the_mean_and_the_rate():
  x, ids = jnp.ones((4, 5000)), jnp.arange(4)
  y = Dropout(0.2).apply({}, x, ids, rngs={"dropout": KEY})
  np.testing.assert_array_equal(jnp.unique(y), [0, jnp.float32(1) / 0.8])
  np.testing.assert_allclose(y.mean(axis=1), 1, atol=0.04)
  assert (y[0] != y[1]).any()


def test_patches():
  x = jax.random.normal(KEY, (2, 4, 6, 3))
  patches = patchify(x, 2)
  np.testing.assert_array_equal(patches[1, 4], x[1, 2:4, 2:4].reshape(-1))
  np.testing.assert_array_equal(unpatchify(patches, 4, 6, 2), x)


def test_embeddings():
  x = jnp.array([0.0, 1.5, -300.0])
  freqs = np.array([1.0, 1e-1, 1e-2, 1e-3])
  angles = np.asarray(x)[:, None] * freqs
  want = np.concatenate([np.cos(angles), np.sin(angles)], axis=1)
  np.testing.assert_allclose(sinusoidal(x, 8), want, atol=1e-5)
  table = positions_2d(4, 6, 16)
  np.testing.assert_allclose(
    table.reshape(4, 6, 2, 8)[2, 5],
    sinusoidal(jnp.array([2.0, 5.0]), 8),
    atol=1e-6,
  )
  assert len(np.unique(table, axis=0)) == 24


def test_noise_embedding_is_finite_at_the_ends():
  logsnr = jnp.array([-jnp.inf, -20.0, jnp.inf, 20.0])
  module = NoiseEmbedding(8)
  y, _ = jax.jit(module.init_with_output)(KEY, logsnr)
  np.testing.assert_array_equal(y[::2], y[1::2])
  assert jnp.abs(y[0] - y[2]).max() > 1e-3


@pytest.mark.parametrize(
  ("module", "sentence"),
  [
    (NETS["unet"](widths=(8, 16, 16)), "6x10 cannot be halved 2 times.* 4x8 or 8x12"),
    (NETS["unet"](head_dim=7), "width 16 does not divide into .* heads of 7"),
    (NETS["dit"](patch=4), "6x10 does not divide into patches of 4x4; use 4x8"),
    (NETS["dit"](heads=3), "`dim` 16 must be a multiple of 4 and of `heads` 3"),
  ],
)
def test_what_does_not_fit_is_refused(module, sentence):
  _, logsnr, cond = inputs()
  with pytest.raises(UserError, match=sentence):
    jax.eval_shape(module.init, KEY, jnp.zeros((4, 6, 10, 3)), logsnr, cond)
