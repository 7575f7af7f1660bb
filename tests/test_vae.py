"""Bounds of a model whose likelihood is known, and a small trained autoencoder."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict
from scipy import stats

from core import levels
from core.errors import UserError
from core.family import Given, Spec, make, sample_keys
from tests.runs import load_config, random_batch
from text.cond import Cond
from vae import bounds
from vae.bounds import Posterior

KEY = jax.random.key(0)

# x = W z + b + s noise. The columns of W are orthogonal, so the exact posterior is a
# normal with independent parts.
W = np.array([[1.0, 0.5], [1.0, -0.5], [-0.5, 1.0], [0.5, 1.0]])
B, S = np.array([0.1, -0.2, 0.3, 0.0]), 0.6
X = np.array([[0.9, -1.0, 0.4, 1.3], [-0.2, 0.1, 0.0, -2.0], [3.0, 1.0, -1.0, 0.5]])
EXACT = stats.multivariate_normal.logpdf(X, B, W @ W.T + S**2 * np.eye(4))
VAR = 1 / (1 + (W**2).sum(0) / S**2)
MEAN = (X - B) @ W / S**2 * VAR


@pytest.fixture
def double():
  with jax.enable_x64(True):
    yield


def log_px(x, z):
  off = (x - z @ W.T - B) / S
  return -(off**2).sum(-1) / 2 - 4 * math.log(S * math.sqrt(2 * math.pi))


def elbo(q):
  """Exact: the mean of a quadratic under a normal is that of these four points."""
  points = np.sqrt(2) * np.concatenate([np.eye(2), -np.eye(2)])
  terms = [
    bounds.loss(log_px(X, q.at(jnp.broadcast_to(p, q.mean.shape))), q.kl())
    for p in points
  ]
  return -sum(terms) / 4


@pytest.mark.usefixtures("double")
def test_with_the_exact_posterior_the_bound_is_the_likelihood():
  q = Posterior(jnp.asarray(MEAN), jnp.broadcast_to(jnp.log(VAR), MEAN.shape))
  np.testing.assert_allclose(elbo(q), EXACT, atol=1e-10)
  # Then every draw has the same weight.
  eps = jax.random.normal(KEY, MEAN.shape)
  weight = log_px(X, q.at(eps)) + q.log_ratio(eps)
  np.testing.assert_allclose(weight, EXACT, atol=1e-10)


@pytest.mark.usefixtures("double")
def test_the_optimum_of_the_bound_is_the_likelihood():
  start = Posterior(jnp.zeros((3, 2)), jnp.ones((3, 2)))
  tx = optax.adam(optax.cosine_decay_schedule(0.2, 500))

  def step(carry, _):
    q, opt = carry
    slope = jax.grad(lambda q: -elbo(q).sum())(q)
    updates, opt = tx.update(slope, opt)
    return (optax.apply_updates(q, updates), opt), None

  (q, _), _ = jax.lax.scan(step, (start, tx.init(start)), length=500)
  assert (np.asarray(elbo(start)) < EXACT - 0.5).all()
  np.testing.assert_allclose(elbo(q), EXACT, atol=1e-4)
  np.testing.assert_allclose(q.mean, MEAN, atol=1e-3)


@pytest.mark.usefixtures("double")
def test_with_a_wrong_posterior_iwae_rises_in_k_to_the_likelihood():
  n = 10_000
  wrong = Posterior(
    jnp.asarray(MEAN) + 0.2, jnp.broadcast_to(jnp.log(VAR) + 0.7, MEAN.shape)
  )
  many = Posterior(*(jnp.repeat(a[:1], n, axis=0) for a in wrong))

  def log_weight(i):
    eps = jax.random.normal(jax.random.fold_in(KEY, i), many.mean.shape)
    return log_px(X[:1], many.at(eps)) + many.log_ratio(eps)

  ks = (1, 2, 8, 64)
  found = jax.jit(lambda: [bounds.iwae(log_weight, k).mean() for k in ks])()
  assert (np.diff(found) > 0).all()
  np.testing.assert_allclose(found[0], elbo(wrong)[0], atol=0.04)
  assert EXACT[0] - 0.02 < found[-1] < EXACT[0]
  assert found[0] < EXACT[0] - 0.3
  # Of three weights by hand.
  three = bounds.iwae(lambda i: jnp.log(jnp.array([[2.0], [3.0], [7.0]]))[i], 3)
  np.testing.assert_allclose(three, math.log(4))


def test_kl_is_what_draws_give_and_of_each_channel():
  draw = np.random.default_rng(0)
  q = Posterior(
    *(jnp.asarray(draw.normal(size=(1, 2, 2, 3)), jnp.float32) for _ in "ab")
  )
  eps = jax.random.normal(KEY, (100_000, 2, 2, 3))
  many = Posterior(*(jnp.broadcast_to(a, eps.shape) for a in q))
  # Each of the three channels by itself.
  for c in range(3):
    part = Posterior(*(a[..., c : c + 1] for a in many))
    ratio = -part.log_ratio(eps[..., c : c + 1])
    np.testing.assert_allclose(ratio.mean(), q.kl()[0, c], rtol=0.02)
  z, std = np.asarray(q.at(eps[:1])), np.exp(np.asarray(q.logvar) / 2)
  exact = stats.norm.logpdf(z) - stats.norm.logpdf(z, q.mean, std)
  np.testing.assert_allclose(q.log_ratio(eps[:1]), exact.sum(), rtol=1e-4)


def test_beta_warm_up_and_free_bits_by_hand():
  log_px, kl = jnp.array([-5.0, -7.0]), jnp.array([[1.0, 4.0], [0.0, 2.0]])
  np.testing.assert_allclose(bounds.loss(log_px, kl), [10, 9])
  np.testing.assert_allclose(bounds.loss(log_px, kl, 0.5), [7.5, 8])
  np.testing.assert_allclose(bounds.loss(log_px, kl, 2, 3), [5 + 2 * 7, 7 + 2 * 6])
  slope = jax.grad(lambda kl: bounds.loss(log_px, kl, 2, 3).sum())(kl)
  np.testing.assert_array_equal(slope, [[0, 2], [0, 0]])
  rising = [float(bounds.warmed(0.8, jnp.asarray(i), 4)) for i in (0, 1, 2, 4, 9)]
  np.testing.assert_allclose(rising, [0, 0.2, 0.4, 0.8, 0.8], rtol=1e-6)
  assert bounds.warmed(0.8, jnp.asarray(0), 0) == jnp.float32(0.8)
  np.testing.assert_allclose(levels.bits(jnp.array([6 * math.log(2)]), 3), 2)


def tiny(**fields):
  config = load_config("configs/vae/vae.py")
  config.text.encoder, config.text.classes = "label", 2
  config.data.channels = 1
  config.model.widths, config.model.blocks, config.vae.latent_channels = (8,), 0, 3
  config.update_from_flattened_dict({"vae.likelihood": "gaussian", **fields})
  return config


def family(config: ConfigDict):
  size = config.data.size
  return make(config, Spec((size, size, config.data.channels)))


def two_classes(config, step=0):
  """Dark pictures of class 0 and bright ones of class 1, with noise."""
  batch = random_batch(config, step)
  label = np.arange(config.data.batch_size, dtype=np.int32) % 2
  x = (label - 0.5).reshape(-1, 1, 1, 1) + 0.2 * batch["x"]
  return {**batch, "x": x.astype(np.float32), "cond": Cond(label=label)}


@functools.cache
def trained():
  # With a heavy KL term the latents soon leave the class to the condition.
  fields = {"vae.warmup_steps": 4, "vae.iwae_samples": 8, "vae.beta": 4.0}
  config = tiny(**fields)
  config.train.steps, config.optim.learning_rate = 500, 3e-3
  config.optim.ema_decay = 0.9
  made = family(config)
  state, history = jax.jit(made.init)(KEY, two_classes(config)), []
  step = jax.jit(made.step)
  for i in range(config.train.steps):
    state, metrics = step(state, two_classes(config, i), jax.random.fold_in(KEY, i))
    history.append(jax.device_get(metrics))
  return config, made, state, history


def test_training_lowers_a_loss_whose_kl_term_warms_up():
  _, _, state, history = trained()
  assert state.extra["skipped"][0] == 0
  for i, share in enumerate((0, 0.25, 0.5, 0.75, 1, 1)):
    now = history[i]
    exact = now["reconstruction"] + 4 * share * now["kl"]
    np.testing.assert_allclose(now["loss"], exact, rtol=1e-5)
  assert history[-1]["loss"] < history[0]["loss"] - 1


def test_samples_are_of_their_class():
  config, made, state, _ = trained()
  draw = jax.jit(lambda keys, cond: made.sample(state, keys, cond, len(keys)))
  keys, labels = sample_keys(KEY, 32), jnp.arange(32) % 2
  found = draw(keys, Cond(label=labels))
  brightness = np.asarray(found.images).mean((1, 2, 3))
  np.testing.assert_allclose(brightness[::2].mean(), -0.5, atol=0.15)
  np.testing.assert_allclose(brightness[1::2].mean(), 0.5, atol=0.15)
  # The same noise under the other class is another picture.
  other = draw(keys, Cond(label=1 - labels)).images.mean((1, 2, 3))
  assert ((other > brightness) == (labels == 0)).mean() > 0.9
  np.testing.assert_array_equal(found.nfe, 1)
  # The last frame is the picture; the first is the same for all of a class.
  np.testing.assert_allclose(found.frames[-1], found.images, atol=1e-5)
  first = found.frames[0, ::2]
  np.testing.assert_allclose(first, jnp.broadcast_to(first[:1], first.shape), atol=1e-5)
  # A sample depends on its own key alone.
  again = draw(keys[::-1], Cond(label=labels[::-1]))
  np.testing.assert_allclose(again.images, found.images[::-1], atol=1e-5)


def halves(batch):
  return [jax.tree.map(lambda a, i=i: a[i : i + 4], batch) for i in (0, 4)]


def test_bounds_of_pictures_do_not_depend_on_how_a_batch_is_cut():
  config, made, state, _ = trained()
  batch = two_classes(config, 7)

  @jax.jit
  def score(batch):
    return {name: fn(state, batch, KEY) for name, fn in made.evals.items()}

  whole, parts = score(batch), [score(half) for half in halves(batch)]
  for name, values in whole.items():
    joined = np.concatenate([part[name] for part in parts])
    np.testing.assert_allclose(joined, values, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(whole["bpd"], whole["kl"] + whole["reconstruction"])
  assert whole["bpd_iwae"].mean() < whole["bpd"].mean()
  assert made.details["bpd_iwae"]["draws"] == config.vae.iwae_samples
  # The noise is uniform over a fifth of the range: log2 51 = 5.7 bits at best.
  assert 5.6 < whole["bpd_iwae"].mean() < 7


def test_a_step_with_free_bits_does_not_depend_on_how_a_batch_is_cut():
  config = tiny(**{"vae.free_bits": 3.0, "vae.beta": 0.5, "vae.warmup_steps": 0})
  config.model.dropout, config.optim.grad_clip = 0.3, 0.0
  made, batch = family(config), two_classes(config)
  state, step = jax.jit(made.init)(KEY, batch), jax.jit(made.step)
  results = []
  for part in (batch, *halves(batch)):
    after, metrics = step(state, part, KEY)
    results.append((metrics["loss"], optax.tree.get(after.opt, "mu")))
  _, metrics = step(state, batch, KEY)
  jax.tree.map(
    lambda whole, *two: np.testing.assert_allclose(
      whole, sum(two) / 2, rtol=1e-4, atol=1e-6
    ),
    *results,
  )
  # A new model's posterior is near the prior: all four latents pay 3 bits.
  exact = metrics["reconstruction"] + 0.5 * 4 * 3 / 64
  np.testing.assert_allclose(metrics["loss"], exact, rtol=1e-5)
  assert metrics["kl"] < 4 * 3 / 64


def test_codec_and_edits_go_through_the_same_latents():
  config, made, state, _ = trained()
  x, codec = jnp.asarray(two_classes(config)["x"]), made.codecs["latents"]

  @jax.jit
  def through(x):
    keys, none = sample_keys(KEY, 8), Cond(label=jnp.full(8, -1))
    given, latents = Given(x, jnp.ones((8, 8, 8, 1))), codec.encode(state, x)
    edited = [made.edits[name](state, keys, none, given) for name in made.edits]
    return latents, codec.decode(state, latents), *edited

  latents, back, again, between = through(x)
  assert latents.shape == (8, *codec.spec.shape)
  np.testing.assert_allclose(again.images, back, atol=1e-5)
  np.testing.assert_allclose(between.images[0], back[0], atol=1e-5)
  np.testing.assert_allclose(between.images[-1], back[-1], atol=1e-5)
  np.testing.assert_array_equal(between.nfe, 1)
  middle = codec.decode(state, latents[:1] * 4 / 7 + latents[-1:] * 3 / 7)
  np.testing.assert_allclose(between.images[3:4], middle, atol=1e-5)
  assert not family(tiny(**{"text.drop": 0.0})).codecs


@pytest.mark.parametrize(
  ("kind", "vector"),
  [
    ("logistic_mixture", 4),
    ("laplace", 0),
  ],
)
def test_latents_of_every_shape_and_likelihood_fit(kind, vector):
  config = tiny(
    **{"vae.latent_dim": vector, "vae.likelihood": kind, "vae.latent_channels": 2}
  )
  config.model.widths = (8, 8)
  made, batch = family(config), two_classes(config)
  state = jax.eval_shape(made.init, KEY, batch)
  assert jax.eval_shape(made.step, state, batch, KEY)[1]["loss"].shape == ()
  codec = made.codecs["latents"]
  assert codec.spec.shape == ((1, 1, 4) if vector else (4, 4, 2))
  latents = jax.eval_shape(codec.encode, state, batch["x"])
  assert latents.shape == (8, *codec.spec.shape)


@pytest.mark.parametrize(
  ("field", "value"),
  [
    ("vae.likelihood", "normal"),
    ("sample.edit", "inpaint"),
    ("sample.guidance_scale", 2.0),
    ("vae.bottleneck", "vq"),
  ],
)
def test_what_does_not_exist_is_refused(field, value):
  with pytest.raises(UserError, match=field):
    family(tiny(**{field: value}))
