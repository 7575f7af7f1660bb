"""Adversarial distillation, on denoisers small enough to do by hand, and whole."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core import family as families
from core import noise
from core.errors import UserError
from core.family import Denoiser, Spec, keys_at
from core.workdir import open_workdir
from gan import distil
from pipelines import build
from tests import test_gan_step as players
from tests.runs import load_config, on, picture_folder, random_batch, started
from text.cond import Cond

KEY = jax.random.key(3)
SPEC, ROWS, STD = Spec((1, 1, 2)), 8, 0.3
TEACHER = {"mean": np.array([0.4, -0.2], np.float32), "spread": np.float32(0)}
STUDENT = {"mean": np.array([0.1, 0.3], np.float32), "spread": np.float32(0.5)}
SCHEDULE = noise.rectified_flow()


def estimate(params, x_t, logsnr, cond, scale=1):
  """The exact one for N(scale mean, STD^2), if spread is 0."""
  level = noise.per_example(logsnr, x_t)
  alpha, sigma = jax.nn.sigmoid(level / 2), jax.nn.sigmoid(-level / 2)
  gain = alpha * STD**2 / ((alpha * STD) ** 2 + sigma**2)
  mean = scale * params["mean"]
  return mean + (gain + params["spread"]) * (x_t - alpha * mean)


def numbers(logsnr):
  """(alpha, sigma, gain) at a logsnr, in numpy."""
  alpha = 1 / (1 + np.exp(-np.asarray(logsnr, np.float64) / 2))
  alpha = alpha[:, None, None, None]
  sigma = 1 - alpha
  return alpha, sigma, alpha * STD**2 / ((alpha * STD) ** 2 + sigma**2)


def by_hand(params, x, logsnr, scale=1):
  alpha, _, gain = numbers(logsnr)
  mean = scale * params["mean"]
  return mean + (gain + params["spread"]) * (x - alpha * mean)


def make(monkeypatch, **fields):
  """The family around the formula, with a critic on a line."""
  config = load_config("configs/gan/distil.py")
  config.data.batch_size, config.text.encoder, config.text.classes = ROWS, "label", 5
  for name, value in fields.items():
    group, field = name.split("__")
    config[group][field] = value
  clip = lambda x: jnp.clip(x, -1, 1)  # noqa: E731
  formula = Denoiser(lambda rng, batch: TEACHER, SCHEDULE, estimate, clip)
  monkeypatch.setattr(distil, "denoiser_of", lambda config, spec: formula)
  monkeypatch.setattr(distil.critic, "make", lambda config: players.straight())
  return distil.make(config, SPEC)


def played(made, params=STUDENT, teacher=TEACHER):
  batch = players.make_batch()
  tracked = {"teacher": teacher, "updates": 0}
  return jax.jit(lambda *given: made.objective.play(given, batch, KEY, None))(
    params, tracked
  )


def draws(steps):
  """(level, eps, logsnr of the teacher's noise, its eps) of each row, as numpy."""
  keys = jax.vmap(jax.random.fold_in, (None, 0))(KEY, jnp.arange(ROWS, dtype="uint32"))
  a, b, c, d = jax.vmap(lambda key: jax.random.split(key, 4), out_axes=1)(keys)
  level = [int(jax.random.randint(key, (), 0, steps)) for key in a]
  u = np.array([float(jax.random.uniform(key)) for key in c])
  first, second = (
    np.stack([jax.random.normal(key, (1, 1, 2)) for key in keys]) for keys in (b, d)
  )
  return np.array(level), first, 2 * (np.log1p(-u) - np.log(u)), second


def losses_by_hand(batch, steps, guidance, weight):
  """(estimates, losses, gradient by the student's mean)."""
  level, first, told_at, second = draws(steps)
  logsnr = np.asarray(SCHEDULE.logsnr(jnp.arange(1, steps + 1) / steps))[level]
  alpha, sigma, gain = numbers(logsnr)
  x_s = alpha * np.asarray(batch["x"]) + sigma * first
  # At t = 1 there is no picture; sigma is 1 there but for 5e-5.
  x_s[level == steps - 1] = first[level == steps - 1]
  x_hat = by_hand(STUDENT, x_s, logsnr)
  by_mean = 1 - (gain + STUDENT["spread"]) * alpha
  alpha, sigma, _ = numbers(told_at)
  told = by_hand(TEACHER, alpha * x_hat + sigma * second, told_at, guidance)
  c = np.sqrt(1 / (1 + np.exp(-told_at)))
  losses = weight * c * np.mean((x_hat - told) ** 2, (1, 2, 3))
  gradient = weight * c[:, None, None, None] * (x_hat - told) * by_mean
  return x_hat, losses, gradient.sum((0, 1, 2))


@pytest.mark.parametrize(("steps", "guidance"), [(4, 1.0), (1, 2.0)])
def test_what_the_teacher_says_by_hand(monkeypatch, steps, guidance):
  fields = {"distil__steps": steps, "sample__steps": 1, "distil__guidance": guidance}
  made = make(monkeypatch, **fields)
  play, batch = played(made), players.make_batch()
  x_hat, losses, gradient = losses_by_hand(batch, steps, guidance, 2.5)
  np.testing.assert_allclose(play.fakes, x_hat, atol=2e-4)
  np.testing.assert_allclose(play.losses, losses, rtol=2e-3)
  np.testing.assert_allclose(play.losses, 2.5 * play.metrics["distillation"], rtol=1e-6)
  np.testing.assert_array_equal(play.reals, batch["x"])
  # Of the student's mean the gradient is that with the target fixed, and the teacher
  # has none.
  total = lambda *weights: played(made, *weights).losses.sum()  # noqa: E731
  own, theirs = jax.grad(total, (0, 1))(STUDENT, TEACHER)
  np.testing.assert_allclose(own["mean"], gradient, rtol=2e-3)
  jax.tree.map(lambda a: np.testing.assert_array_equal(a, 0), theirs)


def test_without_a_critic_noise_becomes_the_mode(monkeypatch):
  """The exact estimate where there is no signal, and no spread: hence the critic."""
  fields = {"distil__steps": 1, "sample__steps": 1, "gan__weight": 0.0}
  made = make(monkeypatch, optim__learning_rate=0.02, optim__b1=0.9, **fields)
  batch, step = players.make_batch(), jax.jit(made.step)
  state = made.init(KEY, batch)
  state = state.replace(params=state.params | {"generator": STUDENT})
  for i in range(400):
    state, _ = step(state, batch, jax.random.fold_in(KEY, i))
  found = state.params["generator"]
  np.testing.assert_allclose(found["mean"], TEACHER["mean"], atol=0.05)
  assert abs(found["spread"]) < 0.05
  players.assert_same(state.extra["tracked"]["teacher"], TEACHER)


@pytest.mark.parametrize(
  ("steps", "levels"), [(1, [4]), (2, [4, 2]), (3, [4, 3, 2]), (4, [4, 3, 2, 1])]
)
def test_draws_by_hand(monkeypatch, steps, levels):
  made = make(monkeypatch, sample__steps=steps, sample__frames=8)
  state = made.init(KEY, players.make_batch())
  state = state.replace(ema={"generator": STUDENT})
  cond = Cond(label=jnp.zeros(ROWS, jnp.int32))
  samples = jax.jit(lambda state: made.sample(state, KEY, cond, ROWS))(state)
  keys = jax.vmap(jax.random.fold_in, (None, 0))(KEY, jnp.arange(ROWS))
  fresh = lambda i: np.stack(  # noqa: E731
    [jax.random.normal(jax.random.fold_in(key, i), (1, 1, 2)) for key in keys]
  )
  x, film = fresh(0), []
  for i, level in enumerate(levels):
    logsnr = np.full(ROWS, SCHEDULE.logsnr(jnp.float32(level / 4)))
    film.append(np.clip(by_hand(STUDENT, x, logsnr), -1, 1))
    if i + 1 < steps:
      t = levels[i + 1] / 4
      x = (1 - t) * film[-1] + t * fresh(i + 1)
  np.testing.assert_allclose(samples.frames, film, atol=2e-4)
  np.testing.assert_array_equal(samples.images, samples.frames[-1])
  assert (np.asarray(samples.nfe) == steps).all()


def test_a_student_starts_as_its_teacher_and_outlives_it(tmp_path):
  folder, place = picture_folder(tmp_path / "pictures"), tmp_path / "teacher"
  teacher = on(folder, "configs/diffusion/rectified_flow.py")
  theirs = started(teacher, place).ema["generator"]
  config = on(folder, "configs/gan/distil.py")
  config.seed, config.distil.teacher = 1, str(place)
  for field, value, message in (
    ("model.dim", 32, "has model.dim=16, this one 32"),
    ("noise.schedule", "cosine", "has noise.schedule='rectified_flow'"),
    ("data.size", 16, "has data.size=8, this one 16"),
    ("diffusion.augment", 0.1, "has diffusion.augment=0.0, this one 0.1"),
  ):
    other = config.copy_and_resolve_references()
    other.update_from_flattened_dict({field: value})
    with pytest.raises(UserError, match=message):
      build.teacher(other, tmp_path / "student")
  state = started(config, tmp_path / "student")
  players.assert_same(state.params["generator"], theirs)
  players.assert_same(state.ema["generator"], theirs)
  shutil.rmtree(place)
  with pytest.raises(UserError, match="no run in distil.teacher="):
    build.teacher(config, tmp_path / "another")
  assert build.teacher(config, tmp_path / "student") == {}
  family, _, again = build.trained(config, tmp_path / "student")
  players.assert_same(again.extra["tracked"]["teacher"], theirs)
  # What it estimates is what the teacher does, on the same noise.
  batch = random_batch(config)
  spec = Spec((8, 8, 3))
  denoiser = families.make(teacher, spec).denoiser
  samples = jax.jit(lambda state: family.sample(state, KEY, batch["cond"], 8))(again)
  keys = families.sample_keys(KEY, 8)
  first = noise.normals(keys_at(keys, 0), spec.shape)
  logsnr = denoiser.schedule.logsnr(jnp.ones(8))
  start = noise.prior_std(logsnr[0], "rf") * first
  x_hat = jax.jit(denoiser.estimate)(theirs, start, logsnr, batch["cond"])
  want = np.clip(x_hat, -1, 1)
  np.testing.assert_allclose(samples.frames[0], want, atol=1e-5)


@pytest.mark.parametrize(
  ("field", "value", "message"),
  [
    ("sample.steps", 5, "at most distil.steps=4"),
    ("sample.guidance_scale", 2.0, "without guidance"),
    ("text.drop", 0.1, "text.drop"),
    ("gan.family", "vae.mixture", "lacks the field"),
    ("gan.family", "gan.gan", "cannot be distilled"),
    ("gan.family", "gan.distil", "is not a family"),
    ("gan.family", "vae.vae", "lacks the field 'vae'"),
    ("gan.generator", "r3gan", "no use for gan.generator"),
    ("diffusion.prediction", "eps", "next to nothing of the picture"),
  ],
)
def test_settings_refused(field, value, message):
  config = load_config("configs/gan/distil.py")
  config.update_from_flattened_dict({field: value})
  with pytest.raises(UserError, match=message):
    families.make(config, Spec((8, 8, 3)))


def test_a_student_has_something_to_learn_from():
  config = load_config("configs/gan/distil.py")
  config.gan.weight = config.distil.weight = 0.0
  with pytest.raises(UserError, match="nothing to learn from: set one above 0"):
    families.make(config, Spec((8, 8, 3)))


def test_a_learned_schedule_is_refused():
  config = load_config("configs/gan/distil.py")
  config.noise.schedule, config.diffusion.prediction = "learned", "v"
  config.diffusion.loss, config.noise.density = "vlb", "own"
  with pytest.raises(UserError, match="cannot be distilled"):
    families.make(config, Spec((8, 8, 3)))


def test_a_guided_teacher_must_know_no_condition(tmp_path):
  folder, place = picture_folder(tmp_path / "pictures"), tmp_path / "teacher"
  teacher = on(folder, "configs/diffusion/rectified_flow.py")
  config = on(folder, "configs/gan/distil.py")
  teacher.text.encoder = config.text.encoder = "bytes"
  teacher.text.drop = 0.0
  open_workdir(str(place), teacher)
  config.distil.teacher, config.distil.guidance = str(place), 2.0
  with pytest.raises(UserError, match="without its condition at times"):
    build.teacher(config, tmp_path / "student")
