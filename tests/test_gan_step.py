"""The step of two players, on critics and generators small enough to do by hand."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs.gan import dcgan
from core.family import Family, Objective, Play, Tracked
from gan import critic as critics
from gan import critic_step, networks
from gan.adversarial import adversarial
from gan.critic import Critic
from text.cond import Cond

KEY = jax.random.key(1)
ROWS = 8
RATE = 0.05


def make_config(**fields):
  config = dcgan.gan()
  config.data.batch_size, config.train.steps = ROWS, 20
  config.optim.update({"learning_rate": RATE, "b1": 0.5, "b2": 0.9})
  config.model.scan, config.text.encoder = False, "label"
  config.gan.update({"critic": "resnet", **fields})
  return config


def make_batch(seed=0):
  draw = np.random.default_rng(seed)
  return {
    "x": jnp.asarray(draw.normal(size=(ROWS, 1, 1, 2)), jnp.float32),
    "cond": Cond(label=jnp.asarray(draw.integers(0, 5, ROWS))),
    "_id": jnp.arange(ROWS, dtype=jnp.uint32),
    "_mask": jnp.ones(ROWS, bool),
  }


def noise(ids):
  """[b, 1, 1, 2], of the example alone, so that it is known here."""
  ids = ids.astype(jnp.float32)
  return jnp.stack([jnp.cos(ids), jnp.sin(2 * ids)], -1)[:, None, None]


def play(given, batch, rng, axis):
  """Fakes z + shift, and a loss of the generator's own: |shift - 3|^2 / 2."""
  params, tracked = given
  fakes = noise(batch["_id"]) + params["shift"]
  own = jnp.full(len(fakes), jnp.sum((params["shift"] - 3) ** 2) / 2)
  sums = jnp.sum(batch["x"])
  return Play(own, batch["x"], fakes, {"updates": own * 0 + tracked["updates"]}, sums)


OBJECTIVE = Objective(
  init=lambda rng, batch: {"shift": jnp.array([0.5, -0.5])},
  play=play,
  tracked=Tracked(
    lambda rng, params, batch: {"seen": jnp.zeros(())},
    lambda tracked, sums, rng: {"seen": sums},
  ),
)
START = {
  "slope": jnp.array([0.3, -0.7]),
  "level": jnp.array(0.1),
  "told": jnp.array(0.2),
}


def judge(weights, x, cond, play, keys, strength, axis=None):
  """D(x | y) = slope . x + level + told y."""
  return x[:, 0, 0] @ weights["slope"] + weights["level"] + weights["told"] * cond.label


def straight(**start):
  """A critic on a line."""
  extra = {"strength": jnp.full((), 0.5)}
  return Critic(
    lambda rng, play, cond: (START | start, extra), lambda *given: given, judge
  )


def make(config, critic=None, objective=OBJECTIVE):
  base = Family(None, None, None, {}, objective=objective)
  return adversarial(config, base, critic or straight())


def steps(made, count=1, batch=None, move=lambda state: state):
  """The states after each step, the first one first, and the metrics."""
  batch = batch or make_batch()
  states, logged, step = [move(made.init(KEY, batch))], [], jax.jit(made.step)
  for _ in range(count):
    state, metrics = step(states[-1], batch, KEY)
    states.append(state)
    logged.append(metrics)
  return states, logged


def gradients(state, player):
  """Of the first update, as Adam's first moment has it."""
  return jax.tree.map(lambda m: m / (1 - 0.5), state.opt[player][0].mu)


def flat(x):
  return np.asarray(x, np.float64)[:, 0, 0]


def assert_close(one, two, **tolerance):
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), one, two)


def assert_same(one, two):
  jax.tree.map(np.testing.assert_array_equal, one, two)


def hand(batch, shift=(0.5, -0.5)):
  """(real, fake, labels, D(real), D(fake)) at the start."""
  real, label = flat(batch["x"]), np.asarray(batch["cond"].label)
  fake = flat(noise(batch["_id"])) + np.array(shift)
  slope = np.array([0.3, -0.7])
  return real, fake, label, *(x @ slope + 0.1 + 0.2 * label for x in (real, fake))


def test_gradients_of_both_players_by_hand():
  """Least squares with a term for mismatched texts, R1, R2, and the generator's own."""
  fields = {"loss": "least_squares", "mismatch": 0.25, "r1": 0.5, "r2": 0.3}
  batch = make_batch()
  # A neighbour of the same class is not wrong: all that is wrong there is the fake.
  batch["cond"] = Cond(label=jnp.array([1, 4, 2, 2, 0, 3, 3, 1]))
  made = make(make_config(**fields, weight=0.7))
  (_, after), (metrics,) = steps(made, batch=batch)
  real, fake, label, on_real, on_fake = hand(batch)
  other = label.reshape(-1, 2)[:, ::-1].ravel()
  share = 0.25 * (other != label)
  wrong = on_real + 0.2 * (other - label)
  found = gradients(after, "critic")

  # d/dD of (D(x) - 1)^2 / 2 + (3/4 D(fake)^2 + 1/4 D(x | other)^2) / 2, and
  # (r1 + r2) / 2 |slope|^2.
  def by(r, f, w):
    return np.mean((on_real - 1) * r + (1 - share) * on_fake * f + share * wrong * w)

  slope = np.array([0.3, -0.7])
  wanted = [by(real[:, i], fake[:, i], real[:, i]) + 0.8 * slope[i] for i in (0, 1)]
  np.testing.assert_allclose(found["slope"], wanted, rtol=1e-5)
  np.testing.assert_allclose(found["level"], by(1, 1, 1), rtol=1e-5)
  np.testing.assert_allclose(found["told"], by(label, label, other), rtol=1e-5)
  loss = np.mean((on_real - 1) ** 2 + (1 - share) * on_fake**2 + share * wrong**2) / 2
  np.testing.assert_allclose(metrics["critic_loss"], loss, rtol=1e-5)
  np.testing.assert_allclose(metrics["penalty"], 0.4 * (slope**2).sum(), rtol=1e-5)
  np.testing.assert_allclose(metrics["critic_real"], on_real.mean(), rtol=1e-5)
  np.testing.assert_allclose(metrics["critic_fake"], on_fake.mean(), rtol=1e-5)
  np.testing.assert_allclose(metrics["critic_accuracy"], np.mean(on_real > on_fake))
  # The generator: by the critic that is updated already.
  new = jax.device_get(after.params["critic"])
  again = fake @ new["slope"] + new["level"] + new["told"] * label
  own, told = np.array([0.5, -0.5]) - 3, np.mean(again - 1) * new["slope"]
  np.testing.assert_allclose(
    gradients(after, "generator")["shift"], own + 0.7 * told, rtol=1e-5
  )
  generator = np.mean((again - 1) ** 2) / 2
  np.testing.assert_allclose(metrics["generator_loss"], generator, rtol=1e-5)
  total = (own**2).sum() / 2 + 0.7 * generator
  np.testing.assert_allclose(metrics["loss"], total, rtol=1e-5)
  ratio = apart(fake)[1] / apart(real)[1]  # of the one pair of a class
  np.testing.assert_allclose(metrics["diversity"], ratio, rtol=1e-5)
  np.testing.assert_allclose(after.extra["tracked"]["seen"], real.sum(), rtol=1e-4)


def apart(x):
  """The distance of each two neighbours."""
  return np.abs(x[::2] - x[1::2]).sum(-1)


@pytest.mark.parametrize("cond", [Cond(label=jnp.arange(ROWS)), Cond()])
def test_diversity_where_no_neighbours_are_of_one_class_is_of_all(cond):
  batch = make_batch() | {"cond": cond}

  def anyhow(weights, x, *rest):
    return x[:, 0, 0] @ weights["slope"]

  critic = straight()._replace(judge=anyhow)
  _, (metrics,) = steps(make(make_config(), critic), batch=batch)
  real, fake = flat(batch["x"]), flat(noise(batch["_id"])) + [0.5, -0.5]
  ratio = apart(fake).sum() / apart(real).sum()
  np.testing.assert_allclose(metrics["diversity"], ratio, rtol=1e-5)


def test_weight_adapts_as_in_equation_7():
  config = make_config(loss="wasserstein", adaptive=True, weight=0.8)
  objective = OBJECTIVE._replace(last=("shift",))
  (_, after), (metrics,) = steps(make(config, objective=objective))
  own = np.array([0.5, -0.5]) - 3
  told = -np.asarray(after.params["critic"]["slope"])
  weight = 0.8 * np.linalg.norm(own) / (np.linalg.norm(told) + 1e-4)
  np.testing.assert_allclose(metrics["generator_weight"], weight, rtol=1e-5)
  found = gradients(after, "generator")["shift"]
  np.testing.assert_allclose(found, own + weight * told, rtol=1e-5)


def test_weight_adapts_by_the_last_layer_alone_and_has_a_bound():
  def two(given, batch, rng, axis):
    (params, _), z = given, noise(batch["_id"])
    fakes = z * params["first"]["scale"] + params["last"]["shift"]
    own = jnp.full(len(z), jnp.sum((params["last"]["shift"] - 3) ** 2) / 2)
    own += jnp.sum(params["first"]["scale"] ** 2)
    return Play(own, batch["x"], fakes)

  params = {"first": {"scale": jnp.ones(())}, "last": {"shift": jnp.zeros(2)}}
  objective = Objective(lambda rng, batch: params, two, last=("last", "shift"))
  config = make_config(loss="wasserstein", adaptive=True)
  (_, after), (metrics,) = steps(make(config, objective=objective))
  told = np.linalg.norm(after.params["critic"]["slope"])
  weight = np.sqrt(18) / (told + 1e-4)
  np.testing.assert_allclose(metrics["generator_weight"], weight, rtol=1e-5)
  flat_critic = straight(slope=jnp.zeros(2))
  config.optim.learning_rate = 1e-12
  far = objective._replace(
    init=lambda rng, batch: params | {"last": {"shift": jnp.full(2, -100.0)}}
  )
  _, (metrics,) = steps(make(config, flat_critic, far))
  assert metrics["generator_weight"] == 1e4


def test_critics_term_counts_from_its_start_on():
  config = make_config(loss="wasserstein", start=2, weight=0.5, augment="ada")
  made = make(config)
  states, logged = steps(made, 3)
  for i, metrics in enumerate(logged):
    shift = np.asarray(states[i].params["generator"]["shift"])
    own = ((shift - 3) ** 2).sum() / 2
    told = 0.5 * float(metrics["generator_loss"]) if i >= 2 else 0
    np.testing.assert_allclose(metrics["loss"], own + told, rtol=1e-5)
    np.testing.assert_allclose(metrics["updates"], i)
    before, after = (s.params["critic"]["slope"] for s in states[i : i + 2])
    assert (np.abs(before - after).max() > 0) == (i >= 2)
    grown = states[i + 1].extra["critic"]["strength"] != 0.5
    assert grown == (i >= 2)
  after_first = gradients(states[1], "generator")["shift"]
  np.testing.assert_allclose(after_first, [-2.5, -3.5], rtol=1e-6)


def test_a_critic_that_has_waited_begins_as_one_that_has_not():
  """With Adam's first step and the whole learning rate, of which nothing is left then.

  Had Adam counted the wait, the step would be (1 - b1) / sqrt(1 - b2) = 16 times that.
  """
  config = make_config(loss="wasserstein", start=3)
  config.optim.update({"b2": 0.999, "schedule": "linear"})
  config.train.steps = 5
  states, _ = steps(make(config), 5)
  for before, waited in zip(states[:3], states[1:4], strict=True):
    for part in ("params", "opt"):
      assert_same(getattr(before, part)["critic"], getattr(waited, part)["critic"])
  slopes = [np.asarray(state.params["critic"]["slope"]) for state in states[3:]]
  first, second = np.abs(np.diff(slopes, axis=0))
  np.testing.assert_allclose(first, RATE, rtol=1e-4)
  assert (second < 0.55 * RATE).all()


@pytest.mark.parametrize("scan", [True, False])
def test_critic_is_updated_more_often_each_time_by_its_own_part(scan):
  config = make_config(loss="wasserstein", critic_steps=2)
  config.model.scan = scan
  (_, one, two), _ = steps(make(config), 2)
  counts = [[s.opt[p][0].count for p in ("critic", "generator")] for s in (one, two)]
  assert np.asarray(counts).tolist() == [[2, 1], [4, 2]]
  batch = make_batch()
  real, fake, label, *_ = hand(batch)
  tx, params = optax.adam(RATE, 0.5, 0.9), jax.device_get(START)
  opt = tx.init(params)
  for part in (slice(0, None, 2), slice(1, None, 2)):
    grads = {
      "slope": (fake[part] - real[part]).mean(0).astype(np.float32),
      "level": np.float32(0),
      "told": np.float32(0),
    }
    updates, opt = tx.update(grads, opt, params)
    params = optax.apply_updates(params, updates)
  assert_close(one.params["critic"], params, rtol=1e-4, atol=1e-6)
  # The generator sees the first part alone.
  seen = real[::2].sum()
  np.testing.assert_allclose(one.extra["tracked"]["seen"], seen, rtol=1e-4)


def test_the_two_have_time_scales_of_their_own():
  config = make_config(learning_rate=0.4, critic_steps=4)
  config.optim.warmup_steps = 3
  rival = critic_step.optimizer(config)
  assert (rival.learning_rate, rival.warmup_steps) == (0.4, 12)
  config.gan.learning_rate = 0.0
  assert critic_step.optimizer(config).learning_rate == RATE
  assert config.optim.warmup_steps == 3


@pytest.mark.parametrize("critic_steps", [1, 2])
@pytest.mark.parametrize(
  "penalties",
  [{"r1": 0.5}, {"r2": 0.5}, {"gradient_penalty": 2.0}, {"r1": 0.5, "r2": 0.25}],
  ids=lambda fields: "_".join(fields),
)
def test_a_lazy_penalty_is_as_strong_over_a_cycle(penalties, critic_steps):
  """Of a critic that stands still: a line's penalty is the same everywhere."""

  def found(every):
    config = make_config(**penalties, penalty_every=every, critic_steps=critic_steps)
    config.optim.learning_rate = 0.0
    _, logged = steps(make(config), 4)
    return [float(metrics["penalty"]) for metrics in logged]

  square = 0.3**2 + 0.7**2
  wanted = (penalties.get("r1", 0) + penalties.get("r2", 0)) / 2 * square
  wanted += penalties.get("gradient_penalty", 0) * (np.sqrt(square) - 1) ** 2
  np.testing.assert_allclose(found(1), [wanted] * 4, rtol=1e-5)
  lazy = found(4)
  np.testing.assert_allclose(np.mean(lazy), wanted, rtol=1e-5)
  assert lazy.count(0) == 4 - critic_steps


@pytest.mark.parametrize("who", ["picture", "own loss"])
def test_a_step_that_is_not_finite_changes_nothing(who):
  def wild(given, batch, rng, axis):
    found = play(given, batch, rng, axis)
    return found._replace(losses=found.losses + jnp.log(jnp.min(batch["_mask"]) - 1.0))

  batch, objective = make_batch(), OBJECTIVE
  if who == "picture":
    batch["x"] = batch["x"].at[3].set(jnp.nan)
  else:
    objective = OBJECTIVE._replace(play=wild)
  made = make(make_config(augment="ada"), objective=objective)
  (before, _, after), _ = steps(made, 2, batch)
  assert after.extra["skipped"].tolist() == [2, 2]
  assert after.step == 2
  for part in ("params", "opt", "ema"):
    assert_same(getattr(after, part), getattr(before, part))
  for part in ("tracked", "critic"):
    assert_same(after.extra[part], before.extra[part])


@pytest.mark.parametrize("loss", ["nonsaturating", "least_squares", "relativistic"])
def test_augmentation_grows_with_a_critic_that_is_too_sure(loss):
  """By batch / (1000 kimg) a step, in the direction of E[sign] - target."""
  fields = {"loss": loss, "augment": "ada", "augment_target": 0.6, "augment_kimg": 0.1}
  config, batch = make_config(**fields), make_batch()
  config.optim.learning_rate = 0.0
  batch["x"] = batch["x"].at[..., 0].add(10.0)  # a slope of 10 tells them all
  for sign in (1, -1):
    made = make(
      config, straight(slope=jnp.array([10.0 * sign, 0]), level=jnp.zeros(()))
    )
    (_, after), (metrics,) = steps(made, 1, batch)
    assert metrics["strength"] == 0.5
    np.testing.assert_allclose(
      after.extra["critic"]["strength"], 0.5 + sign * ROWS / 100, rtol=1e-5
    )


def test_a_level_that_no_loss_fixes_does_not_move_augmentation():
  """A relativistic critic may call all pictures real, or none."""
  config = make_config(loss="relativistic", augment="ada", augment_target=0.6)
  config.optim.learning_rate, config.gan.augment_kimg = 0.0, 0.1
  ends = []
  for level in (100.0, -100.0):
    (_, after), _ = steps(make(config, straight(level=jnp.array(level))))
    ends.append(float(after.extra["critic"]["strength"]))
  assert ends[0] == ends[1]


class Told(nn.Module):
  """A critic whose logits are what it is told and what it sees."""

  def __call__(self, x, cond, logsnr=None, axis=None):
    return jnp.concatenate([logsnr[:, None], x.reshape(len(x), -1)], -1)


def test_noise_tells_the_critic_its_logsnr(monkeypatch):
  """x = alpha x0 + sigma eps at a level between those of time 0 and of the strength."""
  seen = []
  monkeypatch.setattr(
    networks, "critic", lambda config, noisy: seen.append(noisy) or Told()
  )
  config = make_config(augment="noise")
  config.noise.schedule = "cosine"
  made = critics.make(config)
  assert seen == [True]
  x0 = jnp.full((512, 8, 8, 1), 3.0)
  keys = jax.random.split(KEY, 512)
  told = functools.partial(
    made.judge, {}, x0, Cond(), Play(jnp.zeros(512), x0, x0), keys
  )
  levels = {}
  for strength in (0.0, 0.5):
    found = np.asarray(told(jnp.full((), strength)))
    logsnr, x = found[:, 0], found[:, 1:]
    levels[strength] = logsnr
    alpha, sigma = (np.sqrt(1 / (1 + np.exp(-s * logsnr)))[:, None] for s in (1, -1))
    eps = (x - 3 * alpha) / sigma
    assert abs(eps.mean()) < 0.03
    assert abs(eps.std() - 1) < 0.03
  cosine = lambda t: -2 * np.log(np.tan(np.pi * t / 2))  # noqa: E731
  assert np.ptp(levels[0.0]) == 0
  assert levels[0.5].max() <= levels[0.0][0]
  assert cosine(0.5) - 1e-3 <= levels[0.5].min() < cosine(0.5) + 0.1
