"""What a family makes of a bijector: likelihoods of levels, draws, films and edits."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from scipy import stats

from configs.flows import glow as glow_config
from core.errors import UserError
from core.family import Given, Spec, example_keys, make, sample_keys
from core.levels import BIN
from flows import dequantization, likelihood
from flows.bijector import chain, single
from nets.conditioners import ConvConditioner
from nets.layers import squeeze
from tests.runs import random_batch
from text.cond import Cond

KEY = jax.random.key(0)
MEAN, STD = 0.2, 0.3


def config_of(**fields: object) -> ConfigDict:
  config = glow_config.get_config("tiny")
  config.text.encoder, config.text.drop = "none", 0.0
  config.sample.temperature = 1.0
  for name, value in fields.items():
    group, field = name.split("__")
    config[group][field] = value
  return config


def scaled(mean: float = MEAN, std: float = STD):
  """z = (x - mean) / std: the data are normal."""

  def forward(params, x, cond):
    return (x - mean) / std, jnp.full(len(x), -x[0].size * math.log(std))

  return single(
    lambda rng, x, cond: {}, forward, lambda params, z, cond: mean + std * z
  )


def batch_of(x):
  n = len(x)
  ids = np.arange(n, dtype=np.uint32)
  return {"x": x, "cond": Cond(), "_id": ids, "_mask": np.ones(n, bool)}


def levels(n: int, *shape: int):
  draw = np.random.default_rng(0).integers(0, 256, (n, *shape))
  return (draw * BIN - 1).astype(np.float32)


def test_bits_of_normal_pixels_are_those_of_their_density():
  config, shape = config_of(eval__metrics=("bpd_iwae",)), (2, 2, 3)
  config.flow.draws = 4000
  family = likelihood.family(config, Spec(shape), lambda scale: scaled())
  batch = batch_of(levels(3, *shape))
  state = family.init(KEY, batch)
  # The mass of each level, of which many draws of the noise come near.
  upper, lower = (
    stats.norm.logcdf(batch["x"] + s * BIN / 2, MEAN, STD) for s in (1, -1)
  )
  mass = lower + np.log(np.expm1(upper - lower))
  exact = -mass.sum((1, 2, 3)) / (12 * math.log(2))
  np.testing.assert_allclose(
    jax.jit(family.evals["bpd_iwae"])(state, batch, KEY), exact, rtol=1e-3
  )
  assert family.details == {"bpd_iwae": {"draws": 4000}}
  # One draw gives a bound: the density is concave here, so it is near.
  once = jax.jit(family.evals["bpd"])(state, batch, KEY)
  np.testing.assert_allclose(once, exact, atol=0.03)


def test_bits_of_latents_are_of_their_density():
  config, shape = config_of(), (2, 2, 3)
  family = likelihood.family(
    config, Spec(shape, pixels=False), lambda scale: scaled(), entry=scaled(5.0, 7.0)
  )
  batch = batch_of(np.asarray(jax.random.normal(KEY, (3, *shape))))
  found = jax.jit(family.evals["bpd"])(family.init(KEY, batch), batch, KEY)
  nats = -stats.norm.logpdf(batch["x"], MEAN, STD).sum((1, 2, 3))
  np.testing.assert_allclose(found, nats / (12 * math.log(2)), rtol=1e-5)


def test_an_entry_counts_and_its_inverse_is_what_is_shown():
  config, shape = config_of(sample__frames=3), (2, 2, 1)
  entry = scaled(0.1, 0.5)
  family = likelihood.family(
    config, Spec(shape), lambda scale: chain(scaled(), scaled(0.0, 2.0)), entry=entry
  )
  whole = likelihood.family(
    config, Spec(shape), lambda scale: chain(entry, scaled(), scaled(0.0, 2.0))
  )
  batch = batch_of(levels(2, *shape))
  state, other = family.init(KEY, batch), whole.init(KEY, batch)
  np.testing.assert_allclose(
    jax.jit(family.evals["bpd"])(state, batch, KEY),
    jax.jit(whole.evals["bpd"])(other, batch, KEY),
    1e-5,
  )
  samples = family.sample(state, KEY, Cond(), 5)
  z = jax.vmap(lambda key: jax.random.normal(key, shape))(sample_keys(KEY, 5))
  ways = [z, 2 * z, MEAN + STD * 2 * z]
  for frame, way in zip(samples.frames, ways, strict=True):
    np.testing.assert_allclose(frame, np.clip(0.1 + 0.5 * way, -1, 1), atol=1e-6)
  np.testing.assert_array_equal(samples.images, samples.frames[-1])


def test_temperature_is_the_deviation_of_z():
  shape = (4, 4, 1)
  spec = Spec(shape, pixels=False)
  cold, warm = (
    likelihood.family(
      config_of(sample__temperature=t, sample__frames=1), spec, lambda scale: scaled()
    )
    for t in (0.5, 1.0)
  )
  state = cold.init(KEY, batch_of(np.zeros((1, *shape), np.float32)))
  a, b = (family.sample(state, KEY, Cond(), 3).images for family in (cold, warm))
  np.testing.assert_allclose(a - MEAN, 0.5 * (b - MEAN), atol=1e-6)


def test_latents_have_no_grey_levels_to_dequantize():
  config = config_of(flow__dequantization="variational")
  with pytest.raises(UserError, match="flow.dequantization='variational'"):
    likelihood.family(config, Spec((4, 4, 1), pixels=False), lambda scale: scaled())


def moved(tree, by: float):
  """The leaves, each with noise, so that nothing is at its start."""
  leaves, form = jax.tree.flatten(tree)
  keys = jax.random.split(KEY, len(leaves))
  noise = [
    by * jax.random.normal(k, a.shape) for k, a in zip(keys, leaves, strict=True)
  ]
  return jax.tree.unflatten(form, [a + n for a, n in zip(leaves, noise, strict=True)])


def test_variational_noise_has_the_density_it_says():
  parts = (lambda channels: ConvConditioner(channels, 8), 2)
  noise, flow = dequantization.variational(*parts), dequantization.noise_flow(*parts)
  x = jnp.asarray(levels(2, 4, 4, 1))
  params = moved(noise.init(KEY, x, Cond()), 0.3)
  keys = example_keys(KEY, jnp.zeros(2, jnp.uint32))  # the same for both
  noisy, log_q = jax.jit(noise.draw)(params, x, keys, Cond())
  u = (noisy - x) / BIN + 0.5
  assert ((u > 0) & (u < 1)).all()
  assert np.abs(u[0] - u[1]).max() > 0.01  # it depends on the picture
  eps = jax.random.normal(keys[0], x.shape[1:])
  own = Cond(image=squeeze(x[:1]))

  def u_of(eps):
    return flow.forward(params, eps[None], own)[0].ravel()

  np.testing.assert_allclose(u_of(eps), u[0].ravel(), atol=1e-3)
  jacobian = jax.jit(jax.jacobian(u_of))(eps).reshape(16, 16)
  exact = stats.norm.logpdf(eps).sum() - np.linalg.slogdet(jacobian)[1]
  np.testing.assert_allclose(log_q[0], exact, rtol=1e-3)


@pytest.fixture(scope="module")
def glow():
  """A Glow of two classes, with weights that are not at their start."""
  config = config_of(text__encoder="label", text__classes=2, text__drop=0.5)
  config.sample.frames = 1
  spec = Spec((8, 8, 3))
  family = make(config, spec)
  batch = random_batch(config)
  state = jax.jit(family.init)(KEY, batch)
  return config, spec, batch, state.replace(ema=moved(state.ema, 0.05))


def test_a_picture_comes_back_from_its_noise(glow):
  config, spec, batch, state = glow
  family = make(config, spec)
  given = Given(jnp.asarray(batch["x"]), jnp.ones((8, 8, 8, 1)))
  between = jax.jit(family.edits["interpolate"])(state, KEY, batch["cond"], given)
  # The ends have the conditions of their rows.
  np.testing.assert_allclose(between.images[0], batch["x"][0], atol=1e-4)
  np.testing.assert_allclose(between.images[-1], batch["x"][-1], atol=1e-4)


def test_guidance_leads_away_from_the_null_condition(glow):
  config, spec, batch, state = glow

  def drawn(scale, label):
    config.sample.guidance_scale = float(scale)
    sample = jax.jit(make(config, spec).sample, static_argnums=3)
    return sample(state, KEY, Cond(label=jnp.full(2, label, jnp.int32)), 2).images

  plain, null, guided = drawn(1, 1), drawn(1, -1), drawn(3, 1)
  np.testing.assert_allclose(drawn(1.0001, 1), plain, atol=0.01)
  np.testing.assert_allclose(drawn(0, 1), null, atol=1e-5)
  assert np.abs(guided - plain).mean() > np.abs(drawn(1.5, 1) - plain).mean() > 0.001


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"flow__coupling": "afine"}, "did you mean 'affine'"),
    ({"flow__mixing": "conv"}, "flow.mixing='conv' is unknown"),
    ({"flow__dequantization": "none"}, "flow.dequantization='none' is unknown"),
    ({"flow__levels": 4}, "cannot be halved 4 times"),
    ({"sample__edit": "inpaint"}, "sample.edit='inpaint' is unknown"),
    ({"model__dropout": 0.1}, "has no use for model.dropout"),
    ({"flow__kinetic_weight": 0.1}, "has no use for flow.kinetic_weight"),
    (
      {"text__encoder": "label", "text__classes": 2, "sample__guidance_scale": 2.0},
      "needs a model that was trained without",
    ),
  ],
)
def test_settings_a_flow_cannot_take_are_refused(fields, message):
  config = config_of(**fields)
  with pytest.raises(UserError, match=message):
    make(config, Spec((8, 8, 3)))
