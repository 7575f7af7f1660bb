"""A hierarchy of latents: bounds against quadrature, who sees what, and training."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import integrate, stats

from core.errors import UserError
from core.family import Given, Spec, make, sample_keys
from nets.groups import Normal
from nets.ladder import sizes
from tests.runs import load_config, random_batch
from text.cond import Cond
from vae import hierarchical
from vae.hierarchy import Model

KEY = jax.random.key(0)


def tiny(**fields):
  config = load_config("configs/vae/hierarchical.py")
  config.text.encoder, config.text.classes = "label", 2
  config.data.channels, config.vae.likelihood = 1, "logistic"
  config.data.size = 2
  config.update_from_flattened_dict({"vae.groups": (2, 1), **fields})
  return config


def spec(config):
  return Spec((config.data.size, config.data.size, config.data.channels))


def stirred(params, amount=0.3):
  """Parameters with noise, so that no layer is zero."""
  leaves, tree = jax.tree.flatten(params)
  keys = jax.random.split(KEY, len(leaves))
  add = [
    amount * jax.random.normal(k, a.shape) for k, a in zip(keys, leaves, strict=True)
  ]
  return tree.unflatten([a + b for a, b in zip(leaves, add, strict=True)])


def test_kl_of_two_normals_is_its_integral():
  draw = np.random.default_rng(0)
  q, p = (
    Normal(*(jnp.asarray(draw.normal(size=(3, 2, 1, 1, 2)), jnp.float32) for _ in "ab"))
    for _ in "qp"
  )
  exact = np.zeros((3, 2, 1, 1, 2))
  for i in np.ndindex(exact.shape):
    a, b = (stats.norm(n.mean[i], np.exp(n.log_std[i])) for n in (q, p))

    def integrand(z, a=a, b=b):
      return a.pdf(z) * (a.logpdf(z) - b.logpdf(z))

    ends = a.mean() - 12 * a.std(), a.mean() + 12 * a.std()
    exact[i] = integrate.quad(integrand, *ends, epsabs=1e-9)[0]
  found = hierarchical.kl(q, p)
  np.testing.assert_allclose(found, exact.sum((2, 3, 4)).T, rtol=1e-5)
  # log_ratio is quadratic in eps, so its mean is that at these two points.
  ratios = [hierarchical.log_ratio(q, p, s * jnp.ones_like(q.mean)) for s in (1, -1)]
  np.testing.assert_allclose(-sum(ratios) / 2, found.sum(1), rtol=1e-5)
  eps = jnp.asarray(draw.normal(size=q.mean.shape), jnp.float32)
  z = q.at(eps)
  logs = [stats.norm.logpdf(z, n.mean, np.exp(n.log_std)) for n in (p, q)]
  by_scipy = (logs[0] - logs[1]).sum((0, 2, 3, 4))
  np.testing.assert_allclose(hierarchical.log_ratio(q, p, eps), by_scipy, rtol=1e-4)


@functools.cache
def one_pixel():
  """A model of one pixel and two latents, z_1 and z_2 given z_1, and its grid of eps.

  Returns the family, its state, x at some levels, and of those by quadrature:
  log p(x), log E_q[w] and the ELBO.
  """
  config = tiny(
    **{"vae.groups": (2,), "vae.latent_channels": 1, "text.encoder": "none"}
  )
  config.model.widths, config.data.size = (8,), 1
  made, model = make(config, spec(config)), Model(config, spec(config))
  levels = np.array([60, 127, 200])
  x = jnp.asarray(2 * levels / 255 - 1, jnp.float32).reshape(-1, 1, 1, 1)
  state = made.init(KEY, {"x": x, "cond": Cond()})
  params = stirred(state.params["generator"])
  # Mild, so that the grid holds all of the latents.
  group = params["down"]["groups_0"]
  for part in (params["down"], group["prior"], group["posterior"]):
    part["out"] = jax.tree.map(lambda a: 0.4 * a, part["out"])

  side = np.linspace(-7, 7, 57)
  eps = np.stack(np.meshgrid(side, side, indexing="ij")).reshape(2, -1, 1, 1, 1)
  weight = stats.norm.logpdf(eps).sum((0, 2, 3, 4)) + 2 * math.log(side[1] - side[0])
  eps, on = (jnp.asarray(eps, jnp.float32),), jnp.ones(2, bool)

  @jax.jit
  def over(maps, x):
    met = model.run(params, "descend", eps, on, None, maps)
    log_px = model.likelihood.log_prob(
      jnp.broadcast_to(x, met.out[..., :1].shape), met.out
    )
    if maps is None:
      return log_px
    pair = met.posteriors[0], met.priors[0]
    log_w = log_px + hierarchical.log_ratio(*pair, eps[0])
    return log_w, log_px - hierarchical.kl(*pair).sum(1)

  exact = [jax.nn.logsumexp(over(None, v) + weight) for v in x]
  every = [
    jax.nn.logsumexp(over(None, jnp.float32(2 * k / 255 - 1)) + weight)
    for k in range(256)
  ]
  by_q, elbos = [], []
  for v in x:
    maps = model.run(params, "ascend", v[None], None)
    maps = tuple(jnp.broadcast_to(m, (57**2, *m.shape[1:])) for m in maps)
    log_w, elbo = over(maps, v)
    by_q.append(jax.nn.logsumexp(log_w + weight))
    elbos.append((jnp.exp(weight) * elbo).sum())
  state = state.replace(ema={"generator": params})
  return (
    config,
    state,
    x,
    np.array(exact),
    np.array(every),
    np.array(by_q),
    np.array(elbos),
  )


def test_weights_average_to_the_likelihood_and_the_bound_is_below():
  _, _, _, exact, every, by_q, elbo = one_pixel()
  np.testing.assert_allclose(np.exp(every).sum(), 1, atol=1e-4)
  np.testing.assert_allclose(by_q, exact, atol=1e-3)
  assert (elbo < exact - 0.01).all()


def test_bits_are_those_of_quadrature_and_iwae_comes_near_the_likelihood():
  config, state, x, exact, _, _, elbo = one_pixel()
  n, fns = 2000, {}
  for k in (1, 4, 64):
    own = config.copy_and_resolve_references()
    own.vae.iwae_samples = k
    evals = make(own, spec(own)).evals
    fns |= {"bpd": evals["bpd"], f"iwae_{k}": evals["bpd_iwae"]}
  batch = {
    "x": jnp.repeat(x, n, axis=0),
    "cond": Cond(),
    "_id": jnp.arange(3 * n, dtype=jnp.uint32),
  }
  found = {
    name: -np.asarray(values).reshape(3, n).mean(1) * math.log(2)
    for name, values in jax.jit(
      lambda: {name: fn(state, batch, KEY) for name, fn in fns.items()}
    )().items()
  }
  np.testing.assert_allclose(found["bpd"], elbo, atol=0.05)
  np.testing.assert_allclose(found["iwae_1"], elbo, atol=0.05)
  assert (found["iwae_1"] < found["iwae_4"]).all()
  assert (found["iwae_4"] < found["iwae_64"]).all()
  assert (found["iwae_64"] < exact).all()
  np.testing.assert_allclose(found["iwae_64"], exact, atol=0.15)


@functools.cache
def wired():
  """A model of 1 group at 1x1 and two at 2x2 with nothing at zero, and a picture."""
  config = tiny()
  config.sample.frames = 3
  model = Model(config, spec(config))
  batch = two_classes(config)
  params = jax.jit(lambda: stirred(model.init(KEY, batch)))()
  return model, params, jnp.asarray(batch["x"][:1])


def projected(met):
  """One number for each prior, for each posterior if there are any, and the output."""

  def number(a):
    return (a * jnp.cos(jnp.arange(a.size)).reshape(a.shape)).sum()

  rows = [number(a) for n in met.priors for a in n.mean + n.log_std]
  if met.posteriors[0] is not None:
    rows += [number(a) for n in met.posteriors for a in n.mean + n.log_std]
  return jnp.stack([*rows, number(met.out)])


def test_latents_reach_what_is_below_them_and_nothing_else():
  model, params, x = wired()
  vec = jnp.ones((1, 16))
  eps = model.noise(jax.random.split(KEY, 1))
  maps = model.run(params, "ascend", x, vec)

  def scaled(share, maps):
    top, rest = eps
    noise = (
      share[:1, None, None, None, None] * top,
      share[1:, None, None, None, None] * rest,
    )
    return projected(model.run(params, "descend", noise, model.first(3), vec, maps))

  below = np.tri(3, k=-1, dtype=bool)
  by_prior, by_posterior = jax.jit(
    lambda: [jax.jacfwd(scaled)(jnp.ones(3), m) for m in (None, maps)]
  )()
  np.testing.assert_array_equal(by_prior[:3] != 0, below)
  np.testing.assert_array_equal(by_posterior[:3] != 0, below)
  np.testing.assert_array_equal(by_posterior[3:6] != 0, below)
  assert (by_prior[-1] != 0).all()
  assert (by_posterior[-1] != 0).all()


def test_posteriors_see_the_picture_and_priors_only_the_latents():
  model, params, x = wired()
  vec = jnp.ones((1, 16))
  eps = model.noise(jax.random.split(KEY, 1))

  def down(x):
    maps = model.run(params, "ascend", x, vec)
    return model.run(params, "descend", eps, model.first(3), vec, maps)

  def slope(x):
    return jax.jacrev(lambda k: projected(down(k * x)))(1.0)

  met, slopes = jax.jit(lambda x: (down(x), slope(x)))(x)
  assert slopes[0] == 0  # the prior of the top
  assert (slopes[3:6] != 0).all()
  # The same latents without the picture: the same priors and the same output.
  same = tuple(
    (z - p.mean) * jnp.exp(-p.log_std)
    for z, p in zip(met.latents, met.priors, strict=True)
  )
  blind = model.run(params, "descend", same, model.first(3), vec)
  assert blind.posteriors == (None, None)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3),
    (blind.priors, blind.out),
    (met.priors, met.out),
  )


def two_classes(config, step=0):
  """Dark pictures of class 0 and bright ones of class 1, each of some brightness."""
  batch = random_batch(config, step)
  label = np.arange(config.data.batch_size, dtype=np.int32) % 2
  own = batch["x"].mean((1, 2, 3), keepdims=True) * config.data.size
  x = (label - 0.5).reshape(-1, 1, 1, 1) + np.clip(0.3 * own, -0.3, 0.3)
  x = x + 0.05 * batch["x"]
  return {**batch, "x": x.astype(np.float32), "cond": Cond(label=label)}


@functools.cache
def trained():
  config = tiny(**{"vae.warmup_steps": 4, "vae.iwae_samples": 8, "text.drop": 0.0})
  config.train.steps, config.optim.ema_decay = 120, 0.9
  config.optim.learning_rate = 1e-2
  config.model.widths = (16, 32)
  made = make(config, spec(config))
  state, history = jax.jit(made.init)(KEY, two_classes(config)), []
  step = jax.jit(made.step)
  made = made._replace(step=step)
  for i in range(config.train.steps):
    state, metrics = step(state, two_classes(config, i), jax.random.fold_in(KEY, i))
    history.append(jax.device_get(metrics))
  return config, made, state, history


def test_the_loss_is_made_of_the_groups_and_falls():
  _, _, state, history = trained()
  assert state.extra["skipped"][0] == 0
  for i, share in enumerate((0, 0.25, 0.5, 0.75, 1, 1)):
    now = history[i]
    np.testing.assert_allclose(now["kl"], now["kl_2"] + now["kl_1"], rtol=1e-5)
    exact = now["reconstruction"] + share * now["kl"]
    np.testing.assert_allclose(now["loss"], exact, rtol=1e-5)
  assert history[-1]["loss"] < history[4]["loss"] - 3


def test_samples_are_of_their_class_and_form_group_by_group():
  _, made, state, _ = trained()
  draw = jax.jit(lambda keys, cond: made.sample(state, keys, cond, len(keys)))
  keys, cond = sample_keys(KEY, 8), Cond(label=jnp.arange(8) % 2)
  found = draw(keys, cond)
  brightness = np.asarray(found.images).mean((1, 2, 3))
  np.testing.assert_allclose(brightness[::2], -0.5, atol=0.4)
  np.testing.assert_allclose(brightness[1::2], 0.5, atol=0.4)
  np.testing.assert_array_equal(found.nfe, 1)
  # First all latents at their mean, then the top group drawn, then all.
  first, middle, last = np.asarray(found.frames)
  np.testing.assert_array_equal(last, found.images)
  np.testing.assert_allclose(
    first[::2], np.broadcast_to(first[:1], first[::2].shape), atol=1e-5
  )
  assert np.abs(first - middle).max() > 1e-3
  assert np.abs(middle - last).max() > 1e-3
  # A sample depends on its own key alone.
  order = jnp.arange(8)[::-1]
  again = draw(keys[order], jax.tree.map(lambda a: a[order], cond))
  np.testing.assert_allclose(again.images[::-1], found.images, atol=1e-5)


def test_a_reconstruction_takes_the_means_of_more_and_more_posteriors():
  model, params, _ = wired()
  batch = two_classes(model.config)
  made = make(model.config, model.spec)
  state = trained()[2].replace(ema={"generator": params})

  @jax.jit
  def both(x, cond):
    vec = model.run(params, "embed", cond)
    maps = model.run(params, "ascend", x, vec)
    zeros = [jnp.zeros((g, len(x), *place)) for g, *place in model.net.down.shapes]
    met = [
      model.run(params, "descend", tuple(zeros), model.first(k), vec, maps)
      for k in (0, 2, 3)
    ]
    given = Given(x, jnp.ones((*x.shape[:3], 1)))
    return met, made.edits["reconstruct"](state, KEY, cond, given)

  met, found = both(jnp.asarray(batch["x"]), batch["cond"])
  pictures = [model.likelihood.mean(one.out) for one in met]
  np.testing.assert_allclose(found.frames, pictures, atol=1e-5)
  np.testing.assert_array_equal(found.images, found.frames[-1])
  np.testing.assert_array_equal(found.nfe, 1)
  assert min(np.abs(np.diff(found.frames, axis=0)).max((1, 2, 3, 4))) > 1e-3
  # z is the mean of the posterior where drawn, of the prior elsewhere.
  np.testing.assert_array_equal(met[2].latents[1], met[2].posteriors[1].mean)
  np.testing.assert_array_equal(met[1].latents[1][0], met[1].posteriors[1].mean[0])
  np.testing.assert_array_equal(met[1].latents[1][1], met[1].priors[1].mean[1])


def test_bounds_do_not_depend_on_how_a_batch_is_cut():
  config, made, state, _ = trained()
  batch = two_classes(config, 7)
  score = jax.jit(
    lambda batch: {name: fn(state, batch, KEY) for name, fn in made.evals.items()}
  )
  order = np.arange(8)[::-1]
  whole = score(batch)
  mixed = score(jax.tree.map(lambda a: a[order], batch))
  for name, values in whole.items():
    np.testing.assert_allclose(mixed[name][order], values, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(whole["bpd"], whole["kl"] + whole["reconstruction"])
  # The wrong class costs bits.
  wrong = score({**batch, "cond": Cond(label=1 - batch["cond"].label)})
  assert wrong["bpd"].mean() > whole["bpd"].mean() + 0.05


def test_a_step_does_not_depend_on_microbatches_loops_or_recomputation():
  results = []
  for parts, loop in ((1, False), (2, True)):
    config = tiny(**{"vae.free_bits": 1000.0, "vae.beta": 0.5, "vae.warmup_steps": 0})
    config.model.widths, config.data.size, config.vae.groups = (8,), 1, (2,)
    config.optim.microbatches = parts
    config.model.scan, config.model.remat = loop, loop
    made, batch = make(config, spec(config)), two_classes(config)
    if not results:
      state = jax.jit(made.init)(KEY, batch)
      state = state.replace(params={"generator": stirred(state.params["generator"])})
    after, metrics = jax.jit(made.step)(state, batch, KEY)
    results.append((optax.tree.get(after.opt, "mu"), metrics))
    # Both groups have their free bits.
    exact = metrics["reconstruction"] + 0.5 * 2 * 1000
    np.testing.assert_allclose(metrics["loss"], exact, rtol=1e-5)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6), *results
  )


def test_the_published_model_has_39_million_parameters():
  config = load_config("configs/vae/hierarchical.py", "")
  model = Model(config, spec(config))
  batch = {"x": jnp.zeros((1, 32, 32, 3)), "cond": Cond()}
  shapes = jax.eval_shape(model.init, KEY, batch)
  count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
  assert round(count / 1e6) == 39
  assert sizes(32, 5) == (32, 16, 8, 4, 1)
  assert sizes(28, 4) == (28, 14, 7, 1)


@pytest.mark.parametrize(
  ("field", "value", "names"),
  [
    ("vae.likelihood", "normal", "vae.likelihood"),
    ("sample.edit", "inpaint", "sample.edit"),
    ("sample.guidance_scale", 2.0, "sample.guidance_scale to 1"),
    ("vae.latent_dim", 8, "no use for vae.latent_dim=8: set it to 0"),
    ("vae.groups", (1, 1, 1), "vae.groups"),
    ("vae.groups", (0, 0), "vae.groups"),
    ("model.blocks", (1,), "model.blocks"),
    ("data.size", 1, "model.widths"),
  ],
)
def test_what_does_not_fit_is_refused(field, value, names):
  config = tiny(**{field: value})
  with pytest.raises(UserError, match=names):
    make(config, spec(config))
