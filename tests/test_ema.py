"""Averages of the weights: their formulas, snapshots, and any length made of them."""

import os
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from ml_collections import ConfigDict

from core import arrays, ema, parallel, snapshots
from core.checkpoint import Checkpoints, abstract_like
from core.errors import UserError
from core.family import State
from core.train import train
from core.workdir import open_workdir
from pipelines import build, drawn
from tests.runs import (
  command,
  largest_difference,
  load_config,
  on_folder,
  picture_folder,
  run,
)
from tests.test_family import (
  KEY,
  assert_close,
  assert_same,
  make_batch,
  make_config,
  make_family,
)

STDS = (0.05, 0.10)
POWER = {"ema": "power", "ema_std": STDS}


def test_a_half_life_forgets_half():
  config = make_config(ema="halflife", ema_halflife=640.0).optim
  decay = ema.decay(config, 32)
  # Ramp-up ends when 5% of the images seen are a half-life: 12,800, 400 steps.
  per_step = [decay(jnp.asarray(step)) for step in range(400, 420)]
  np.testing.assert_allclose(np.prod(per_step), 0.5, rtol=1e-5)
  # Before, the half-life is 5% of what was seen.
  for step in (1, 10, 200):
    want = 0.5 ** (32 / (0.05 * 32 * step))
    np.testing.assert_allclose(decay(jnp.asarray(step)), want, rtol=1e-5)
  assert decay(jnp.asarray(0)) < 1e-5


def test_a_warm_up_is_capped():
  decay = ema.decay(make_config(ema="warmup", ema_decay=0.99).optim, 32)
  got = [float(decay(jnp.asarray(step))) for step in (0, 90, 10_000)]
  np.testing.assert_allclose(got, [0.1, 0.91, 0.99], rtol=1e-6)


@pytest.mark.parametrize(
  ("fields", "sentence"),
  [
    ({"ema": "half-life"}, "did you mean 'halflife'"),
    ({"ema": "halflife", "ema_halflife": 0.0}, "needs optim.ema_halfl"),
    ({"ema": "power", "ema_std": (0.05, 0.3)}, r"in \(0, 0.289\), not 0.3"),
  ],
)
def test_refusals(fields, sentence):
  with pytest.raises(UserError, match=sentence):
    ema.make(make_config(**fields).optim, 8)


def test_gamma_and_std_are_inverses():
  # The two lengths of the paper's figures, and where an average takes all alike.
  np.testing.assert_allclose(ema.std_to_gamma(0.10), 6.94, atol=0.005)
  np.testing.assert_allclose(ema.std_to_gamma(0.05), 16.97, atol=0.005)
  np.testing.assert_allclose(ema.gamma_to_std(0), 1 / np.sqrt(12))
  for std in (0.001, 0.01, 0.05, 0.1, 0.2, 0.288):
    np.testing.assert_allclose(ema.gamma_to_std(ema.std_to_gamma(std)), std, rtol=1e-9)


def profile(tau, t, gamma):
  return np.where(tau <= t, (gamma + 1) * (tau / t) ** gamma / t, 0)


def test_std_and_inner_products_are_those_of_the_profile():
  tau = (np.arange(400_000) + 0.5) * 1e-4  # midpoints up to 40
  t = np.array([12.0, 30.0, 40.0, 30.0])
  gamma = np.array([ema.std_to_gamma(std) for std in (0.05, 0.1, 0.25, 0.15)])
  each = np.stack([profile(tau, *pair) for pair in zip(t, gamma, strict=True)])
  np.testing.assert_allclose(each.sum(1) * 1e-4, 1, rtol=1e-6)
  mean = (each * tau).sum(1) * 1e-4
  std = np.sqrt((each * tau**2).sum(1) * 1e-4 - mean**2)
  np.testing.assert_allclose(std / t, (0.05, 0.1, 0.25, 0.15), rtol=1e-6)
  want = each @ each.T * 1e-4
  np.testing.assert_allclose(
    ema.inner_products(t, gamma, t, gamma), want, rtol=1e-5, atol=1e-9
  )


def shares(t, gamma):
  """Of the weights after each update in the average after update t, in float64."""
  return np.diff((np.arange(t + 1) / t) ** (gamma + 1))


def test_tracked_averages_are_integrals_of_their_profiles():
  """Of weights that stay from i - 1 to i: there is no error but rounding."""
  averages, steps = ema.make(make_config(**POWER).optim, 8), 3000
  walk = np.cumsum(np.random.default_rng(0).normal(size=(steps, 4)), 0, np.float32)

  def step(tracked, done):
    tracked = averages.update(tracked, {"net": jnp.asarray(walk)[done]}, done)
    return tracked, tracked

  start = averages.init({"net": jnp.full(4, 3.0)})  # forgotten at the first update
  assert list(start) == ["net", "net@0.1"]
  _, tracked = jax.lax.scan(step, start, jnp.arange(steps))
  np.testing.assert_allclose(tracked["net"][0], walk[0], atol=1e-6)
  for name, std in zip(start, STDS, strict=True):
    for t in (2, 3, 10, 100, 1000, steps):
      want = shares(t, ema.std_to_gamma(std)) @ walk[:t].astype(np.float64)
      np.testing.assert_allclose(tracked[name][t - 1], want, rtol=2e-5, atol=2e-5)


def test_the_rate_is_exact_after_millions_of_updates():
  done = np.array([0, 1, 10**3, 10**6, 10**8])
  for gamma in (0.0, 6.94, 16.97):
    want = -np.expm1((gamma + 1) * np.log1p(-1 / (done[1:] + 1.0)))
    got = ema.power_rate(gamma, jnp.asarray(done))
    assert got[0] == 1
    np.testing.assert_allclose(got[1:], want, rtol=1e-5)


def test_what_was_tracked_is_taken_as_it_is():
  t = np.repeat(np.arange(10.0, 101, 10), 2)
  gamma = np.tile([ema.std_to_gamma(std) for std in STDS], 10)
  for i in (0, 7, 19):
    weights, off = ema.posthoc_weights(t, gamma, t[i], gamma[i])
    np.testing.assert_allclose(weights, np.arange(20) == i, atol=1e-9)
    assert off < 1e-6
  # The same average twice, as between skipped steps, is no fault.
  twice = np.concatenate([t, t[-2:]]), np.concatenate([gamma, gamma[-2:]])
  weights, off = ema.posthoc_weights(*twice, 100.0, gamma[-1])
  np.testing.assert_allclose(weights[[-1, -3]].sum(), 1, atol=1e-9)
  assert off < 1e-6


@pytest.fixture(scope="module")
def trajectory():
  """States of 640 steps of Adam with noise; 0.02 and 0.2 are tracked to compare."""
  config = make_config(ema="power", ema_std=(*STDS, 0.02, 0.2), learning_rate=0.03)
  made = make_family(config)
  batches = [make_batch(seed=i) for i in range(640)]
  stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *batches)

  def step(state, batch):
    key = jax.random.fold_in(KEY, state.step)
    state, _ = made.step(state, batch, key)
    return state, state.ema

  start = made.init(KEY, batches[0])
  return jax.device_get(jax.jit(lambda: jax.lax.scan(step, start, stacked)[1])())


def flat(tree, at):
  return np.concatenate([leaf[at].ravel() for leaf in jax.tree.leaves(tree)])


@pytest.mark.parametrize(("std", "bound"), [(0.2, 1e-3), (0.02, 2e-3)])
def test_reconstruction_nears_what_was_tracked(trajectory, std, bound):
  """On a real optimisation: the error falls as snapshots grow more numerous."""
  want = flat(trajectory[f"generator@{std}"], -1).astype(np.float64)
  # Beside how far the average is from the tracked ones.
  scale = min(
    np.linalg.norm(flat(trajectory[name], -1) - want)
    for name in ("generator", "generator@0.1")
  )
  errors, misfits = [], []
  for count in (2, 5, 10, 20, 40, 80):
    times = np.arange(1, count + 1) * (640 // count)
    gammas = [ema.std_to_gamma(length) for length in STDS]
    weights, off = ema.posthoc_weights(
      np.repeat(times.astype(float), 2), np.tile(gammas, count), 640,
      ema.std_to_gamma(std),
    )  # fmt: skip
    rows = [
      flat(trajectory[name], t - 1)
      for t in times
      for name in ("generator", "generator@0.1")
    ]
    errors.append(np.linalg.norm(weights @ np.stack(rows) - want) / scale)
    misfits.append(off)
  assert np.all(np.diff(misfits) < 0)
  assert errors[-1] < bound
  assert errors[-1] < errors[2] < errors[0]


def test_a_skipped_step_does_not_count():
  """Two steps that are not finite leave the averages as though they had not been."""
  made = make_family(make_config(**POWER, learning_rate=0.1))
  step, batches = jax.jit(made.step), [make_batch(seed=i) for i in range(4)]
  bad = dict(batches[0], x=batches[0]["x"].at[0, 0].set(jnp.nan))
  states = []
  for given in (batches, [bad, *batches[:2], bad, *batches[2:]]):
    state = made.init(KEY, batches[0])
    for batch in given:
      state, _ = step(state, batch, KEY)
    states.append(state)
  assert [int(state.step) for state in states] == [4, 6]
  assert_same(states[0].ema, states[1].ema)


def one_device():
  return parallel.make(ConfigDict({"backend": "jit", "fsdp": 1, "tensor": 1}))


def loop_config():
  config = make_config(**POWER, learning_rate=0.05)
  config.train.steps, config.train.checkpoint_every = 8, 3
  config.train.snapshot_every = 2
  return config


def train_on(config, workdir, stop_at=None):
  """Trains the regression; asks to stop while step `stop_at` is under way."""

  def batches(start):
    for step in range(start, config.train.steps + 1):
      if step == stop_at:
        os.kill(os.getpid(), signal.SIGTERM)
      yield make_batch(seed=step)

  opened = open_workdir(str(workdir), config)
  hooks = snapshots.hooks(config, opened)
  return train(config, make_family(config), one_device(), batches, opened, hooks)


def kept(workdir):
  files = (workdir / "ema").iterdir()
  return {int(file.stem): arrays.read(file) for file in files}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """The workdir of a run of 8 steps that nobody stopped."""
  folder = tmp_path_factory.mktemp("whole")
  train_on(loop_config(), folder)
  return folder


def test_snapshots_hold_every_average(whole):
  found = kept(whole)
  assert sorted(found) == [2, 4, 6, 8]
  leaves = {
    f"{name}/{leaf}" for name in ("generator", "generator@0.1") for leaf in "bw"
  }
  assert set(found[4]) == leaves | {"stds", "updates"}
  assert found[4]["updates"] == 4
  assert found[4]["stds"].tolist() == list(STDS)
  assert found[4]["generator/w"].dtype == np.float32
  assert (found[4]["generator/w"] != found[4]["generator@0.1/w"]).any()


def test_a_run_that_goes_on_writes_the_same_snapshots(whole, tmp_path):
  # Stopped at step 4, where a snapshot is due; then one lies past the checkpoint.
  train_on(loop_config(), tmp_path, stop_at=4)
  assert Checkpoints(tmp_path).latest() == 4
  assert sorted(kept(tmp_path)) == [2, 4]
  (tmp_path / "ema" / "6.npz").write_bytes(b"left by a run that was killed")
  train_on(loop_config(), tmp_path)
  assert_same(kept(tmp_path), kept(whole))


def test_no_checkpoint_without_its_snapshot(tmp_path):
  (tmp_path / "ema").touch()  # so that no folder can be made
  with pytest.raises(UserError, match="cannot write to .*2.npz"):
    train_on(loop_config(), tmp_path)
  assert Checkpoints(tmp_path).latest() is None


def restored(config, workdir, run):
  family = make_family(config)
  shapes = jax.eval_shape(family.init, KEY, make_batch())
  checkpoints = Checkpoints(workdir, read_only=True)
  return checkpoints.restore(abstract_like(shapes, run.shardings(shapes)))


def test_any_length_from_snapshots_and_the_checkpoint(whole, capsys):
  config = loop_config()
  state = restored(config, whole, one_device())
  # What is tracked is its own reconstruction.
  for name, std in (("generator", 0.05), ("generator@0.1", 0.1)):
    made = snapshots.reconstruct(config, whole, state, std)
    assert list(made.ema) == ["generator"]
    assert_close(made.ema["generator"], state.ema[name], rtol=1e-6)
    assert drawn.ema(config.optim, made) == f"power {std} post hoc"
  assert drawn.ema(config.optim, state) == "power 0.05"
  made = snapshots.reconstruct(config, whole, state, 0.15)
  assert "length 0.15 from 4 snapshots" in capsys.readouterr().err
  gammas = [ema.std_to_gamma(std) for std in STDS]
  weights, _ = ema.posthoc_weights(
    np.repeat([2.0, 4.0, 6.0, 8.0], 2), np.tile(gammas, 4), 8, ema.std_to_gamma(0.15)
  )
  rows = [kept(whole)[t][f"{name}/w"] for t in (2, 4, 6, 8) for name in state.ema]
  want = np.tensordot(weights, np.stack(rows), 1)
  np.testing.assert_allclose(made.ema["generator"]["w"], want, rtol=1e-6)


def wide(updates, run):
  """A state whose averages have a leaf large enough to be cut over devices."""
  draw = np.random.default_rng(updates)
  averages = {
    name: {"w": draw.normal(size=(64, 32)).astype(np.float32)}
    for name in ("generator", "generator@0.1")
  }
  skipped = np.zeros(2, np.int32)
  state = State(np.int32(updates), {}, {}, averages, {"skipped": skipped})
  return jax.device_put(state, run.shardings(state))


def test_snapshots_do_not_know_the_devices(tmp_path):
  """Written by eight devices that share the weights, read by one, or by four."""
  devices, config = np.array(jax.devices()), loop_config()
  runs = {
    n: parallel.Parallel(
      "mesh", Mesh(devices[:n].reshape(1, n, 1), ("data", "fsdp", "tensor"))
    )
    for n in (1, 4, 8)
  }
  for n in (8, 1):
    (hook,) = snapshots.hooks(config, tmp_path / str(n))
    for step in (2, 4):
      hook.run(wide(step, runs[n]))
  assert_same(kept(tmp_path / "8"), kept(tmp_path / "1"))
  made = {}
  for n, some in runs.items():
    state = wide(5, some)
    leaf = state.ema["generator"]["w"]
    assert leaf.is_fully_replicated == (n == 1)
    made[n] = snapshots.reconstruct(config, tmp_path / "8", state, 0.15).ema
    assert made[n]["generator"]["w"].sharding == leaf.sharding
  assert_same(made[4], made[1])
  assert_same(made[8], made[1])


def test_what_cannot_be_reconstructed(whole, tmp_path):
  config, state = loop_config(), restored(loop_config(), whole, one_device())
  with pytest.raises(UserError, match="before step 8, and .*ema has none; train a new"):
    snapshots.reconstruct(config, tmp_path, state, 0.15)
  (tmp_path / "ema").mkdir()
  shutil.copy(whole / "ema" / "8.npz", tmp_path / "ema")  # the checkpoint's own
  with pytest.raises(UserError, match="has none"):
    snapshots.reconstruct(config, tmp_path, state, 0.15)
  (tmp_path / "ema" / "4.npz").write_bytes(b"torn")
  with pytest.raises(UserError, match=r"4\.npz is damaged .*; delete it"):
    snapshots.reconstruct(config, tmp_path, state, 0.15)
  moments = state.replace(extra=state.extra | {"tracked": {"batch_stats": {"mean": 0}}})
  with pytest.raises(UserError, match="running means of .* belong to those"):
    snapshots.reconstruct(config, whole, moments, 0.15)
  config.optim.ema = "warmup"
  with pytest.raises(UserError, match="a run with optim.ema='power', and .*'warmup'"):
    snapshots.reconstruct(config, whole, state, 0.15)


@pytest.mark.slow
def test_a_whole_run_draws_with_any_length(tmp_path):
  folder = picture_folder(tmp_path / "pictures")
  flags = (
    *on_folder(folder),
    "--config.optim.ema=power",
    "--config.train.snapshot_every=1",
    "--config.train.sample_every=0",
    "--config.train.eval_every=0",
    "--config.sample.prompts=('colour 1',)",
  )
  workdir = tmp_path / "run"
  done = run(command(workdir, *flags))
  assert done.returncode == 0, done.stderr
  assert sorted(kept(workdir)) == [1, 2, 3, 4]
  done = run(command(workdir, *flags, "--mode=sample", "--config.sample.ema_std=0.2"))
  assert done.returncode == 0, done.stderr
  assert "EMA of length 0.2 from 4 snapshots" in done.stderr
  # The same state, made here.
  config = load_config("configs/quickstart.py")
  config.parallel.backend, config.optim.ema = "jit", "power"
  tracked = build.trained(config, workdir)[2]
  config.sample.ema_std = 0.2
  made = build.trained(config, workdir)[2]
  assert list(tracked.ema) == ["generator", "generator@0.1"]
  assert list(made.ema) == ["generator"]
  assert largest_difference(made.ema["generator"], tracked.ema["generator"]) > 1e-6
