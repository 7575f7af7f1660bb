"""One training step of `from_loss` and `core.optim`, against numpy written again."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from core import family, optim
from core import step as steps
from core.errors import UserError
from nets.transformer import Block, Blocks

KEY = jax.random.key(1)


def no_samples(params, rng, cond, n):
  raise NotImplementedError


def make_config(**fields):
  config = base.get_config()
  config.data.batch_size = 8
  config.train.steps = 20
  config.optim.update(
    {"warmup_steps": 0, "ema": "constant", "ema_decay": 0.9, **fields}
  )
  return config


def make_family(config):
  """Linear regression with a noise of its own on each example's input."""

  def init(rng, batch):
    return {"w": jnp.full((3, 2), 0.5), "b": jnp.array([0.2, -0.1])}

  def loss(params, batch, rng):
    keys = family.example_keys(rng, batch["_id"])
    noise = jax.vmap(lambda key: jax.random.normal(key, (3,)))(keys)
    output = (batch["x"] + 0.1 * noise) @ params["w"] + params["b"]
    off = jnp.mean((output - batch["y"]) ** 2, 1)
    return off, {"bias": jnp.broadcast_to(params["b"][0], off.shape)}

  return steps.from_loss(config, init=init, loss=loss, sample=no_samples, evals={})


def make_batch(rows=8, seed=0):
  rng = np.random.default_rng(seed)
  return {
    "x": jnp.asarray(rng.normal(size=(rows, 3)), jnp.float32),
    "y": jnp.asarray(rng.normal(size=(rows, 2)), jnp.float32),
    "_id": jnp.arange(rows, dtype=jnp.uint32),
    "_mask": jnp.ones(rows, bool),
  }


def run(batches, **fields):
  """The states after each batch, the initial one first, and the metrics."""
  made = make_family(make_config(**fields))
  states, metrics, step = [made.init(KEY, batches[0])], [], jax.jit(made.step)
  for batch in batches:
    state, logged = step(states[-1], batch, KEY)
    states.append(state)
    metrics.append(logged)
  return states, metrics


def assert_close(one, two, **tolerance):
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), one, two)


def assert_same(one, two):
  jax.tree.map(np.testing.assert_array_equal, one, two)


def change(tree, before):
  return jax.tree.map(jnp.subtract, tree, before)


@pytest.mark.parametrize("parts", [2, 4])
def test_microbatches_do_not_change_the_step(parts):
  # The last rows are padding, so the parts hold different numbers of examples.
  batch = make_batch()
  batch["_mask"] = batch["_mask"].at[-3:].set(False)
  (_, whole), (logged,) = run([batch])
  (_, cut), (logged_cut,) = run([batch], microbatches=parts)
  assert_close(cut.params, whole.params, rtol=1e-6)
  assert_close(cut.ema, whole.ema, rtol=1e-6)
  assert_close(logged_cut, logged, rtol=1e-5)


def test_padding_does_not_count():
  batch = make_batch()
  padded = dict(batch, _mask=jnp.arange(8) < 5, x=batch["x"].at[5:].mul(100))
  (_, with_padding), (logged_padded,) = run([padded])
  (_, without), (logged,) = run([jax.tree.map(lambda a: a[:5], batch)])
  assert_close(with_padding.params, without.params, rtol=1e-6)
  assert_close(logged_padded, logged, rtol=1e-5)


def test_metrics_are_means_over_examples():
  batch = make_batch()
  batch["_mask"] = batch["_mask"].at[5:].set(False)
  (start, _), (logged,) = run([batch], learning_rate=0.25)
  noise = jnp.stack(
    [jax.random.normal(jax.random.fold_in(KEY, i), (3,)) for i in range(8)]
  )
  params = jax.device_get(start.params["generator"])
  output = np.asarray(batch["x"] + 0.1 * noise) @ params["w"] + params["b"]
  want = np.mean((output - batch["y"])[:5] ** 2)
  np.testing.assert_allclose(logged["loss"], want, rtol=1e-5)
  np.testing.assert_allclose(logged["bias"], params["b"][0], rtol=1e-6)
  assert logged["learning_rate"] == 0.25
  assert logged["skipped"] == logged["skipped_in_a_row"] == 0


def test_ema_follows_its_formula():
  decays = (0.9, 0.1, 2 / 11)  # constant; the first two steps of a warm-up
  (start, *_), _ = run([make_batch()])
  assert_same(start.ema, start.params)
  for kind, first, second in [("constant", 0.9, 0.9), ("warmup", *decays[1:])]:
    states, _ = run([make_batch(), make_batch(seed=1)], ema=kind, learning_rate=0.3)
    want = states[0].params
    for state, d in zip(states[1:], (first, second), strict=True):
      want = jax.tree.map(lambda e, p, d=d: d * e + (1 - d) * p, want, state.params)
      assert_close(state.ema, want, rtol=1e-6)


def poisoned(seed=0):
  batch = make_batch(seed=seed)
  return dict(batch, x=batch["x"].at[2, 1].set(jnp.nan))


@pytest.mark.parametrize("parts", [1, 4])
def test_a_step_that_is_not_finite_changes_nothing(parts):
  good = make_batch()
  batches = [good, poisoned(), poisoned(), good]
  (_, first, second, third, fourth), metrics = run(batches, microbatches=parts)
  for state in (second, third):
    assert_same(state.params, first.params)
    assert_same(state.opt, first.opt)
    assert_same(state.ema, first.ema)
  assert [int(s.step) for s in (first, second, third, fourth)] == [1, 2, 3, 4]
  counts = [s.extra["skipped"].tolist() for s in (first, second, third, fourth)]
  assert counts == [[0, 0], [1, 1], [2, 2], [2, 0]]
  assert [int(m["skipped"]) for m in metrics] == [0, 1, 2, 2]
  assert [int(m["skipped_in_a_row"]) for m in metrics] == [0, 1, 2, 0]
  assert any(
    jax.tree.leaves(jax.tree.map(jnp.any, change(fourth.params, first.params)))
  )


def test_a_gradient_that_is_not_finite_is_skipped_though_the_loss_is():
  # The slope of sqrt at 0 is infinite.
  made = steps.from_loss(
    make_config(),
    init=lambda rng, batch: {"w": jnp.zeros(2)},
    loss=lambda params, batch, rng: (jnp.sqrt(params["w"]), {}),
    sample=no_samples,
    evals={},
  )
  batch = {"_mask": jnp.ones(2, bool)}
  before = made.init(KEY, batch)
  after, metrics = jax.jit(made.step)(before, batch, KEY)
  assert metrics["loss"] == 0
  assert not np.isfinite(metrics["grad_norm"])
  assert_same(after.params, before.params)
  assert after.extra["skipped"].tolist() == [1, 1]


def tracking_family(config):
  """Fits w to the mean of x, and tracks the sum of x and how often it was updated."""

  def loss(weights, batch, rng):
    params, tracked = weights
    pull = 1 + tracked["updates"]
    off = pull * jnp.mean((batch["x"] - params["w"]) ** 2, 1)
    return off, {"seen": tracked["seen"][0] + 0 * off}, {"x": masked_sum(batch)}

  return steps.from_loss(
    config,
    init=lambda rng, batch: {"w": jnp.ones(3)},
    loss=loss,
    sample=no_samples,
    evals={
      "pull": lambda weights, batch, rng: weights[1]["updates"] + batch["x"][:, 0]
    },
    tracked=steps.Tracked(
      init=lambda rng, params, batch: {"seen": masked_sum(batch)},
      update=lambda tracked, sums, rng: {"seen": tracked["seen"] + sums["x"]},
    ),
  )


def masked_sum(batch):
  return jnp.sum(batch["x"] * batch["_mask"][:, None], 0)


@pytest.mark.parametrize("parts", [1, 4])
def test_what_is_tracked_sees_the_sums_of_the_whole_batch(parts):
  made = tracking_family(make_config(microbatches=parts))
  batch = make_batch()
  batch["_mask"] = batch["_mask"].at[-3:].set(False)
  once = np.asarray(batch["x"])[:5].sum(0)
  state = made.init(KEY, batch)
  assert state.extra["tracked"].keys() == {"seen"}
  np.testing.assert_allclose(state.extra["tracked"]["seen"], once, rtol=1e-6)
  for i in range(1, 3):
    before = state
    state, metrics = jax.jit(made.step)(state, batch, KEY)
    np.testing.assert_allclose(metrics["seen"], i * once[0], rtol=1e-5)
    np.testing.assert_allclose(
      state.extra["tracked"]["seen"], (i + 1) * once, rtol=1e-5
    )
    off = np.asarray(batch["x"])[:5] - np.asarray(before.params["generator"]["w"])
    np.testing.assert_allclose(metrics["loss"], i * np.mean(off**2), rtol=1e-5)
  evals = made.evals["pull"](state, batch, KEY)
  np.testing.assert_allclose(evals, 2 + batch["x"][:, 0])


def test_a_skipped_step_changes_nothing_tracked():
  made = tracking_family(make_config())
  batch = make_batch()
  before = made.init(KEY, batch)
  bad = batch | {"x": batch["x"].at[0, 0].set(jnp.nan)}
  after, _ = jax.jit(made.step)(before, bad, KEY)
  assert_same(after.extra["tracked"], before.extra["tracked"])
  assert after.extra["skipped"].tolist() == [1, 1]


def test_what_is_tracked_is_the_same_over_devices():
  made = tracking_family(make_config())
  batch = make_batch()
  state = made.init(KEY, batch)
  whole, _ = jax.jit(made.step)(state, batch, KEY)
  cut = jax.tree.map(lambda a: a.reshape(4, 2, *a.shape[1:]), batch)
  step = jax.vmap(made.step, (None, 0, None, None), axis_name="devices")
  each, _ = jax.jit(lambda *args: step(*args, "devices"))(state, cut, KEY)
  for i in range(4):
    part = jax.tree.map(lambda a, i=i: a[i], each.extra["tracked"])
    assert_close(part, whole.extra["tracked"], rtol=1e-6)


def test_an_update_that_is_not_finite_is_skipped_too():
  (before, after), metrics = run([make_batch()], learning_rate=float("inf"))
  assert np.isfinite(metrics[0]["loss"])
  assert np.isfinite(metrics[0]["grad_norm"])
  assert_same(after.params, before.params)
  assert_same(after.opt, before.opt)
  assert after.extra["skipped"].tolist() == [1, 1]


def adamw(params, grads, *, learning_rates, clip, decay, b1=0.9, b2=0.999, eps=1e-8):
  """Loshchilov & Hutter 2019, algorithm 2, after clipping by the global norm."""
  params = {k: np.array(v, np.float64) for k, v in params.items()}
  m = {k: np.zeros_like(v) for k, v in params.items()}
  v = {k: np.zeros_like(v) for k, v in params.items()}
  for t, (grad, lr) in enumerate(zip(grads, learning_rates, strict=True), 1):
    norm = np.sqrt(sum((g**2).sum() for g in grad.values()))
    for k, g in grad.items():
      g = g * min(1, clip / norm)
      m[k] = b1 * m[k] + (1 - b1) * g
      v[k] = b2 * v[k] + (1 - b2) * g**2
      direction = m[k] / (1 - b1**t) / (np.sqrt(v[k] / (1 - b2**t)) + eps)
      wanted = decay if k == "kernel" else 0
      params[k] = params[k] - lr * (direction + wanted * params[k])
  return params


@pytest.mark.parametrize("clip", [0.5, 0.0])
def test_updates_are_adamw_on_clipped_gradients(clip):
  config = make_config(
    learning_rate=0.1,
    grad_clip=clip,
    weight_decay=0.2,
    schedule="cosine",
    warmup_steps=2,
  ).optim
  rng = np.random.default_rng(0)
  params = {"kernel": rng.normal(size=(3, 2)), "bias": rng.normal(size=2)}
  # The first gradients are shorter than the clip, the others longer.
  grads = [
    {k: size * rng.normal(size=p.shape) for k, p in params.items()}
    for size in (0.01, 0.02, 3.0, 0.4, 5.0)
  ]
  rates = np.asarray(optim.learning_rate(config, 20)(jnp.arange(5)))
  want = adamw(
    params, grads, learning_rates=rates, clip=clip or np.inf, decay=config.weight_decay
  )
  tx = optim.make(config, 20)
  got = jax.tree.map(jnp.asarray, params)
  state, update = tx.init(got), jax.jit(tx.update)
  for grad in grads:
    updates, state = update(jax.tree.map(jnp.asarray, grad), state, got)
    got = jax.tree.map(jnp.add, got, updates)
  assert_close(got, want, rtol=2e-5)


def test_the_same_leaves_decay_in_one_layer_and_in_a_stack():
  config = make_config(learning_rate=1.0, warmup_steps=0, weight_decay=0.5).optim
  tx, x = optim.make(config, 10), jnp.ones((1, 3, 8))

  def decayed(net):
    params = net.init(KEY, x)["params"]
    ones, none = (jax.tree.map(f, params) for f in (jnp.ones_like, jnp.zeros_like))
    updates, _ = tx.update(none, tx.init(ones), ones)
    leaves = jax.tree_util.tree_leaves_with_path(updates)
    return {tuple(key.key for key in path): float(a.mean()) for path, a in leaves}

  one = decayed(Block(heads=2))
  stack = {path[1:]: by for path, by in decayed(Blocks(depth=3, heads=2)).items()}
  assert stack == one
  assert {by for path, by in one.items() if path[-1] == "kernel"} == {-0.5}
  assert {by for path, by in one.items() if path[-1] != "kernel"} == {0.0}


STEPS, WARMUP, PEAK = 50, 10, 0.3


def progress(step):
  return (step - WARMUP) / (STEPS - WARMUP)


@pytest.mark.parametrize(
  ("name", "formula"),
  [
    ("constant", lambda step: PEAK),
    ("cosine", lambda step: PEAK * (1 + np.cos(np.pi * progress(step))) / 2),
    ("linear", lambda step: PEAK * (1 - progress(step))),
    ("rsqrt", lambda step: PEAK * np.sqrt(WARMUP / step)),
  ],
)
def test_learning_rate_follows_its_formula(name, formula):
  config = make_config(learning_rate=PEAK, schedule=name, warmup_steps=WARMUP).optim
  rate = optim.learning_rate(config, STEPS)
  after = np.arange(WARMUP, STEPS + 1)
  np.testing.assert_allclose(
    rate(jnp.asarray(after)), [formula(step) for step in after], atol=1e-7
  )
  ramp = np.asarray(rate(jnp.arange(WARMUP + 1)))
  np.testing.assert_allclose(ramp[[0, -1]], [PEAK / WARMUP, PEAK], rtol=1e-6)
  np.testing.assert_allclose(np.diff(ramp), np.diff(ramp)[0], rtol=1e-5)  # a line


def test_learning_rate_without_warm_up_starts_at_its_peak():
  config = make_config(learning_rate=PEAK, schedule="cosine").optim
  rate = optim.learning_rate(config, STEPS)
  np.testing.assert_allclose(
    [rate(0), rate(STEPS // 2), rate(STEPS)], [PEAK, PEAK / 2, 0]
  )


@pytest.mark.parametrize(
  ("call", "fields", "sentence"),
  [
    (optim.learning_rate, {"schedule": "cosin"}, "did you mean 'cosine'"),
    (optim.learning_rate, {"schedule": "rsqrt"}, "needs optim.warmup_steps"),
  ],
)
def test_refusals(call, fields, sentence):
  with pytest.raises(UserError, match=sentence):
    call(make_config(**fields).optim, 8)


def test_keys_depend_on_the_example_alone():
  ids = jnp.array([3, 7, 11], jnp.uint32)
  keys = family.example_keys(KEY, ids)
  for key, i in zip(keys, ids, strict=True):
    assert key == jax.random.fold_in(KEY, i)
  assert (family.example_keys(keys, ids) == keys).all()
  assert (family.sample_keys(KEY, 4) == family.sample_keys(KEY, 8)[:4]).all()
