"""What a GAN draws, and its penalty on path lengths, by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core.family import Spec, example_keys, sample_keys
from gan import networks, penalties
from tests.runs import largest_difference, random_batch
from tests.test_gan import make, make_config

KEY = jax.random.key(2)


def split(keys, n):
  return jax.vmap(lambda key: jax.random.split(key, n), out_axes=1)(keys)


def started(truncation=0.0, **fields):
  """(family, its generator, batch, state) of a tiny GAN."""
  config = make_config(**fields)
  config.sample.truncation = truncation
  size, channels = config.data.size, config.data.channels
  net = networks.generator(config, Spec((size, size, channels)))
  family, batch = make(config), random_batch(config)
  return family, net, batch, jax.jit(family.init)(KEY, batch)


@pytest.mark.parametrize("limit", [0.0, 0.3])
def test_noise_is_drawn_within_its_limit(limit, monkeypatch):
  """BigGAN's truncation: a normal, drawn again until it is within the limit."""
  seen, call = [], networks.Generator.__call__

  def watch(self, z, *rest, **options):
    jax.debug.callback(seen.append, z)
    return call(self, z, *rest, **options)

  family, _, batch, state = started(limit, latent_dim=64)
  monkeypatch.setattr(networks.Generator, "__call__", watch)
  jax.jit(lambda state: family.sample(state, KEY, batch["cond"], 64))(state)
  jax.effects_barrier()
  z = max(seen, key=lambda z: np.abs(z).max())  # the film begins with 0
  if limit:
    assert 0.29 < np.abs(z).max() <= limit
    # The deviation of a normal that is cut at 0.3.
    assert abs(np.std(z) - 0.1722) < 0.005
  else:
    assert np.abs(z).max() > 3
    assert abs(np.std(z) - 1) < 0.03


def test_styles_are_drawn_towards_their_mean():
  """StyleGAN2's truncation: w_mean + psi (w - w_mean), at every layer."""
  psi = 0.4
  family, net, batch, state = started(psi, generator="stylegan2", critic="resnet")
  tracked, cond = state.extra["tracked"], batch["cond"]
  mean = jax.random.normal(KEY, tracked["batch_stats"]["net"]["w"].shape)
  stats = {"net": {"w": mean}}
  tracked = tracked | {"batch_stats": stats}
  state = state.replace(extra=state.extra | {"tracked": tracked})

  @jax.jit
  def by_hand(params):
    draws, noises = split(sample_keys(KEY, 8), 2)
    z = jax.vmap(lambda key: jax.random.normal(key, (8,)))(draws)
    given = {"params": params, "batch_stats": stats}
    w = net.apply(given, z, cond, method="styles")
    images = net.apply(given, mean + psi * (w - mean), noises, method="synthesis")
    return w, jnp.clip(images, -1, 1)

  w, images = by_hand(state.ema["generator"])
  samples = jax.jit(lambda state: family.sample(state, KEY, cond, 8))(state)
  assert np.abs(w - mean).max() > 0.1
  np.testing.assert_allclose(samples.images, images, atol=1e-5)


def test_moments_are_averaged_as_the_weights_are():
  """Those of batch norm, with which the averaged weights are drawn."""
  family, net, batch, state = started(generator="dcgan", critic="resnet")
  before = jax.tree.map(
    lambda a: a + jnp.arange(a.size).reshape(a.shape) / a.size,
    state.extra["tracked"]["batch_stats"],
  )
  params, updates = state.params["generator"], 5
  given = params, {"batch_stats": before, "updates": jnp.int32(updates)}
  play = jax.jit(lambda batch: family.objective.play(given, batch, KEY, None))(batch)
  draws, noises, _ = split(example_keys(KEY, jnp.asarray(batch["_id"])), 3)
  z = jax.vmap(lambda key: jax.random.normal(key, (8,)))(draws)
  usable = {"params": params, "batch_stats": before}
  call = functools.partial(net.apply, training=True, mutable=["batch_stats"])
  _, moved = jax.jit(call)(usable, z, batch["cond"], noises)
  # The average of the weights moves by 1 - (1 + t) / (10 + t) after t updates.
  share = 1 - 6 / 15
  wanted = jax.tree.map(
    lambda old, new: (1 - share) * old + share * new, before, moved["batch_stats"]
  )
  assert largest_difference(play.sums["batch_stats"], wanted) < 1e-5
  assert largest_difference(before, wanted) > 0.1


@pytest.mark.parametrize("updates", [3, 4])
def test_penalty_on_path_lengths_by_hand(updates):
  """path_every path_length (|J^T y| - a)^2 where it is due, else nothing."""
  styled = {"generator": "stylegan2", "critic": "resnet"}
  family, net, batch, state = started(path_length=2.0, path_every=3, **styled)
  old, params = 0.7, state.params["generator"]
  tracked = state.extra["tracked"] | {"path": jnp.float32(old)}
  given = params, tracked | {"updates": jnp.int32(updates)}
  play = jax.jit(lambda batch: family.objective.play(given, batch, KEY, None))(batch)
  _, _, own = split(example_keys(KEY, jnp.asarray(batch["_id"])), 3)
  draws, noises, ways = split(own, 3)
  z = jax.vmap(lambda key: jax.random.normal(key, (8,)))(draws)
  usable = {"params": params, "batch_stats": tracked["batch_stats"]}

  @jax.jit
  def by_hand():
    w = net.apply(usable, z, batch["cond"], method="styles")
    synthesis = lambda w: net.apply(usable, w, noises, method="synthesis")  # noqa: E731
    return penalties.path_lengths(synthesis, w, ways)

  lengths = by_hand()
  moved = family.objective.tracked.update(tracked, play.sums, KEY)["path"]
  np.testing.assert_allclose(play.metrics["path_length"], old, rtol=1e-6)
  if updates == 3:
    np.testing.assert_allclose(play.losses, 6 * (lengths - old) ** 2, rtol=1e-4)
    wanted = 0.99 * old + 0.01 * np.mean(lengths)
    np.testing.assert_allclose(moved, wanted, rtol=1e-5)
  else:
    np.testing.assert_array_equal(play.losses, 0)
    assert moved == np.float32(old)
