"""U-Net, DiT and transformer: what they read, what they ignore, where they start."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from core import noise
from core.errors import UserError
from nets import attention, build
from nets.attention import SelfAttention, attend
from nets.dit import DiT, patchify, unpatchify
from nets.efficient_unet import EfficientUNet
from nets.embeddings import NoiseEmbedding, fourier, positions_2d, sinusoidal
from nets.joint import JointBlock
from nets.layers import ConvOfFew, ConvToFew, Dropout, GroupNorm
from nets.monotone import MonotoneLogsnr
from nets.spatial_transformer import TextAttention
from nets.transformer import Encoder
from nets.unet import ResBlock, UNet, double, halve
from text.cond import Cond

KEY = jax.random.key(0)
NETS = {
  "unet": functools.partial(
    UNet, out_channels=2, widths=(8, 16), blocks=1, attention=(4,), head_dim=8
  ),
  "dit": functools.partial(DiT, dim=16, depth=2, heads=2, patch=2, out_channels=2),
  "ddpm++": functools.partial(
    UNet,
    out_channels=2,
    widths=(16, 8),
    blocks=(1, 2),
    attention=(4,),
    head_dim=8,
    stem=8,
    modulation="shift",
    skip_scale=True,
    resample="block_1x1",
    attention_up="last",
  ),
  "stable_diffusion": functools.partial(
    UNet,
    out_channels=2,
    widths=(8, 16),
    blocks=1,
    attention=(4,),
    head_dim=0,
    heads=2,
    modulation="shift",
    transformer=1,
    groups=4,
    clock="scaled_linear",
  ),
  "efficient_unet": functools.partial(
    EfficientUNet,
    out_channels=2,
    widths=(8, 16),
    blocks=(1, 2),
    attention_levels=(1,),
    text_levels=(1,),
    head_dim=8,
  ),
  "imagen": functools.partial(
    EfficientUNet,
    out_channels=2,
    widths=(8, 16),
    blocks=1,
    attention_levels=(1,),
    text_levels=(0, 1),
    text_attention="joint",
    attention_width=2,
    head_dim=16,
    project=True,
    embedding=12,
  ),
  "joint": functools.partial(
    DiT, dim=16, depth=3, heads=2, patch=2, out_channels=2, text_attention="joint"
  ),
}
net = pytest.mark.parametrize("make", list(NETS.values()), ids=list(NETS))
VARIANTS = ("ddpm++", "stable_diffusion", "imagen")  # of others
KINDS = {name: make for name, make in NETS.items() if name not in VARIANTS}
kind = pytest.mark.parametrize("make", list(KINDS.values()), ids=list(KINDS))


def shuffled(params):
  """Parameters with noise on top, so that nothing hides behind a zero."""
  draw = np.random.default_rng(1)
  return jax.tree.map(
    lambda p: p + 0.2 * draw.normal(size=p.shape).astype(p.dtype),
    jax.device_get(params),
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


@functools.cache
def derivatives(module):
  """The gradients of sum(y * g) for parameters, image, logsnr and text."""

  @jax.jit
  def derivatives(params, x, logsnr, cond, g):
    def apply(params, x, logsnr, seq):
      return module.apply(params, x, logsnr, cond.replace(seq=seq))

    return jax.vjp(apply, params, x, logsnr, cond.seq)[1](g)

  return derivatives


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
  params, null = shuffled(fresh(make())), cond.null_like()
  y = run(make(), params, x, logsnr, null)
  grads = derivatives(make())(params, x, logsnr, null, y)
  for leaf in jax.tree.leaves(grads):
    assert np.isfinite(leaf).all()
  # What the null condition's sequence holds makes no difference.
  other = null.replace(seq=cond.seq)
  np.testing.assert_array_equal(run(make(), params, x, logsnr, other), y)


@net
def test_gradient_reaches_the_text_that_is_read_and_no_other(make):
  x, logsnr, cond = inputs()
  cond = cond.replace(mask=cond.mask.at[3].set(False))
  params, g = shuffled(fresh(make())), jax.random.normal(KEY, (4, 8, 8, 2))
  *_, seq = derivatives(make())(params, x, logsnr, cond, g)
  np.testing.assert_array_equal(jnp.abs(seq).max(axis=-1) > 0, cond.mask)


@net
def test_infinite_logsnr_is_finite(make):
  x, _, cond = inputs()
  logsnr = jnp.array([-jnp.inf, jnp.inf] * 2)
  params = shuffled(fresh(make()))
  y = run(make(), params, x, logsnr, cond)
  for leaf in jax.tree.leaves(derivatives(make())(params, x, logsnr, cond, y)):
    assert np.isfinite(leaf).all()
  same = run(make(), params, x, jnp.clip(logsnr, -20, 20), cond)
  np.testing.assert_array_equal(y, same)


@kind
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


@functools.cache
def value_and_grad(module):
  """Of the mean square, with dropout, for parameters."""
  args, ids = inputs(), jnp.arange(4)

  def loss(params):
    y = module.apply(params, *args, ids, rngs={"dropout": KEY})
    return (y**2).mean(), y

  return jax.jit(jax.value_and_grad(loss, has_aux=True))


@pytest.mark.parametrize(
  ("make", "options"),
  [
    (functools.partial(NETS["unet"], widths=(8,), attention=()), {"remat": True}),
    pytest.param(NETS["dit"], {"remat": True}, marks=pytest.mark.slow),
    pytest.param(NETS["dit"], {"scan": False}, marks=pytest.mark.slow),
    (NETS["dit"], {"remat": True, "scan": False}),
    (
      functools.partial(
        NETS["efficient_unet"],
        widths=(8,),
        blocks=1,
        attention_levels=(0,),
        text_levels=(0,),
      ),
      {"remat": True},
    ),
    (NETS["joint"], {"remat": True, "scan": False}),
  ],
)
def test_memory_and_compile_options_change_no_number(make, options):
  params = shuffled(fresh(make()))
  (_, y), grads = value_and_grad(make(dropout=0.3))(params)
  (_, y2), grads2 = value_and_grad(make(dropout=0.3, **options))(params)
  np.testing.assert_allclose(y2, y, atol=2e-5)
  for a, b in zip(jax.tree.leaves(grads2), jax.tree.leaves(grads), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5 + 1e-4 * np.abs(b).max())


@kind
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


@kind
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


@net
def test_every_pixel_reaches_every_other(make):
  corner = jnp.zeros((4, 8, 8, 2)).at[:, 0, 0, 0].set(1)
  _, x, *_ = derivatives(make())(shuffled(fresh(make())), *inputs(), corner)
  assert (jnp.abs(x).sum(axis=-1) > 0).all()


@net
def test_every_parameter_gets_a_gradient(make):
  g = jax.random.normal(KEY, (4, 8, 8, 2))
  grads, *_ = derivatives(make())(shuffled(fresh(make())), *inputs(), g)
  for path, leaf in jax.tree.leaves_with_path(grads):
    assert np.any(np.asarray(leaf) != 0), path


def joint_by_hand(params, x, y, mask, vec, heads):
  """JointBlock in numpy, one example, head and token after the other."""
  params = jax.tree.map(lambda p: np.asarray(p, np.float64), params)
  silu = vec / (1 + np.exp(-vec))

  def dense(name, a):
    return a @ params[name]["kernel"] + params[name]["bias"]

  def normed(a, shift, scale):
    a = (a - a.mean(-1, keepdims=True)) / np.sqrt(a.var(-1, keepdims=True) + 1e-6)
    return a * (1 + scale) + shift

  def rms(name, a):
    return a / np.sqrt((a**2).mean(-1, keepdims=True) + 1e-6) * params[name]["scale"]

  def gelu(a):
    return a / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (a + 0.044715 * a**3)))

  outs = []
  for b in range(len(x)):
    tokens = {"image": x[b], "text": y[b]}
    mods = {n: np.split(dense(f"{n}_modulation", silu[b]), 6) for n in tokens}
    qkv = {"q": [], "k": [], "v": []}
    for name, a in tokens.items():
      wide = dense(f"{name}_qkv", normed(a, *mods[name][:2]))
      for part, columns in zip(qkv, np.split(wide, 3, axis=-1), strict=True):
        columns = columns.reshape(len(a), heads, -1)
        if part != "v":
          columns = rms(f"{name}_{part}_norm", columns)
        qkv[part] += list(columns)
    q, k, v = (np.stack(a) for a in qkv.values())
    read = np.concatenate([np.ones(len(x[b]), bool), mask[b]])
    out = np.zeros_like(q)
    for i in range(len(q)):
      for h in range(heads):
        weights = np.exp(k[:, h] @ q[i, h] / np.sqrt(q.shape[-1])) * read
        out[i, h] = weights @ v[:, h] / weights.sum()
    out = np.split(out.reshape(len(out), -1), [len(x[b])])
    for (name, a), got in zip(tokens.items(), out, strict=True):
      mod = mods[name]
      a = a + mod[2] * dense(f"{name}_out", got)
      hidden = gelu(dense(f"{name}_mlp_in", normed(a, *mod[3:5])))
      outs.append(a + mod[5] * dense(f"{name}_mlp_out", hidden))
  return np.stack(outs[::2]), np.stack(outs[1::2])


def test_joint_block_by_hand():
  keys = jax.random.split(KEY, 3)
  x, y, vec = (
    jax.random.normal(k, s)
    for k, s in zip(keys, [(2, 3, 8), (2, 4, 8), (2, 5)], strict=True)
  )
  mask = jnp.array([[True, True, False, True], [False] * 4])
  block = JointBlock(heads=2, mlp_ratio=2)
  params = shuffled(jax.jit(block.init)(KEY, x, y, mask, vec))
  got = run(block, params, x, y, mask, vec)
  want = joint_by_hand(params["params"], x, y, mask, np.asarray(vec, np.float64), 2)
  for a, b in zip(got, want, strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5)
  # The last block makes the same image from the same weights, and leaves the text.
  last = dict(params["params"])
  for name in [n for n in last if n.startswith(("text_mlp", "text_out", "text_q_"))]:
    del last[name]
  last["text_modulation"] = jax.tree.map(lambda p: p[..., :16], last["text_modulation"])
  last["text_kv"] = jax.tree.map(lambda p: p[..., 8:], last.pop("text_qkv"))
  image, text = run(
    JointBlock(heads=2, mlp_ratio=2, last=True), {"params": last}, x, y, mask, vec
  )
  np.testing.assert_allclose(image, got[0], atol=1e-5)
  np.testing.assert_array_equal(text, y)
  # Where all text is masked, it is as if there were none.
  alone = run(block, params, x, y[:, :0], mask[:, :0], vec)[0]
  np.testing.assert_allclose(got[0][1], alone[1], atol=1e-6)
  assert jnp.abs(got[0][0] - alone[0]).max() > 1e-3


def test_halving_and_doubling_are_exact():
  x = jax.random.normal(KEY, (2, 4, 6, 3))
  box = jnp.full((2, 2, 1, 3), 0.25)
  filtered = jax.lax.conv_general_dilated(
    x,
    box,
    (2, 2),
    "VALID",
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
    feature_group_count=3,
  )
  np.testing.assert_allclose(halve(x), filtered, atol=1e-7)
  np.testing.assert_array_equal(
    double(x)[:, 2:4, 4:6], x[:, 1:2, 2:3].repeat(2, 1).repeat(2, 2)
  )
  np.testing.assert_array_equal(halve(double(x)), x)
  # One is the other's transpose, but for a factor of 4.
  np.testing.assert_allclose(jax.vjp(halve, x)[1](halve(x))[0], double(halve(x)) / 4)


@pytest.mark.parametrize("way", ["down", "up"])
@pytest.mark.parametrize("modulation", ["scale_shift", "shift"])
def test_resnet_block_that_resamples(way, modulation):
  x, vec = jax.random.normal(KEY, (2, 4, 4, 8)), jax.random.normal(KEY, (2, 5))
  block = ResBlock(
    8,
    modulation=modulation,
    resample=way,
    skip_scale=modulation == "shift",
    project=modulation == "shift",
  )
  params = shuffled(jax.jit(block.init)(KEY, x, vec, None))
  p = params["params"]

  def norm(name, y, **options):
    return GroupNorm(**options).apply({"params": p[name]}, y)

  def conv(name, y):
    return p[name]["bias"] + jax.lax.conv_general_dilated(
      y, p[name]["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )

  def resample(y):
    if way == "up":
      return jnp.kron(y, jnp.ones((1, 2, 2, 1)))
    return sum(y[:, i::2, j::2] for i in (0, 1) for j in (0, 1)) / 4

  def dense(name, y):
    return y @ p[name]["kernel"] + p[name]["bias"]

  mod = dense("modulation", jax.nn.silu(vec))[:, None, None]
  y = conv("conv_0", resample(jax.nn.silu(norm("norm_0", x))))
  if modulation == "shift":
    y = norm("norm_1", y + mod, least=4)
  else:
    y = norm("norm_1", y) * (1 + mod[..., :8]) + mod[..., 8:]
  y = conv("conv_1", jax.nn.silu(y))
  if modulation == "shift":
    want = (dense("shortcut", resample(x)) + y) / np.sqrt(2)
  else:
    want = resample(x) + y
  np.testing.assert_allclose(run(block, params, x, vec, None), want, atol=2e-5)


def test_efficient_unet_works_below_full_size_with_more_blocks_further_down():
  net = NETS["efficient_unet"]()
  sizes = {}

  def note(module, method):
    if isinstance(module, ResBlock):
      sizes[module.name] = method
    return isinstance(module, ResBlock)

  def intermediates():
    return net.init_with_output(KEY, *inputs(), capture_intermediates=note)

  seen = jax.eval_shape(intermediates)[1]["intermediates"]
  heights = {name: seen[name]["__call__"][0].shape[1] for name in seen}
  assert heights == {
    "down_0_0": 4,
    "down_1_0": 2,
    "down_1_1": 2,
    "up_1_0": 2,
    "up_1_1": 2,
    "up_0_0": 4,
  }


def test_one_number_of_blocks_is_that_of_every_resolution():
  make = NETS["unet"]

  def shapes(blocks):
    return jax.eval_shape(make(blocks=blocks).init, KEY, *inputs())["params"]

  assert shapes(1) == shapes((1, 1))
  names = shapes((1, 3)).keys()
  assert {f"down_1_{i}" for i in range(3)} | {"up_1_3", "up_0_1"} <= names
  assert not {"down_0_1", "up_0_2", "down_1_3"} & names


def test_parameters_keep_their_names():
  # Of what has been trained.
  unet, dit = (set(fresh(NETS[name]())["params"]) for name in ("unet", "dit"))
  attending = {f"{n}_attention" for n in ("down_1_0", "middle", "up_1_0", "up_1_1")}
  assert unet == attending | set(
    "noise pooled in down_0_0 down_1_conv down_1_0 middle_0 middle_1 up_1_0 up_1_1"
    " up_1_conv up_0_0 up_0_1 out_norm out".split()
  )
  assert dit == set("noise pooled patches blocks modulation out".split())


def test_fourier_features():
  x = jnp.array([[0.0, 0.25, -1 / 3]])
  want = [f(2.0**n * np.pi * np.float64(x)) for f in (np.sin, np.cos) for n in (0, 7)]
  np.testing.assert_allclose(fourier(x, (0, 7)), np.concatenate(want, -1), atol=2e-5)
  # Large numbers lose no digit: these are whole multiples of a period.
  whole = jnp.array([[2.0**20, -3.0]])
  np.testing.assert_array_equal(fourier(whole, (8,)), [[0, 0, 1, 1]])
  slope = jax.jvp(lambda x: fourier(x, (3,)), (x,), (jnp.ones_like(x),))[1]
  angle = 8 * np.pi * np.float64(x)
  want = 8 * np.pi * np.concatenate([np.cos(angle), -np.sin(angle)], -1)
  np.testing.assert_allclose(slope, want, atol=1e-3)


def test_networks_from_a_config():
  model = base.tiny(base.get_config()).model
  x, logsnr, cond = inputs()
  for name, kind in (("unet", UNet), ("efficient_unet", EfficientUNet), ("dit", DiT)):
    model.net, model.fourier = name, ()
    plain = build.make(model, 6)
    assert isinstance(plain, kind)
    model.fourier = (7, 8)
    wide = build.make(model, 6)
    for net in (plain, wide):
      y, params = jax.eval_shape(net.init_with_output, KEY, x, logsnr, cond)
      assert y.shape == (4, 8, 8, 6)
    # The same network on 3 + 12 channels.
    more = jnp.zeros((4, 8, 8, 15))
    assert (
      params["params"]["net"]
      == jax.eval_shape(plain.init, KEY, more, logsnr, cond)["params"]
    )


def test_full_size_networks_have_the_published_number_of_parameters():
  for size, out, pooled, million, settings in (
    # Ho et al. 2020, section 4.
    (32, 3, None, 35.7, {"widths": (128, 256, 256, 256), "modulation": "shift"}),
    # Nichol & Dhariwal 2021, section 4: 120 million; learned variances.
    (
      64,
      6,
      None,
      121.1,
      {
        "widths": (128, 256, 384, 512),
        "blocks": 3,
        "attention": (16, 8),
        "head_dim": 128,
      },
    ),
    # Dhariwal & Nichol 2021, table 4; a class is embedded by the encoder.
    (
      64,
      6,
      768,
      295.7,
      {
        "widths": (192, 384, 576, 768),
        "blocks": 3,
        "attention": (32, 16, 8),
        "resample": "block",
      },
    ),
    # Karras et al. 2022, table 7.
    (
      32,
      3,
      None,
      55.7,
      {
        "widths": (256, 256, 256),
        "blocks": 4,
        "stem": 128,
        "modulation": "shift",
        "skip_scale": True,
        "resample": "block_1x1",
        "attention_up": "last",
      },
    ),
    # Peebles & Xie 2022, table 1, on latents.
    (
      32,
      8,
      1152,
      675.0,
      {"net": "dit", "dim": 1152, "depth": 28, "heads": 16, "patch": 2},
    ),
  ):
    model = base.get_config().model
    model.update({"net": "unet", **settings})
    pooled = None if pooled is None else jnp.zeros((1, pooled))
    x = jnp.zeros((1, size, size, 4 if settings.get("net") == "dit" else 3))
    net = build.make(model, out)
    params = jax.eval_shape(net.init, KEY, x, jnp.zeros(1), Cond(pooled=pooled))
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert round(count / 1e6, 1) == million


def test_learned_noise_schedule_decreases_strictly():
  module = MonotoneLogsnr(hidden=64)
  fresh_params = module.init(KEY, jnp.zeros(1))
  t = jnp.linspace(0, 1, 101)

  @jax.jit
  @functools.partial(jax.vmap, in_axes=(0, None))
  def slope_and_value(params, t):
    at = functools.partial(module.apply, params)
    return jax.vmap(jax.grad(at))(t), at(t), at(t[50]), at(t[:4].reshape(2, 2))

  keys = jax.random.split(KEY, 16)
  params = jax.vmap(
    lambda key: jax.tree.map(
      lambda p: p + 2 * jax.random.normal(jax.random.fold_in(key, p.size), p.shape),
      fresh_params,
    )
  )(keys)
  # What training may do to the ends, as long as they do not cross.
  params["params"]["end"] = jnp.linspace(-9.0, 1.0, 16)
  params["params"]["start"] = jnp.linspace(3.0, 15.0, 16)
  slope, logsnr, middle, square = slope_and_value(params, t)
  assert (slope < 0).all()
  assert (jnp.diff(logsnr) < 0).all()
  np.testing.assert_array_equal(logsnr[:, 0], params["params"]["start"])
  np.testing.assert_array_equal(logsnr[:, -1], params["params"]["end"])
  np.testing.assert_allclose(middle, logsnr[:, 50], rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(square.reshape(16, 4), logsnr[:, :4], rtol=1e-5, atol=1e-5)
  # It is g between its ends, with g written out.
  p = jax.tree.map(lambda a: np.asarray(a[0], np.float64), params)["params"]
  soft = lambda a: np.log1p(np.exp(a))  # noqa: E731
  line = soft(p["w1"]) * np.asarray(t, np.float64)
  bent = 1 / (1 + np.exp(-(soft(p["w2"]) * line[:, None] + p["b2"])))
  g = line + bent @ soft(p["w3"]) / 64
  part = (g - g[0]) / (g[-1] - g[0])
  want = p["start"] + (p["end"] - p["start"]) * part
  np.testing.assert_allclose(logsnr[0], want, atol=1e-4)


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
    assert np.isfinite(leaf).all()


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


@pytest.mark.parametrize("make", [ConvOfFew, ConvToFew])
def test_convolutions_as_products(make):
  """Value and gradients are those of flax's."""
  x, seen = (jax.random.normal(key, (2, 4, 6, n)) for key, n in ((KEY, 3), (KEY, 5)))
  plain = nn.Conv(5, (3, 3), padding=1)
  params = plain.init(KEY, x)

  def told(net):
    told = lambda params, x: jnp.sum(seen * net.apply(params, x) ** 2)  # noqa: E731
    return jax.jit(jax.value_and_grad(told, (0, 1)))(params, x)

  want, got = told(plain), told(make(5))
  for a, b in zip(jax.tree.leaves(want), jax.tree.leaves(got), strict=True):
    np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-4)


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


def test_group_norm_of_given_groups():
  x = jax.random.normal(KEY, (2, 3, 5, 12))
  params = {"params": {"scale": jnp.ones(12), "bias": jnp.zeros(12)}}
  y = GroupNorm(groups=3, eps=0.5).apply(params, x)
  groups = np.asarray(x).reshape(2, 15, 3, 4)
  mean, var = (f(groups, axis=(1, 3), keepdims=True) for f in (np.mean, np.var))
  want = ((groups - mean) / np.sqrt(var + 0.5)).reshape(x.shape)
  np.testing.assert_allclose(y, want, atol=1e-5)


def test_group_norm_does_not_take_a_shift_away():
  x = 0.1 * jax.random.normal(KEY, (2, 5, 6, 8))
  params = {"params": {"scale": jnp.ones(8), "bias": jnp.zeros(8)}}
  shift = jnp.arange(8.0)
  alone, several = (GroupNorm(least=n).apply for n in (1, 4))
  np.testing.assert_allclose(alone(params, x + shift), alone(params, x), atol=5e-3)
  y = several(params, x + shift).mean(axis=(1, 2))
  assert (jnp.diff(y.reshape(2, 2, 4)) > 0.5).all()
  for c in range(1, 260):  # and the groups come out even
    each = jax.ShapeDtypeStruct((c,), jnp.float32)
    params = {"params": {"scale": each, "bias": each}}
    jax.eval_shape(several, params, jax.ShapeDtypeStruct((1, 1, 1, c), jnp.float32))


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


def test_a_clock_tells_timesteps():
  schedule = noise.scaled_linear()
  at = jnp.array([0.0, 1, 500, 998, 999])
  exact = schedule.logsnr((at + 1) / 1000)
  between = (exact[0] + 3 * exact[1]) / 4
  logsnr = jnp.concatenate([exact, between[None], jnp.array([jnp.inf, -jnp.inf])])
  found = jax.jit(lambda a: noise.timestep(a, "scaled_linear"))(logsnr)
  np.testing.assert_allclose(found, [*at, 0.75, 0, 999], atol=1e-3)
  # What is embedded is the number of the step.
  module = NoiseEmbedding(8, 6, clock="scaled_linear")
  y, params = jax.jit(module.init_with_output)(KEY, exact)
  first, last = (params["params"][f"Dense_{i}"] for i in range(2))
  hidden = jax.nn.silu(sinusoidal(at, 6) @ first["kernel"] + first["bias"])
  np.testing.assert_allclose(y, hidden @ last["kernel"] + last["bias"], atol=2e-3)


def test_a_text_that_is_not_read_gives_the_bias_alone():
  module, (x, text) = TextAttention(2), jax.random.normal(KEY, (2, 2, 3, 4))
  mask = jnp.array([[False] * 3, [True, False, False]])
  params = {"params": shuffled(module.init(KEY, x, text, mask)["params"])}
  y, p = module.apply(params, x, text, mask), params["params"]
  assert set(p["q"]) == set(p["kv"]) == {"kernel"}
  np.testing.assert_allclose(y[0], jnp.broadcast_to(p["out"]["bias"], (3, 4)))
  one = (text[1, 0] @ p["kv"]["kernel"])[4:] @ p["out"]["kernel"] + p["out"]["bias"]
  np.testing.assert_allclose(y[1], jnp.broadcast_to(one, (3, 4)), atol=1e-5)


@pytest.mark.parametrize("rows", [0, 1, 512])
def test_long_sequences_are_read_a_head_at_a_time(rows):
  """With no mask, one of each example, and one of each query."""
  q, k, v = (
    jax.random.normal(jax.random.fold_in(KEY, i), (2, length, 3, 4))
    for i, length in enumerate((512, 520, 520))
  )
  assert attention.MANY <= 512 * 520
  mask = None
  if rows:
    mask = jax.random.bernoulli(KEY, 0.3, (2, rows, 520)).at[1, 0].set(False)
    mask = mask[:, 0] if rows == 1 else mask

  def naive(q, k, v):
    logits = jnp.einsum("blhd,bmhd->bhlm", q, k) / 2
    if mask is not None:
      own = mask[:, None] if mask.ndim == 2 else mask
      logits = jnp.where(own[:, None], logits, -1e30)
    return jnp.einsum("bhlm,bmhd->blhd", jax.nn.softmax(logits), v)

  @functools.partial(jax.jit, static_argnums=0)
  def both(f, q, k, v):
    y, back = jax.vjp(f, q, k, v)
    return y, back(jnp.cos(y))

  wanted = both(naive, q, k, v)
  found = both(lambda *args: attend(*args, mask), q, k, v)
  near = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
  jax.tree.map(near, found, wanted)


def test_one_attention_over_pixels_and_text():
  """As over the longer sequence, of which the text's part reads nothing."""
  x, text = jax.random.normal(KEY, (2, 2, 3, 8))
  mask = jnp.array([[True, True, False], [False] * 3])
  module = SelfAttention(2)
  params = shuffled(module.init(KEY, x, None, text, mask)["params"])
  y = module.apply({"params": params}, x, None, text, mask)
  q, k, v = jnp.split(x @ params["qkv"]["kernel"] + params["qkv"]["bias"], 3, -1)
  normed = nn.LayerNorm().apply({"params": params["norm_text"]}, text)
  kv = normed @ params["text_kv"]["kernel"] + params["text_kv"]["bias"]
  for i, seen in enumerate((2, 0)):
    keys, values = (
      jnp.concatenate([own[i], more[i, :seen]])
      for own, more in zip((k, v), jnp.split(kv, 2, -1), strict=True)
    )
    heads = (a.reshape(1, -1, 2, 4) for a in (q[i], keys, values))
    want = attend(*heads).reshape(3, 8) @ params["out"]["kernel"]
    np.testing.assert_allclose(y[i], want + params["out"]["bias"], atol=1e-5)


@pytest.mark.parametrize(
  ("module", "sentence"),
  [
    (NETS["unet"](head_dim=0, heads=3), "16 does not divide into 3 attention heads"),
    (NETS["unet"](groups=3), "width 8 does not divide into 3 groups"),
    (NETS["unet"](widths=(8, 16, 16)), "6x10 cannot be halved 2 times.* 4x8 or 8x12"),
    (NETS["unet"](head_dim=7), "width 16 does not divide into .* heads of 7"),
    (NETS["unet"](blocks=(1, 2, 3)), r"blocks \(1, 2, 3\) and widths \(8, 16\)"),
    (NETS["efficient_unet"](text_levels=(2,), widths=(8, 8)), "has no level 2"),
    (NETS["efficient_unet"](), "6x10 cannot be halved 2 times.* 4x8 or 8x12"),
    (NETS["dit"](patch=4), "6x10 does not divide into patches of 4x4; use 4x8"),
    (NETS["dit"](heads=3), "`dim` 16 must be a multiple of 4 and of `heads` 3"),
  ],
)
def test_what_does_not_fit_is_refused(module, sentence):
  _, logsnr, cond = inputs()
  with pytest.raises(UserError, match=sentence):
    jax.eval_shape(module.init, KEY, jnp.zeros((4, 6, 10, 3)), logsnr, cond)


@pytest.mark.parametrize("field", list(build.CHOICES))
def test_unknown_choices_are_refused(field):
  model = base.get_config().model
  model[field] = "nonsense"
  with pytest.raises(UserError, match=f"model.{field}='nonsense' is unknown"):
    build.make(model, 3)
