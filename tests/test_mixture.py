"""Mixtures of Gaussians: densities and EM against slow versions in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from configs.vae import mixture as mixture_config
from core.errors import UserError
from core.family import Spec
from tests.runs import largest_difference
from text import encoders
from text.cond import Cond
from vae import em, mixture

KEY = jax.random.key(0)
SHAPE = (2, 2, 1)
expect = jax.jit(em.expect)
maximise = jax.jit(em.maximise)
start = jax.jit(em.start, static_argnums=(4, 5))


def random_mixture(k=3, d=4, r=2, v=3, least=0.05):
  rng = np.random.default_rng(k + 10 * r)
  words = rng.dirichlet(np.ones(v), k)
  return em.Mixture(
    weight=jnp.asarray(rng.dirichlet(np.full(k, 5.0)), jnp.float32),
    factors=jnp.asarray(rng.normal(size=(k, d, r + 1)) / 2, jnp.float32),
    noise=jnp.asarray(least * rng.uniform(1, 3, (k, d)), jnp.float32),
    words=jnp.log(jnp.asarray(words, jnp.float32)),
  )


def random_rows(n=40, d=4, v=3):
  rng = np.random.default_rng(0)
  words = jnp.asarray(rng.integers(0, 3, (n, v)), jnp.float32)
  return jnp.asarray(rng.normal(size=(n, d)), jnp.float32), words, jnp.ones(n, bool)


def dense(mixture):
  """Mean and covariance of each component, in float64."""
  factors, noise = (np.asarray(a, np.float64) for a in (mixture.factors, mixture.noise))
  loadings = factors[..., :-1]
  covariance = loadings @ loadings.swapaxes(1, 2)
  return factors[..., -1], covariance + np.stack([np.diag(row) for row in noise])


def dense_log_density(mixture, x):
  return np.stack(
    [
      stats.multivariate_normal(mean, covariance).logpdf(np.asarray(x, np.float64))
      for mean, covariance in zip(*dense(mixture), strict=True)
    ]
  )


@pytest.mark.parametrize("rank", [0, 1, 3])
def test_log_density_is_the_dense_normal(rank):
  model, (x, *_) = random_mixture(r=rank), random_rows()
  got, z = em.log_density(model, x)
  np.testing.assert_allclose(got, dense_log_density(model, x), rtol=1e-5, atol=1e-4)
  # E[z | x] by the dense formula W^T C^-1 (x - mu).
  means, covariances = dense(model)
  loadings = np.asarray(model.factors, np.float64)[..., :-1]
  for k in range(3):
    solved = np.linalg.solve(covariances[k], (np.asarray(x) - means[k]).T)
    np.testing.assert_allclose(z[k], (loadings[k].T @ solved).T, rtol=1e-3, atol=1e-4)


def test_log_density_keeps_its_digits_where_the_noise_is_small():
  # Strong factors over the least noise there is: terms of 1e5 would cancel.
  model = random_mixture(d=64, least=5e-6)
  rng = np.random.default_rng(1)
  means, covariances = dense(model)
  x = [rng.multivariate_normal(*pair) for pair in zip(means, covariances, strict=True)]
  x = np.asarray(x, np.float32)
  got = np.diag(em.log_density(model, jnp.asarray(x))[0])
  wanted = np.diag(dense_log_density(model, x))
  np.testing.assert_allclose(got, wanted, rtol=3e-3)


def test_a_condition_is_evidence_of_the_component():
  model = random_mixture()
  x, words, _ = random_rows(5)
  words = words.at[0].set(0)
  pi, theta = np.asarray(model.weight, np.float64), np.exp(model.words)
  given = pi[:, None] * np.stack(
    [[np.prod(theta[k] ** row) for row in np.asarray(words)] for k in range(3)]
  )
  np.testing.assert_allclose(np.exp(em.log_evidence(model, words)), given, rtol=1e-4)
  density = np.exp(dense_log_density(model, x))
  joint = np.sum(given * density, 0)
  np.testing.assert_allclose(np.exp(em.log_joint(model, x, words)), joint, rtol=1e-3)
  conditional = np.sum(given / given.sum(0) * density, 0)
  got = np.exp(em.log_conditional(model, x, words))
  np.testing.assert_allclose(got, conditional, rtol=1e-3)
  np.testing.assert_allclose(got[0], pi @ density[:, 0], rtol=1e-3)  # no evidence


def slow_em(model, x, words, floor, smoothing):
  """One iteration, row by row and with dense matrices, in float64."""
  x, words = np.asarray(x, np.float64), np.asarray(words, np.float64)
  means, covariances = dense(model)
  loadings = np.asarray(model.factors, np.float64)[..., :-1]
  evidence = np.log(model.weight)[:, None] + np.asarray(model.words) @ words.T
  q = special.softmax(dense_log_density(model, x) + evidence, 0)
  k, d, r = loadings.shape
  factors, noise, theta = np.zeros((k, d, r + 1)), np.zeros((k, d)), []
  for j in range(k):
    gain = loadings[j].T @ np.linalg.inv(covariances[j])
    xz, zz = np.zeros((d, r + 1)), np.zeros((r + 1, r + 1))
    for weight, row in zip(q[j], x, strict=True):
      z = np.append(gain @ (row - means[j]), 1)
      second = np.outer(z, z)
      second[:r, :r] += np.eye(r) - gain @ loadings[j]
      xz += weight * np.outer(row, z)
      zz += weight * second
    plain = xz @ np.linalg.inv(zz)
    mean = zz[:r, r] / q[j].sum()
    root = np.linalg.cholesky(zz[:r, :r] / q[j].sum() - np.outer(mean, mean))
    factors[j, :, :r] = plain[:, :r] @ root
    factors[j, :, r] = plain[:, :r] @ mean + plain[:, r]
    noise[j] = q[j] @ x**2 / q[j].sum() - np.diag(plain @ xz.T) / q[j].sum()
    count = q[j] @ words + smoothing
    theta.append(count / count.sum())
  return q.mean(1), factors, np.maximum(noise, floor), np.log(theta)


@pytest.mark.parametrize("rank", [0, 2])
def test_an_iteration_by_hand(rank):
  model, (x, words, mask) = random_mixture(r=rank), random_rows()
  found, _ = expect(model, x, words, mask)
  got, moved = maximise(found, model, floor=0.3, smoothing=0.5)
  wanted = slow_em(model, x, words, 0.3, 0.5)
  assert (np.asarray(got.noise) == np.float32(0.3)).any()
  for a, b in zip(jax.tree.leaves(got), wanted, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
  # z is standard in the statistics that are kept, and its mean 0.
  standard = np.eye(rank + 1) * np.asarray(moved.zz)[:, -1:, -1:]
  np.testing.assert_allclose(moved.zz, standard, atol=1e-3)
  again, _ = maximise(moved, model, floor=0.3, smoothing=0.5)
  assert largest_difference(again, got) < 1e-3


def test_statistics_are_sums_over_unmasked_rows():
  model, (x, words, mask) = random_mixture(), random_rows()
  whole, _ = expect(model, x, words, mask)
  first = jnp.arange(40) < 20
  halves = [expect(model, x, words, half)[0] for half in (first, ~first)]
  parts = expect(model, x[:20], words[:20], mask[:20])[0]
  assert largest_difference(parts, halves[0]) < 1e-4
  assert largest_difference(whole, jax.tree.map(jnp.add, *halves)) < 1e-4


def clusters(n=400):
  """Rows of three far clusters: their means, variances and shares."""
  rng = np.random.default_rng(0)
  means = np.array([[-2, 0, 2, 1], [2, 1, -2, 0], [0, -2, 0, 2]], np.float32)
  scales = np.array([0.1, 0.2, 0.3], np.float32)
  chosen = rng.choice(3, n, p=[0.2, 0.3, 0.5])
  x = means[chosen] + scales[chosen, None] * rng.normal(size=(n, 4)).astype(np.float32)
  return x, chosen, means, scales


@functools.cache
def plain_em(rank, iterations=60):
  """EM over all rows from `start`: the mixture, and the log-likelihoods."""
  x, chosen, _, _ = clusters()
  x, words, mask = jnp.asarray(x), jax.nn.one_hot(chosen, 3), jnp.ones(len(x), bool)
  ids = jnp.arange(len(x), dtype=jnp.uint32)
  model = start(KEY, x, ids, mask, (3, rank, 3), 1e-6)

  def iteration(model, _):
    found, log_p = em.expect(model, x, words, mask)
    model, _ = em.maximise(found, model, floor=1e-6, smoothing=1e-6)
    return model, log_p.mean()

  return jax.lax.scan(iteration, model, length=iterations)


@pytest.mark.parametrize("rank", [0, 1])
def test_em_never_lowers_the_likelihood(rank):
  _, log_p = plain_em(rank)
  assert (np.diff(log_p) > -2e-5).all()
  assert log_p[-1] > log_p[0] + 1


def test_em_finds_separate_clusters():
  x, chosen, means, _ = clusters()
  model, _ = plain_em(0)
  for k in range(3):
    nearest = np.argmin(np.abs(np.asarray(model.factors[..., -1]) - means[k]).sum(-1))
    rows = x[chosen == k]
    np.testing.assert_allclose(model.factors[..., -1][nearest], rows.mean(0), atol=1e-3)
    np.testing.assert_allclose(model.noise[nearest], rows.var(0), rtol=1e-2)
    np.testing.assert_allclose(model.weight[nearest], len(rows) / len(x), atol=1e-3)
    assert np.exp(model.words)[nearest, k] > 0.999


def test_em_ends_where_the_gradient_of_the_likelihood_is_zero():
  x, chosen, _, _ = clusters()
  words = jax.nn.one_hot(chosen, 3)

  def log_p(model):
    return em.log_joint(model, jnp.asarray(x), words).mean()

  model, _ = plain_em(1)
  begun = start(
    KEY,
    jnp.asarray(x),
    jnp.arange(len(x), dtype=jnp.uint32),
    jnp.ones(len(x), bool),
    (3, 1, 3),
    1e-6,
  )
  before, after = (jax.grad(log_p)(m) for m in (begun, model))
  assert np.abs(before.factors).max() > 0.5
  assert np.abs(after.factors).max() < 0.01
  assert np.abs(after.noise * model.noise).max() < 1e-3


def test_start_and_what_it_expects():
  x, _, _ = random_rows(12)
  ids, mask = jnp.arange(12, dtype=jnp.uint32), jnp.arange(12) < 8
  model = start(KEY, x, ids, mask, (8, 2, 3), 1e-6)
  # Each component around another of the 8 rows that count.
  distance = np.abs(
    np.asarray(model.factors[..., -1])[:, None] - np.asarray(x)[None, :8]
  ).sum(-1)
  assert sorted(distance.argmin(1)) == list(range(8))
  assert (distance.min(1) == 0).all()
  # Wherever the rows stand.
  turned = start(KEY, x[::-1], ids[::-1], mask[::-1], (8, 2, 3), 1e-6)
  assert largest_difference(model, turned) < 1e-6
  again, _ = maximise(em.expected(model), model, floor=1e-6, smoothing=1.0)
  assert largest_difference(model, again) < 1e-5


def test_a_component_without_rows_stays():
  model, (x, words, mask) = random_mixture(), random_rows()
  factors = model.factors.at[1, :, -1].set(1e3)
  model = model.replace(factors=factors)
  found, _ = expect(model, x, words, mask)
  new, _ = maximise(found, model, floor=1e-6, smoothing=1.0)
  assert new.weight[1] == 0
  np.testing.assert_array_equal(new.factors[1], model.factors[1])
  np.testing.assert_array_equal(new.noise[1], model.noise[1])
  assert np.isfinite(em.log_joint(new, x, words)).all()


def make_config(**fields):
  config = mixture_config.get_config("tiny")
  config.data.batch_size = 16
  config.text.encoder, config.text.classes = "label", 3
  config.mixture.components, config.mixture.floor = 3, 1e-3
  for name, value in fields.items():
    group, field = name.split("__")
    config[group][field] = value
  return config


def batch_of(config, n=16, **fields):
  rng = np.random.default_rng(0)
  make = encoders.raw(config.text)
  conds = [make("red heart", i % 3) for i in range(n)]
  batch = {
    "x": rng.uniform(-1, 1, (n, *SHAPE)).astype(np.float32),
    "cond": jax.tree.map(lambda *rows: np.stack(rows), *conds),
    "_id": np.arange(n, dtype=np.uint32),
    "_mask": np.ones(n, bool),
  }
  return jax.tree.map(jnp.asarray, batch | fields)


def stepping(config):
  """A family, its first state, and its compiled step."""
  family = mixture.make(config, Spec(SHAPE))
  state = jax.jit(family.init)(KEY, batch_of(config))
  return family, state, jax.jit(family.step)


def test_steps_with_rho_1_on_all_rows_are_plain_em():
  config = make_config(mixture__power=0.0, mixture__smoothing=1.6)
  family, state, step = stepping(config)
  batch = batch_of(config)
  x, words = batch["x"].reshape(16, 4), jax.nn.one_hot(batch["cond"].label, 3)
  cut = jax.tree.map(lambda a: a.reshape(4, 4, *a.shape[1:]), batch)
  shards = jax.jit(
    jax.vmap(
      lambda state, batch: family.step(state, batch, KEY, "batch"),
      in_axes=(None, 0),
      out_axes=None,
      axis_name="batch",
    )
  )
  parts = mixture.make(
    make_config(mixture__power=0.0, mixture__smoothing=1.6, optim__microbatches=2),
    Spec(SHAPE),
  )
  over_shards, in_parts = state, state
  for _ in range(3):
    wanted = slow_em(state.params["generator"], x, words, 1e-3, 1.6)
    log_p = em.log_joint(state.params["generator"], x, words)
    state, metrics = step(state, batch, KEY)
    for a, b in zip(jax.tree.leaves(state.params), wanted, strict=True):
      np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4)
    # Nats a picture to bits a dimension and grey level.
    bits = -log_p.mean() / 4 / np.log(2) - np.log2(2 / 255)
    np.testing.assert_allclose(metrics["loss"], bits, rtol=1e-5)
    over_shards, shared = shards(over_shards, cut)
    in_parts, _ = jax.jit(parts.step)(in_parts, batch, KEY)
    np.testing.assert_allclose(shared["loss"], metrics["loss"], rtol=1e-5)
    assert largest_difference(over_shards.params, state.params) < 1e-4
    assert largest_difference(in_parts.params, state.params) < 1e-4
  assert largest_difference(state.ema, state.params) == 0


def test_statistics_move_by_rho():
  # Cappé & Moulines 2009, with rho = 2^-1/2, then 3^-1/2.
  config = make_config(mixture__power=0.5)
  _, state, step = stepping(config)
  batch = batch_of(config)
  for t in (2, 3):
    found, _ = expect(
      state.params["generator"],
      batch["x"].reshape(16, 4),
      jax.nn.one_hot(batch["cond"].label, 3),
      batch["_mask"],
    )
    rho = t**-0.5
    wanted = jax.tree.map(
      lambda s, new, rho=rho: (1 - rho) * s + rho * new / 16,
      state.opt["generator"],
      found,
    )
    state, _ = step(state, batch, KEY)
    kept = state.opt["generator"]
    assert largest_difference(kept.xx, wanted.xx) < 1e-5
    assert largest_difference(kept.words, wanted.words) < 1e-5
    assert largest_difference(kept.zz[:, -1, -1], wanted.zz[:, -1, -1]) < 1e-5
    # z is measured anew, which leaves the sums of x, and F [z, 1] with them, alone.
    solved = np.linalg.solve(wanted.zz, wanted.xz.swapaxes(1, 2))
    resolved = np.linalg.solve(kept.zz, kept.xz.swapaxes(1, 2))
    np.testing.assert_allclose(kept.xz @ resolved, wanted.xz @ solved, atol=1e-4)


def test_a_step_that_is_not_finite_changes_nothing():
  config = make_config()
  _, state, step = stepping(config)
  batch = batch_of(config)
  bad = batch | {"x": batch["x"].at[0].set(jnp.nan)}
  after, metrics = step(state, bad, KEY)
  assert largest_difference(after.params, state.params) == 0
  assert largest_difference(after.opt, state.opt) == 0
  assert (int(metrics["skipped"]), int(after.step)) == (1, 1)
  # And does not count in rho.
  once, _ = step(state, batch, KEY)
  later, metrics = step(after, batch, KEY)
  assert largest_difference(later.params, once.params) == 0
  assert int(metrics["skipped_in_a_row"]) == 0


def test_samples_have_the_moments_of_the_condition():
  config = make_config(sample__frames=3)
  family, state, _ = stepping(config)
  model = random_mixture(least=0.002)
  # Within [-1, 1], where nothing is clipped.
  model = model.replace(factors=model.factors / 5)
  state = state.replace(ema={"generator": model})
  n = 20_000
  draw = jax.jit(lambda label: family.sample(state, KEY, Cond(label=label), n))
  for label in (1, -1):
    samples = draw(jnp.full(n, label))
    log_k = np.log(model.weight) + (model.words[:, label] if label >= 0 else 0)
    share = np.exp(log_k) / np.exp(log_k).sum()
    means, covariances = dense(model)
    mean = share @ means
    second = covariances + means[:, :, None] * means[:, None]
    covariance = np.tensordot(share, second, 1) - np.outer(mean, mean)
    flat = np.asarray(samples.images).reshape(n, 4)
    np.testing.assert_allclose(flat.mean(0), mean, atol=0.01)
    np.testing.assert_allclose(np.cov(flat.T), covariance, atol=0.004)
    # From the mean of all to a component's mean to the picture.
    overall, middle, last = np.asarray(samples.frames).reshape(3, n, 4)
    np.testing.assert_allclose(
      overall, np.tile(model.weight @ model.factors[..., -1], (n, 1)), atol=1e-6
    )
    which = np.abs(middle[:, None] - means).sum(-1).argmin(1)
    np.testing.assert_allclose(middle, means[which], atol=1e-6)
    np.testing.assert_allclose(np.bincount(which) / n, share, atol=0.02)
    np.testing.assert_allclose(last, flat, atol=1e-6)
    assert (np.asarray(samples.nfe) == 1).all()


def test_bits_a_dimension_of_pictures():
  config = make_config()
  family, state, _ = stepping(config)
  batch = batch_of(config)
  batch["cond"] = Cond(label=batch["cond"].label.at[0].set(-1))
  model = random_mixture(least=1.0)
  state = state.replace(ema={"generator": model})
  x, words = batch["x"].reshape(16, 4), jax.nn.one_hot(batch["cond"].label, 3)
  to_bits = lambda log_p: -log_p / 4 / np.log(2) - np.log2(2 / 255)  # noqa: E731
  loss = family.evals["loss"](state, batch, KEY)
  np.testing.assert_allclose(loss, to_bits(em.log_joint(model, x, words)), rtol=1e-5)
  # So smooth a density hardly sees the noise in a bin.
  bpd = family.evals["bpd"](state, batch, KEY)
  wanted = to_bits(em.log_conditional(model, x, words))
  np.testing.assert_allclose(bpd, wanted, atol=0.02)
  assert np.abs(bpd - wanted).max() > 1e-5
  # A draw is the example's, wherever it stands.
  turned = jax.tree.map(lambda a: a[::-1], batch)
  again = family.evals["bpd"](state, turned, KEY)
  np.testing.assert_allclose(again[::-1], bpd, rtol=1e-5)


def test_captions_are_counted_as_trigrams():
  make = encoders.raw(make_config(text__encoder="bytes").text)
  conds = [make(caption, 0) for caption in ("abab", "ab", "红", "")]
  cond = jax.tree.map(lambda *rows: jnp.asarray(np.stack(rows)), *conds)
  counts = np.asarray(mixture.counted(cond, 4, 1024))
  assert list(counts.sum(1)) == [4, 2, 3, 0]  # one a byte
  # " ab", "aba", "bab", "ab " and " ab", "ab ": what they share is in both.
  assert np.minimum(counts[0], counts[1]).sum() == 2
  assert not np.asarray(mixture.counted(cond.null_like(), 4, 1024)).any()
  null = Cond(label=jnp.array([1, -1]))
  assert mixture.counted(null, 2, 3).tolist() == [[0, 1, 0], [0, 0, 0]]
  assert mixture.counted(Cond(), 2, 1).tolist() == [[0], [0]]


@pytest.mark.parametrize(
  ("fields", "said"),
  [
    ({"mixture__components": 17}, "mixture.components=17"),
    ({"sample__guidance_scale": 2.0}, "sample.guidance_scale to 1"),
    ({"text__classes": 0}, "text.classes"),
    ({"text__encoder": "clip"}, "text.encoder"),
    ({"optim__ema": "power"}, "optim.ema='power'"),
    ({"optim__learning_rate": 1e-3}, "no use for optim.learning_rate=0.001"),
    ({"data__low_size": 4}, "data.low_size to 0"),
  ],
)
def test_what_a_mixture_cannot_do_is_refused(fields, said):
  with pytest.raises(UserError, match=said):
    mixture.make(make_config(**fields), Spec(SHAPE))


def test_tokens_are_refused():
  with pytest.raises(UserError, match="not tokens"):
    mixture.make(make_config(), Spec(SHAPE, vocab_size=8))
