"""Every config keeps the contract of core/family.py at its :tiny size."""

import functools
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from core import parallel
from core.checkpoint import Checkpoints
from core.family import Family, Spec, State
from core.family import make as make_family
from core.train import train
from core.workdir import open_workdir
from pipelines import build, features, published
from tests.runs import (
  CONFIGS,
  largest_difference,
  load_config,
  random_batch,
  variants,
)

SEED = jax.random.key(0)
pytestmark = pytest.mark.usefixtures("quick_to_compile")


@functools.cache
def prepared(file: str) -> tuple[ConfigDict, Family, parallel.Parallel]:
  """A config's parts; the compiled programs are shared by the tests below."""
  config = load_config(file)
  config.parallel.backend = "jit"
  config.optim.schedule = "constant"  # its values must not depend on train.steps
  size, channels = config.data.size, config.data.channels
  family = make_family(config, Spec((size, size, channels)))
  family = family._replace(init=jax.jit(family.init))
  return config, family, parallel.make(config.parallel)


def first(file: str) -> State:
  config, family, run = prepared(file)
  return family.init(SEED, run.put(random_batch(config)))


@functools.cache
def compiled(file: str) -> parallel.Step:
  config, family, run = prepared(file)
  return run.compile_step(family.step, first(file), random_batch(config))


@pytest.fixture(params=CONFIGS)
def file(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
  """Each config; its start and its training step are compiled once for all tests."""
  step = compiled(request.param)
  monkeypatch.setattr(parallel.Parallel, "compile_step", lambda self, *args: step)
  monkeypatch.setattr(parallel.Parallel, "init", lambda self, init, *args: init(*args))
  return request.param


def stream(config: ConfigDict, start: int):
  while True:
    yield random_batch(config, start)
    start += 1


def one_of_each_state() -> list:
  """The configs; slow are all but the first of a package and of what has more state."""
  known, found = set(), []
  for file in CONFIGS:
    config = load_config(file)
    kind = (
      config.family.split(".")[0],
      config.family == "vae.mixture",  # no gradient
      config.get("vae", {}).get("bottleneck") == "vq",  # averages of codes
      config.family == "gan.ddgan",
      # Of hybrids, and what adapts.
      config.get("gan", {}).get("family"),
      config.get("gan", {}).get("augment"),
    )
    found.append(pytest.param(file, marks=[pytest.mark.slow] if kind in known else []))
    known.add(kind)
  return found


@pytest.mark.parametrize(
  "named", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["plain", "named"]
)
def test_every_variant_fits_together(named: bool, subtests: pytest.Subtests) -> None:
  """At full size too: the networks are built without their numbers.

  The tests below train what is `:tiny`. All but the plain variants are slow: mostly
  the same networks with other sizes, but also other losses, codecs and texts.
  """
  for name, variant in [(file, v) for file in CONFIGS for v in variants(file)]:
    if variant == "tiny" or named != bool(variant):
      continue
    with subtests.test(f"{name}:{variant}"):
      config = load_config(name, variant)
      if "diffusion" in config and config.diffusion.weights:
        continue  # it reads files that only their users have
      spec = Spec((config.data.size,) * 2 + (config.data.channels,))
      spec = features.spec(config) or spec  # of a frozen net
      if config.data.codec:  # Stable Diffusion's, or a small one
        tokens = config.data.latents == "tokens"
        spec = Spec(
          {512: (64, 64, 4), 256: (32, 32, 4), 32: (8, 8, 8)}[config.data.size],
          np.int32 if tokens else np.float32,
          vocab_size=256 if tokens else 0,
          pixels=False,
        )
        config.data.codec, config.data.latents = "", "latents"
      family = make_family(config, spec, **published.frozen(config, spec))
      batch = build.example_batch(config)
      batch["x"] = np.zeros((1, *spec.shape), spec.dtype)
      shapes = jax.eval_shape(family.init, SEED, batch)
      assert jax.tree.leaves(shapes.params)


def test_steps_are_finite_and_change_parameters(file: str) -> None:
  config, *_ = prepared(file)
  state = first(file)
  before = jax.device_get(state)
  for step in range(2):
    state, metrics = compiled(file)(state, random_batch(config, step), SEED)
    assert all(np.isfinite(v) for v in jax.device_get(metrics).values())
  after = jax.device_get(state)
  assert after.step == 2
  assert largest_difference(before.params, after.params) > 0
  assert largest_difference(before.ema, after.ema) > 0


def test_samples_and_evals(file: str) -> None:
  config, family, run = prepared(file)
  batch = random_batch(config)
  state = first(file)
  n, shape = config.data.batch_size, batch["x"].shape[1:]
  cond = batch["cond"]
  if config.data.low_size:
    cond = cond.replace(image=batch["x"])
  assert (family.sample is None) == (family.towers is not None)
  if family.towers:  # a dual encoder draws nothing
    for fn, given in ((family.towers.images, batch["x"]), (family.towers.texts, cond)):
      vectors = run.run(fn)(state, given)
      np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), np.ones(n), rtol=1e-5)
  else:
    samples = run.run(lambda *a: family.sample(*a, n))(state, SEED, cond)
    assert samples.images.shape == (n, *shape)
    assert samples.frames.shape[1:] == (n, *shape)
    assert (np.asarray(samples.nfe) > 0).all()
    assert np.isfinite(samples.images).all()
    assert np.abs(samples.images).max() <= 1
  # What is not taken unless named is checked where a config names it.
  wanted = {name for name in family.evals if name not in family.on_request}
  wanted |= set(config.eval.metrics) & set(family.evals)
  fns = {name: family.evals[name] for name in wanted}
  found = run.run(lambda *args: {name: fn(*args) for name, fn in fns.items()})(
    state, batch, SEED
  )
  for values in found.values():
    assert values.shape == (n,)
    assert np.isfinite(values).all()


@pytest.mark.parametrize("file", one_of_each_state(), indirect=True)
def test_resume_is_exact(file: str, tmp_path: Path) -> None:
  """A run whose last step is lost does it again, bit for bit."""
  config, family, run = prepared(file)
  config = ConfigDict(config.to_dict())
  config.train.steps, config.train.checkpoint_every = 2, 1
  batches = functools.partial(stream, config)
  workdir = open_workdir(str(tmp_path), config)
  whole = jax.device_get(train(config, family, run, batches, workdir))
  shutil.rmtree(tmp_path / "checkpoints" / "2")
  assert Checkpoints(workdir).latest() == 1
  again = train(config, family, run, batches, open_workdir(str(tmp_path), config))
  assert largest_difference(whole, jax.device_get(again)) == 0
  assert Checkpoints(workdir).latest() == 2
