"""A critic on top of other families leaves them what they are."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core import family as families
from core import noise
from core.errors import UserError
from core.family import Spec
from gan import ddgan
from tests.runs import load_config, random_batch

KEY = jax.random.key(0)
pytestmark = pytest.mark.usefixtures("quick_to_compile")


def config_of(file: str, **fields: object):
  config = load_config(f"configs/gan/{file}.py")
  for name, value in fields.items():
    config.gan[name] = value
  return config


def made(config):
  return families.make(config, Spec((config.data.size,) * 2 + (config.data.channels,)))


def plain(config):
  own = config.copy_and_resolve_references()
  own.family = config.gan.family
  return made(own)


@pytest.mark.parametrize(
  "file",
  [
    "vqgan",
    pytest.param("vae_gan", marks=pytest.mark.slow),
    pytest.param("flow_gan", marks=pytest.mark.slow),
  ],
)
def test_without_weight_a_hybrid_trains_as_its_family(file):
  config = config_of(file, weight=0.0, adaptive=False)
  hybrid, own = made(config), plain(config)
  batch = random_batch(config)
  state = jax.jit(hybrid.init)(KEY, batch)
  rng = jax.random.key(7)
  # The key that the hybrid's step plays the generator's part with.
  playing, _ = jax.random.split(jax.random.split(rng, 3)[1])
  alone = state.replace(
    **{
      part: {"generator": getattr(state, part)["generator"]}
      for part in ("params", "opt", "ema")
    }
  )
  after, metrics = jax.jit(hybrid.step)(state, batch, rng)
  expected, of_family = jax.jit(own.step)(alone, batch, playing)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
    after.params["generator"],
    expected.params["generator"],
  )
  np.testing.assert_allclose(metrics["loss"], of_family["loss"], rtol=1e-5)
  assert set(of_family) <= set(metrics)
  assert set(hybrid.evals) == set(own.evals)
  assert set(hybrid.codecs) == set(own.codecs)


@pytest.mark.slow
def test_a_critic_waits_for_its_start():
  """As in the published code of VQGAN, where the factor of both its losses is 0."""
  config = config_of("vqgan", start=1)
  family = made(config)
  step, batch = jax.jit(family.step), random_batch(config)
  states = [jax.jit(family.init)(KEY, batch)]
  for i in range(2):
    states.append(step(states[-1], batch, jax.random.key(i))[0])
  before, waited, begun = (jax.tree.leaves(state.params["critic"]) for state in states)
  for a, b in zip(before, waited, strict=True):
    np.testing.assert_array_equal(a, b)
  assert any((a != b).any() for a, b in zip(waited, begun, strict=True))


def test_a_vaes_critic_sees_reconstructions_and_draws_of_the_prior():
  config = config_of("vae_gan")
  own = plain(config)
  batch = random_batch(config)
  state = jax.jit(own.init)(KEY, batch)
  weights = (state.params["generator"], {"updates": jnp.asarray(0)})
  play = jax.jit(lambda batch: own.objective.play(weights, batch, KEY, None).fakes)
  before = play(batch)
  change = np.abs(play(batch | {"x": -batch["x"]}) - before).max((1, 2, 3))
  assert (change[::2] > 1e-4).all()
  np.testing.assert_array_equal(change[1::2], 0)


def test_a_flows_critic_sees_draws():
  """Of the model as it is, whatever `sample` says."""
  config = config_of("flow_gan")
  own = plain(config)
  batch = random_batch(config)
  state = jax.jit(own.init)(KEY, batch)

  def play(own, batch):
    run = jax.jit(functools.partial(own.objective.play, rng=KEY))
    return run((state.params["generator"], {}), batch)

  first, second = play(own, batch), play(own, batch | {"x": -batch["x"]})
  config.sample.temperature, config.sample.guidance_scale = 0.1, 3.0
  np.testing.assert_array_equal(play(plain(config), batch).fakes, first.fakes)
  np.testing.assert_array_equal(first.fakes, second.fakes)
  assert first.fakes.shape == batch["x"].shape
  assert np.abs(first.losses - second.losses).max() > 0


@pytest.mark.parametrize(
  ("file", "fields", "message"),
  [
    ("vae_gan", {"family": "gan.gan"}, "critic of its own"),
    ("flow_gan", {"adaptive": True}, "gan.adaptive"),
    ("ddgan", {"path_length": 1.0}, "gan.path_length"),
    ("vqgan", {"generator": "r3gan"}, "gan.generator"),
    ("vae_gan", {"family": "vae.vea"}, "gan.family='vae.vea' is not a family"),
    (
      "vae_gan",
      {"family": "flows.glow"},
      "field 'flow', which gan.family='flows.glow'",
    ),
    ("ddgan", {"family": "vae.vae"}, "no use for gan.family"),
    ("ddgan", {"weight": 0.0}, "gan.weight=0 leaves gan.ddgan nothing"),
    ("ddgan", {"augment": "noise"}, "noises pictures already"),
    ("ddgan", {"spectral_norm": "both"}, "is of gan.gan alone, not of gan.ddgan"),
    ("vae_gan", {"spectral_norm": "both"}, "is of gan.gan alone, not of gan.hybrid"),
    ("vae_gan", {"path_length": 1.0}, "no use for gan.path_length"),
  ],
)
def test_settings_refused(file, fields, message):
  config = config_of(file, **fields)
  with pytest.raises(UserError, match=message):
    made(config)


def test_a_mixture_can_have_no_critic():
  config = load_config("configs/vae/mixture.py")
  config.gan = load_config("configs/gan/vae_gan.py").gan
  config.gan.family, config.family = config.family, "gan.hybrid"
  with pytest.raises(UserError, match="no critic can be added"):
    made(config)


@pytest.mark.parametrize("steps", [1, 3])
def test_denoising_diffusion_gan_draws_in_so_many_steps(steps):
  config = config_of("ddgan")
  config.noise.timesteps, config.sample.frames = steps, 3
  model, batch = made(config), random_batch(config)
  state = jax.jit(model.init)(KEY, batch)
  samples = jax.jit(model.sample, static_argnums=3)(state, KEY, batch["cond"], 8)
  assert (samples.nfe == steps).all()
  np.testing.assert_array_equal(samples.images, samples.frames[-1])
  assert np.abs(samples.images).max() <= 1
  played = jax.jit(
    lambda batch: model.objective.play(
      (state.params["generator"], {}), batch, KEY, None
    )
  )(batch)
  if steps == 1:  # the step ends at the clean picture
    np.testing.assert_allclose(played.reals, batch["x"], atol=1e-6)
    assert np.abs(played.fakes).max() <= 1


@pytest.mark.parametrize("file", ["ddgan", "vae_gan", "vqgan", "flow_gan"])
def test_sampling_that_it_does_not_do_is_refused(file):
  config = config_of(file)
  config.sample.truncation = 0.5
  with pytest.raises(UserError, match="no use for sample.truncation"):
    made(config)


class Known:
  """A generator that can be done by hand."""

  def init(self, rng, *args):
    return {"params": {}}

  def apply(self, variables, x_t, z, logsnr, cond):
    return jnp.tanh(x_t / 2 + (z.mean(-1) + logsnr / 10)[:, None, None, None])


def test_what_denoising_diffusion_gan_shows_its_critic_by_hand(monkeypatch):
  """Ho et al. 2020, eq. 2, 4 and 7, of four steps of 250 of the 1000 betas each."""
  monkeypatch.setattr(ddgan, "Generator", lambda *args: Known())
  config = config_of("ddgan")
  config.data.batch_size = 32
  model, batch = made(config), random_batch(config)
  played = jax.jit(lambda b: model.objective.play(({}, {}), b, KEY, None))(batch)
  shape = batch["x"].shape[1:]
  keys = families.example_keys(KEY, jnp.asarray(batch["_id"]))
  times, first, second, draws, last = jax.vmap(
    lambda key: jax.random.split(key, 5), out_axes=1
  )(keys)
  i = np.array([int(jax.random.randint(key, (), 1, 5)) for key in times])
  assert set(i) == {1, 2, 3, 4}
  product = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
  kept = np.append(1, product[249::250])
  column = lambda a: np.asarray(a)[:, None, None, None]  # noqa: E731
  now, before = column(kept[i]), column(kept[i - 1])
  beta = 1 - now / before
  normal = lambda keys: np.asarray(noise.normals(keys, shape))  # noqa: E731
  x_s = np.sqrt(before) * batch["x"] + np.sqrt(1 - before) * normal(first)
  x_t = np.sqrt(1 - beta) * x_s + np.sqrt(beta) * normal(second)
  logsnr = np.log(kept[i] / (1 - kept[i]))
  z = noise.normals(draws, (config.gan.latent_dim,))
  x = np.asarray(Known().apply({}, x_t, z, logsnr, None))
  mean = np.sqrt(before) * beta * x + np.sqrt(1 - beta) * (1 - before) * x_t
  spread = np.sqrt((1 - before) / (1 - now) * beta)
  fakes = mean / (1 - now) + spread * normal(last)
  np.testing.assert_allclose(played.reals, x_s, atol=2e-4)
  np.testing.assert_allclose(played.context, x_t, atol=2e-4)
  np.testing.assert_allclose(played.logsnr, logsnr, rtol=1e-3, atol=1e-3)
  np.testing.assert_allclose(played.fakes, fakes, atol=5e-4)


def test_ddgan_says_which_of_its_settings_is_wrong() -> None:
  config = load_config("configs/gan/ddgan.py")
  config.noise.schedule = "rectified_flow"
  with pytest.raises(UserError, match="which 'rectified_flow' is not"):
    made(config)
  config.noise.schedule, config.noise.timesteps = "linear", 0
  with pytest.raises(UserError, match="1 or more, not 0"):
    made(config)
