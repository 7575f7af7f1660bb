"""The autoencoders of vae/autoencoder.py, with every bottleneck."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from core.errors import UserError
from core.family import Family, Given, Spec, State
from nets.pretrained.lpips import LPIPS
from tests.runs import largest_difference, load_config, random_batch
from vae import autoencoder, bottlenecks, quantizers, statistics

KEY = jax.random.key(3)
KINDS = ("kl", "vq", "rq", "dvae", "fsq")


def tiny(kind: str, **fields: object) -> ConfigDict:
  config = load_config(f"configs/vae/{kind}.py")
  config.vae.update(fields)
  return config


@functools.cache
def started(kind: str) -> tuple[ConfigDict, Family, State]:
  config = tiny(kind)
  family = autoencoder.make(config, Spec((8, 8, 3)))
  return config, family, jax.jit(family.init)(KEY, random_batch(config))


@functools.cache
def through(kind: str) -> dict[str, object]:
  """A batch coded in every form, decoded, and reconstructed; one program a kind."""
  config, family, state = started(kind)
  x, keys = jnp.asarray(random_batch(config)["x"]), jax.random.split(KEY, 8)

  def compute(state, x):
    given = Given(x, jnp.ones((*x.shape[:3], 1)))
    edited = family.edits["reconstruct"](state, keys, None, given)
    codes = {name: c.encode(state, x) for name, c in family.codecs.items()}
    decoded = {name: family.codecs[name].decode(state, c) for name, c in codes.items()}
    return {"edited": edited, "codes": codes, "decoded": decoded}

  return {"x": x, **jax.jit(compute)(state, x)}


@pytest.mark.parametrize("kind", KINDS)
def test_codecs(kind):
  _, family, _ = started(kind)
  found = through(kind)
  for name, codec in family.codecs.items():
    code = found["codes"][name]
    assert code.shape == (8, *codec.spec.shape)
    assert code.dtype == codec.spec.dtype
    if codec.spec.vocab_size:
      assert 0 <= code.min() <= code.max() < codec.spec.vocab_size
    else:  # mean 0 and deviation 1 on what was seen
      np.testing.assert_allclose(code.mean((0, 1, 2)), 0, atol=1e-4)
      np.testing.assert_allclose(code.std((0, 1, 2)), 1, atol=1e-3)
    assert np.abs(found["decoded"][name]).max() <= 1
    # The decoder of latents takes the codes that the tokens name.
    np.testing.assert_allclose(
      found["edited"].images, found["decoded"][name], atol=1e-4
    )
  # Its film ends in the picture; at first all pictures have nothing drawn.
  first, last = found["edited"].frames
  np.testing.assert_array_equal(last, found["edited"].images)
  np.testing.assert_allclose(first, np.broadcast_to(first[:1], first.shape), atol=1e-5)
  assert np.abs(last - first).max() > 1e-3


def test_what_is_tracked_is_the_same_over_devices_and_microbatches():
  config = tiny("rq")
  config.model.widths, config.model.blocks = (8,), 0
  family = autoencoder.make(config, Spec((8, 8, 3)))
  batch = random_batch(config, 1)
  state = jax.jit(family.init)(KEY, batch)
  batch["_mask"][-1:] = False
  cut = jax.tree.map(lambda a: a.reshape(2, 4, *a.shape[1:]), batch)
  step = jax.vmap(family.step, (None, 0, None, None), axis_name="devices")
  each, logged_each = jax.jit(lambda *args: step(*args, "devices"))(state, cut, KEY)
  first = jax.tree.map(lambda a: a[0], (each.extra["tracked"], logged_each))
  config.optim.microbatches = 4
  parts = autoencoder.make(config, Spec((8, 8, 3)))
  whole, logged = jax.jit(parts.step)(state, batch, KEY)
  assert largest_difference(first[0], whole.extra["tracked"]) < 1e-4
  np.testing.assert_allclose(first[1]["loss"], logged["loss"], rtol=1e-4)


def test_the_loss_by_hand():
  """Mean |x - x_hat| over numbers + beta KL a number, z drawn by the example's key."""
  beta = 0.1
  config = tiny("kl", beta=beta)
  config.model.widths, config.model.blocks = (8, 8), 0
  family, batch = autoencoder.make(config, Spec((8, 8, 3))), random_batch(config, 1)
  net = autoencoder.network(config, Spec((8, 8, 3)))

  @jax.jit
  def compute(batch):
    state = family.init(KEY, batch)
    params = jax.tree.map(lambda a: a + 0.1, state.params["generator"])
    state = state.replace(params={"generator": params}, ema={"generator": params})
    h = net.apply({"params": params}, batch["x"], method="encode")
    mean, logvar = jnp.split(h, 2, axis=-1)
    keys = [jax.random.split(jax.random.fold_in(KEY, i))[0] for i in batch["_id"]]
    eps = jnp.stack([jax.random.normal(key, mean.shape[1:]) for key in keys])
    z = mean + jnp.exp(logvar / 2) * eps
    x_hat = net.apply({"params": params}, z, method="decode")
    logged = family.step(state, batch, KEY)[1]
    return mean, logvar, x_hat, family.evals["loss"](state, batch, KEY), logged

  mean, logvar, x_hat, loss, logged = (
    jax.tree.map(np.asarray, a) for a in compute(batch)
  )
  each = [(m**2 + np.exp(v) - 1 - v) / 2 for m, v in zip(mean, logvar, strict=True)]
  kl = np.array([part.sum() for part in each]) / (8 * 8 * 3)
  l1 = np.array([np.abs(d).sum() for d in batch["x"] - x_hat]) / (8 * 8 * 3)
  assert (beta * kl > 0.2 * l1).all()
  assert (l1 > 0.2 * beta * kl).all()
  np.testing.assert_allclose(loss, l1 + beta * kl, rtol=1e-5)
  np.testing.assert_allclose(logged["reconstruction"], l1.mean(), rtol=1e-5)
  np.testing.assert_allclose(logged["kl"], kl.mean(), rtol=1e-5)
  np.testing.assert_allclose(logged["loss"], loss.mean(), rtol=1e-5)


@pytest.mark.parametrize("kind", ["vq", "dvae"])
def test_codes_come_to_tell_pictures_apart(kind):
  """Black, white and halves of both: what is decoded from the tokens is like them."""
  config = tiny(kind, loss="l1", beta=0.0, temperature_steps=30)
  config.optim.learning_rate, config.optim.ema_decay, config.train.steps = 3e-3, 0.9, 80
  family = autoencoder.make(config, Spec((8, 8, 3)))
  batch = random_batch(config)
  halves = np.where(np.arange(8) < 4, 1.0, -1.0)[None, :, None, None]
  halves = np.concatenate(
    [halves, -halves, np.ones_like(halves), -np.ones_like(halves)]
  )
  batch["x"] = np.broadcast_to(np.tile(halves, (2, 1, 1, 1)), (8, 8, 8, 3)).astype("f4")
  state, step = jax.jit(family.init)(KEY, batch), jax.jit(family.step)

  @jax.jit
  def error(state):
    codec = family.codecs["tokens"]
    tokens = codec.encode(state, jnp.asarray(batch["x"]))
    return jnp.mean(jnp.abs(codec.decode(state, tokens) - batch["x"]))

  before = error(state)
  for i in range(config.train.steps):
    state, _ = step(state, batch, jax.random.fold_in(KEY, i))
  assert error(state) < 0.2 < 0.5 < before


def test_gumbel_anneals_and_warms_up():
  config = tiny("dvae", beta=2.0, warmup_steps=4, temperature_steps=10)
  bottleneck = bottlenecks.gumbel(config.vae, dims=5)
  h = jax.random.normal(KEY, (2, 3, 3, config.vae.codes))
  ids, keys = jnp.arange(2, dtype=jnp.uint32), jax.random.split(KEY, 2)
  for updates in (0, 1, 3, 20):
    rows = bottlenecks.Rows(ids, keys, jnp.ones(2), jnp.int32(updates))
    passed = bottleneck.train(h, {}, rows)
    weight = 2 * min(updates / 4, 1)
    want = weight * quantizers.kl_to_uniform(h) / 5
    np.testing.assert_allclose(passed.penalty, want, rtol=1e-5)
    temperature = quantizers.annealed(jnp.int32(updates), 1.0, 0.0625, 10)
    np.testing.assert_allclose(passed.metrics["temperature"], temperature, rtol=1e-6)


def test_moments_and_counts_by_numpy():
  latents = np.random.default_rng(0).normal(3, 2, (4, 2, 2, 3)).astype(np.float32)
  mask = jnp.array([1.0, 1.0, 1.0, 0.0])
  seen = statistics.moments(jnp.asarray(latents), mask)
  mean, deviation = statistics.shift_scale(seen)
  np.testing.assert_allclose(mean, latents[:3].mean((0, 1, 2)), rtol=1e-5)
  np.testing.assert_allclose(deviation, latents[:3].std((0, 1, 2)), rtol=1e-4)
  there = statistics.standard(jnp.asarray(latents), seen)
  np.testing.assert_allclose(statistics.original(there, seen), latents, rtol=1e-5)
  tokens = jnp.asarray(np.random.default_rng(1).integers(0, 5, (4, 2, 2, 2)), jnp.int32)
  counts = statistics.counts(tokens, mask, 7)
  for depth in range(2):
    own = np.bincount(np.asarray(tokens)[:3, ..., depth].ravel(), minlength=7)
    np.testing.assert_array_equal(counts[depth], own)
  used = statistics.use(jnp.array([[1.0, 1.0, 2.0, 0.0]]))
  np.testing.assert_allclose(used["codebook_usage"], 0.75)
  np.testing.assert_allclose(used["perplexity"], 2**1.5, rtol=1e-6)


def test_a_collapsed_codebook_shows():
  """All codes in use at first, then one alone, in an average as training has it."""
  counts, one = jnp.ones((1, 256)), jnp.zeros((1, 256)).at[0, 3].set(256.0)
  for _ in range(400):
    counts = autoencoder.DECAY * counts + (1 - autoencoder.DECAY) * one
  used = statistics.use(counts)
  assert used["codebook_usage"] < 0.01
  assert used["perplexity"] < 1.5


def test_the_perceptual_term_has_its_weight():
  config = tiny("kl", perceptual_weight=0.5, beta=0.0)
  config.data.size, config.data.batch_size = 16, 2
  config.model.widths, config.model.blocks = (8,), 0
  net, x = LPIPS(), jnp.zeros((1, 16, 16, 3))
  frozen = jax.jit(net.init)(KEY, x, x)["params"]
  family = autoencoder.make(config, Spec((16, 16, 3)), perceptual=frozen)
  batch = random_batch(config)
  state = jax.jit(family.init)(KEY, batch)
  after, metrics = jax.jit(family.step)(state, batch, KEY)
  assert metrics["perceptual"] > 0
  want = metrics["reconstruction"] + 0.5 * metrics["perceptual"]
  np.testing.assert_allclose(metrics["loss"], want, rtol=1e-5)
  kept = after.extra["tracked"]["perceptual"]
  assert largest_difference(kept, frozen) == 0


def test_samples_of_tokens_follow_their_frequencies():
  config, family, state = started("vq")
  counts = jnp.zeros((1, config.vae.codes)).at[0, 3].set(4.0)
  tracked = state.extra["tracked"]
  tracked = tracked | {"seen": tracked["seen"] | {"tokens": counts}}
  state = state.replace(extra=state.extra | {"tracked": tracked})
  samples = jax.jit(lambda s, key: family.sample(s, key, None, 2))(state, KEY)
  tokens = jnp.full((2, *family.codecs["tokens"].spec.shape), 3, jnp.int32)
  want = family.codecs["tokens"].decode(state, tokens)
  np.testing.assert_allclose(samples.images, want, atol=1e-5)
  np.testing.assert_array_equal(samples.frames[-1], samples.images)


def test_weights_given_are_those_it_starts_from():
  config, family, state = started("kl")
  weights = jax.tree.map(lambda a: a + 1, state.params["generator"])
  family = autoencoder.make(config, Spec((8, 8, 3)), weights=weights)
  begun = jax.jit(family.init)(KEY, random_batch(config))
  assert largest_difference(begun.params["generator"], weights) == 0
  assert largest_difference(begun.ema["generator"], weights) == 0


@pytest.mark.parametrize(
  ("field", "value", "sentence"),
  [
    ("vae.bottleneck", "vqq", "did you mean 'vq'"),
    ("vae.loss", "l3", "vae.loss='l3' is unknown"),
    ("text.encoder", "bytes", "set text.encoder to 'none'"),
    ("vae.free_bits", 1.0, "vae.autoencoder has no use for vae.free_bits=1.0"),
    ("vae.quantizers", 4, "has no use for vae.quantizers=4: set it to 1"),
    ("sample.edit", "inpaint", "sample.edit='inpaint' is unknown"),
    ("vae.bottleneck", "vq", "to start vae.codes=5000 codes"),
  ],
)
def test_refusals(field, value, sentence):
  config = tiny("kl", codes=5000)
  config.update_from_flattened_dict({field: value})
  with pytest.raises(UserError, match=sentence.replace("[", r"\[")):
    autoencoder.make(config, Spec((8, 8, 3)))
