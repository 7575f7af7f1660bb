"""The autoencoders of vae/autoencoder.py, with every bottleneck."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from core.errors import UserError
from core.family import Family, Given, Spec, State
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


@pytest.mark.parametrize("kind", KINDS)
def test_reconstruct_is_decode_of_encode(kind):
  config, family, state = started(kind)
  x = jnp.asarray(random_batch(config)["x"])
  keys = jax.random.split(KEY, len(x))
  given = Given(x, jnp.ones((*x.shape[:3], 1)))
  edited = jax.jit(family.edits["reconstruct"])(state, keys, None, given)
  codec = family.codecs.get("tokens") or family.codecs["latents"]
  code = jax.jit(codec.encode)(state, x, keys)
  assert code.shape == (len(x), *codec.spec.shape)
  assert code.dtype == codec.spec.dtype
  if codec.spec.vocab_size:
    assert 0 <= code.min() <= code.max() < codec.spec.vocab_size
  decoded = jax.jit(codec.decode)(state, code)
  np.testing.assert_allclose(edited.images, decoded, atol=1e-5)
  np.testing.assert_array_equal(edited.frames[0], x)
  assert np.abs(decoded).max() <= 1


@pytest.mark.parametrize("kind", ["kl", "vq", "fsq"])
def test_latents_have_mean_0_and_deviation_1_on_what_was_seen(kind):
  config, family, state = started(kind)
  x, keys = random_batch(config)["x"], jax.random.split(KEY, 8)
  latents = np.asarray(family.codecs["latents"].encode(state, x, keys))
  np.testing.assert_allclose(latents.mean((0, 1, 2)), 0, atol=1e-4)
  np.testing.assert_allclose(latents.std((0, 1, 2)), 1, atol=1e-3)


@pytest.mark.parametrize("kind", ["vq", "rq", "fsq"])
def test_tokens_and_latents_say_the_same(kind):
  """The decoder of latents takes the codes that the tokens name."""
  config, family, state = started(kind)
  x, keys = random_batch(config)["x"], jax.random.split(KEY, 8)
  both = [
    codec.decode(state, codec.encode(state, x, keys))
    for codec in (family.codecs["latents"], family.codecs["tokens"])
  ]
  np.testing.assert_allclose(*both, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_tracked_is_the_same_over_devices_and_microbatches(kind):
  config, family, state = started(kind)
  batch = random_batch(config, 1)
  batch["_mask"][-1:] = False
  whole, logged = jax.jit(family.step)(state, batch, KEY)
  cut = jax.tree.map(lambda a: a.reshape(4, 2, *a.shape[1:]), batch)
  step = jax.vmap(family.step, (None, 0, None, None), axis_name="devices")
  each, logged_each = jax.jit(lambda *args: step(*args, "devices"))(state, cut, KEY)
  first = jax.tree.map(lambda a: a[0], (each.extra["tracked"], logged_each))
  assert largest_difference(first[0], whole.extra["tracked"]) < 1e-4
  np.testing.assert_allclose(first[1]["loss"], logged["loss"], rtol=1e-4)
  config = ConfigDict(config.to_dict())
  config.optim.microbatches = 2
  parts = autoencoder.make(config, Spec((8, 8, 3)))
  halves, _ = jax.jit(parts.step)(state, batch, KEY)
  assert largest_difference(halves.extra["tracked"], whole.extra["tracked"]) < 1e-4


def test_the_loss_by_hand():
  """L1 + weight x KL a dimension, where the posterior's noise is the example's."""
  config = tiny("kl", kl_weight=0.5)
  family = autoencoder.make(config, Spec((8, 8, 3)))
  batch = random_batch(config)
  state = family.init(KEY, batch)
  _, metrics = jax.jit(family.step)(state, batch, KEY)
  want = metrics["reconstruction"] + 0.5 * metrics["kl"]
  np.testing.assert_allclose(metrics["loss"], want, rtol=1e-5)
  h = jax.random.normal(KEY, (2, 3, 3, 8))
  mean, logvar = np.split(np.asarray(h), 2, axis=-1)
  ids, keys = jnp.arange(2, dtype=jnp.uint32), jax.random.split(KEY, 2)
  rows = bottlenecks.Rows(ids, keys, jnp.ones(2), jnp.int32(0))
  passed = bottlenecks.gaussian(config.vae, dims=10).train(h, {}, rows)
  kl = 0.5 * (mean**2 + np.exp(logvar) - 1 - logvar).sum((1, 2, 3)) / 10
  np.testing.assert_allclose(passed.metrics["kl"], kl, rtol=1e-5)
  np.testing.assert_allclose(passed.penalty, 0.5 * kl, rtol=1e-5)
  eps = jnp.stack([jax.random.normal(key, (3, 3, 4)) for key in keys])
  np.testing.assert_allclose(passed.z, mean + np.exp(logvar / 2) * eps, rtol=1e-5)


def test_gumbel_anneals_and_warms_up():
  config = tiny("dvae", kl_weight=2.0, kl_warmup_steps=4, temperature_steps=10)
  bottleneck = bottlenecks.gumbel(config.vae, dims=5)
  h = jax.random.normal(KEY, (2, 3, 3, config.vae.codes))
  ids, keys = jnp.arange(2, dtype=jnp.uint32), jax.random.split(KEY, 2)
  for updates in (0, 1, 3, 20):
    rows = bottlenecks.Rows(ids, keys, jnp.ones(2), jnp.int32(updates))
    passed = bottleneck.train(h, {}, rows)
    weight = 2 * min((updates + 1) / 4, 1)
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
  begun = family.init(KEY, random_batch(config))
  assert largest_difference(begun.params["generator"], weights) == 0
  assert largest_difference(begun.ema["generator"], weights) == 0


@pytest.mark.parametrize(
  ("field", "value", "sentence"),
  [
    ("vae.bottleneck", "vqq", "did you mean 'vq'"),
    ("vae.loss", "l3", "vae.loss='l3' is unknown"),
    ("text.encoder", "bytes", "set text.encoder to 'none'"),
    ("sample.edit", "inpaint", "sample.edit='inpaint' is unknown"),
  ],
)
def test_refusals(field, value, sentence):
  config = tiny("kl")
  config.update_from_flattened_dict({field: value})
  with pytest.raises(UserError, match=sentence.replace("[", r"\[")):
    autoencoder.make(config, Spec((8, 8, 3)))
