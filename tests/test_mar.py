"""MAR hides as its authors do, and its head's diffusion draws what it was told."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from scipy import stats

from autoregressive import diffusion_head, mar, masking
from autoregressive.diffusion_head import Diffusion
from core import noise
from core.errors import UserError
from core.family import Family, Given, Spec, State, make, sample_keys
from tests.runs import load_config
from tests.test_decoder import CLASSES, KEY, TEXT, draw, shaken

SPEC = Spec((4, 6, 3), pixels=False)


def config_of(**fields: object) -> ConfigDict:
  config = load_config("configs/autoregressive/mar.py")
  config.text.encoder, config.text.classes = "label", 2
  config.text.max_tokens, config.model.patch = 4, 2
  config.sample.guidance_scale, config.sample.frames = 2.0, 3
  config.update_from_flattened_dict(fields)
  return config


@functools.cache
def prepared() -> tuple[Family, State, dict]:
  family = make(config_of(), SPEC)
  batch = {
    "x": draw(0, 3, *SPEC.shape),
    "cond": CLASSES,
    "_id": jnp.arange(3, dtype=jnp.uint32),
    "_mask": jnp.ones(3, bool),
  }
  state = jax.jit(family.init)(KEY, batch)
  weights = {"generator": shaken(state.params["generator"])}
  return family, state.replace(params=weights, ema=weights), batch


def test_how_many_are_hidden():
  """The truncated normal of the authors' code; the plan by floor(cos(...) N)."""
  u = jnp.linspace(0.001, 0.999, 999)
  found = masking.truncated_normal(u, 0.7, 0.25)
  want = stats.truncnorm((0.7 - 1) / 0.25, 0, loc=1, scale=0.25).ppf(np.asarray(u))
  np.testing.assert_allclose(found, want, atol=1e-4)
  plan = mar.planned("cosine", 4, 16)
  # 16 times the cosines of 22.5, 45, 67.5 and 90 degrees leave 14, 11, 6 and 0.
  np.testing.assert_array_equal(plan.first, [0, 2, 5, 10, 16])
  assert plan.most == 6


def test_hidden_vectors_are_not_read():
  net = mar.network(config_of(**{"text.encoder": "bytes"}), SPEC)
  x = draw(0, 3, 6, 12)
  hidden = jnp.array([[1, 0, 1, 1, 0, 0], [0] * 6, [1] * 6], bool)
  params = jax.jit(functools.partial(net.init, method="both"))(KEY, x, hidden, TEXT)
  params = shaken(params)
  total = lambda x: net.apply(params, x, hidden, TEXT).sum((0, 2))  # noqa: E731
  reads = np.abs(jax.jit(jax.jacrev(total))(x)).sum(-1) > 0
  np.testing.assert_array_equal(reads, np.tile(~hidden, (6, 1, 1)))


def after(
  steps: int, mean: float = 0.0, std: float = 1.0, temperature: float = 1.0
) -> tuple[float, float]:
  """Mean and variance of what DDPM's steps of the cosine schedule make.

  Of a denoiser that knows its data, N(mean, std^2), exactly: all is linear.
  """
  angles = np.pi / 2 * (1 - np.arange(steps) / steps)  # alpha = cos, sigma = sin
  at, variance = 0.0, 1.0
  for t, s in zip(angles, [*angles[1:], 0], strict=True):
    share = 1 - (np.tan(s) / np.tan(t)) ** 2
    gain = np.cos(t) * std**2 / ((np.cos(t) * std) ** 2 + np.sin(t) ** 2)
    # x_hat = mean + gain (x_t - alpha mean), and eps of x_t is what is left.
    of_eps = np.sin(s) * np.sqrt(1 - share) / np.sin(t)
    slope = np.cos(s) * gain + of_eps * (1 - np.cos(t) * gain)
    away = mean * (1 - gain * np.cos(t))
    at = slope * at + np.cos(s) * away - of_eps * np.cos(t) * away
    noise = np.sin(s) ** 2 * share * temperature**2
    variance = slope**2 * variance + noise
  return at, variance


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_draws_of_an_exact_head(temperature):
  """Of N(0.7, 0.2^2), in any prediction; the noise that begins stays as it is."""
  schedule = noise.cosine()
  own = Diffusion(schedule, "v", 12, temperature)

  def exact(x_t: jax.Array, logsnr: jax.Array) -> jax.Array:
    alpha, sigma = (a[..., None] for a in noise.alpha_sigma(logsnr, "vp"))
    gain = alpha * 0.04 / (0.04 * alpha**2 + sigma**2)
    x = 0.7 + gain * (x_t - 0.7 * alpha)
    return alpha * (x_t - alpha * x) / sigma - sigma * x

  keys = sample_keys(KEY, 10_000).reshape(5000, 2)
  draw = functools.partial(diffusion_head.draw, own, exact, width=3)
  x = np.asarray(jax.jit(draw)(keys)).ravel()
  mean, variance = after(12, 0.7, 0.2, temperature)
  assert x.mean() == pytest.approx(mean, abs=0.005)
  assert x.std() == pytest.approx(np.sqrt(variance), rel=0.02)
  # Cooler draws are nearer to one another.
  assert after(12, 0.7, 0.2, 0.5)[1] < 0.7 * after(12, 0.7, 0.2)[1]


def test_a_head_that_knows_nothing_draws_standard_normal_numbers():
  """v = 0 is the exact denoiser of N(0, I) data, and its error in eps is 1.

  A finite number of DDPM's steps with the posterior's variance lose some of theirs.
  """
  fields = {"autoregressive.prediction": "v", "sample.head_steps": 64}
  family = make(config_of(**fields), SPEC)
  _, _, batch = prepared()
  state = jax.jit(family.init)(KEY, batch)
  cond = jax.tree.map(lambda a: jnp.tile(a, 400), CLASSES)
  images = jax.jit(lambda cond: family.sample(state, KEY, cond, 1200).images)(cond)
  x = np.asarray(images).ravel()
  assert len(x) == 1200 * 72
  assert abs(x.mean()) < 0.02
  assert x.std() == pytest.approx(np.sqrt(after(64)[1]), abs=0.012)
  assert stats.kstest(x / x.std(), "norm").pvalue > 0.001
  many = {k: jnp.tile(v, (40, 1, 1, 1)) for k, v in batch.items() if k == "x"}
  many |= {
    "cond": jax.tree.map(lambda a: jnp.tile(a, 40), CLASSES),
    "_id": jnp.arange(120, dtype=jnp.uint32),
    "_mask": jnp.ones(120, bool),
  }
  eps = make(config_of(), SPEC)
  loss = jax.jit(eps.evals["loss"])(state, many, KEY)
  assert loss.mean() == pytest.approx(1, abs=0.05)


def test_the_loss_by_hand():
  """eps of the hidden, at four noise levels of the cosine schedule each."""
  family, state, batch = prepared()
  net, own = mar.network(config_of(), SPEC), {"params": state.params["generator"]}
  apply = jax.jit(functools.partial(net.apply, own))
  denoise = jax.jit(functools.partial(net.apply, own, method="denoise"))
  want = []
  for i in range(3):
    keys = jax.random.split(jax.random.fold_in(KEY, i), 5)
    low = (0.7 - 1) / 0.25
    share = stats.truncnorm(low, 0, 1, 0.25).ppf(float(jax.random.uniform(keys[0])))
    count = int(np.ceil(share * 6))
    hidden = np.zeros((1, 6), bool)
    hidden[0, np.argsort(jax.random.uniform(keys[1], (6,)))[:count]] = True
    # Patches of 2x2, row by row.
    x = batch["x"][i].reshape(2, 2, 3, 2, 3).transpose(0, 2, 1, 3, 4).reshape(1, 6, 12)
    cond = jax.tree.map(lambda a, i=i: a[i : i + 1], CLASSES)
    z = jnp.tile(apply(x, jnp.asarray(hidden), cond), (1, 4, 1))
    angle = np.pi / 2 * np.asarray(jax.random.uniform(keys[2], (24,)))[:, None]
    eps = np.asarray(jax.random.normal(keys[3], (24, 12)))
    x_t = np.cos(angle) * np.tile(x[0], (4, 1)) + np.sin(angle) * eps
    logsnr = -2 * np.log(np.tan(angle[:, 0]))
    found = denoise(jnp.asarray(x_t)[None], jnp.asarray(logsnr)[None], z)[0]
    error = ((np.asarray(found) - eps) ** 2).mean(1).reshape(4, 6)
    want.append(error[:, hidden[0]].mean())
  found = jax.jit(family.evals["loss"])(state, batch, KEY)
  np.testing.assert_allclose(found, want, rtol=2e-3)


def test_a_sample_by_hand():
  """Places in the order that is drawn, guided more and more: to 3 at the last step."""
  fields = {"sample.guidance_scale": 3.0, "sample.temperature": 0.7}
  fields["autoregressive.prediction"] = "v"
  config, (_, state, _) = config_of(**fields), prepared()
  family, net = make(config, SPEC), mar.network(config, SPEC)
  own, keys = {"params": state.params["generator"]}, sample_keys(KEY, 3)
  sample = jax.jit(lambda: family.sample(state, KEY, CLASSES, 3))()
  apply, both = jax.jit(functools.partial(net.apply, own)), CLASSES.with_null()
  head = functools.partial(net.apply, own, method="denoise")
  diffusion = diffusion_head.make(config)

  @jax.jit
  def draw(z: jax.Array, scale: jax.Array, keys: jax.Array) -> jax.Array:
    def guided(x_t: jax.Array, logsnr: jax.Array) -> jax.Array:
      mine, null = (head(x_t, logsnr, own) for own in jnp.split(z, 2))
      return null + scale * (mine - null)

    return diffusion_head.draw(diffusion, guided, keys, 12)

  order = [
    np.argsort(jax.random.uniform(jax.random.fold_in(key, 0), (6,))) for key in keys
  ]
  places, canvas = np.array(order), np.zeros((3, 6, 12), np.float32)
  hidden, rows = np.ones((3, 6), bool), np.arange(3)[:, None]
  # floor(6 cos(30 and 60 degrees)) are left: places 0, 1 to 2, and 3 to 5.
  for step, (first, last) in enumerate([(0, 1), (1, 3), (3, 6)]):
    own_places = places[:, first:last]
    two = (jnp.concatenate([jnp.asarray(a)] * 2) for a in (canvas, hidden))
    z = apply(*two, both)[np.arange(6)[:, None], np.tile(own_places, (2, 1))]
    own_keys = [
      [jax.random.fold_in(key, int(p) + 1) for p in row]
      for key, row in zip(keys, own_places, strict=True)
    ]
    own_keys = jnp.stack([jnp.stack(row) for row in own_keys])
    canvas[rows, own_places] = draw(z, jnp.asarray(1 + 2 * last / 6), own_keys)
    hidden[rows, own_places] = False
    shown = canvas.reshape(3, 2, 3, 2, 2, 3).swapaxes(2, 3).reshape(3, *SPEC.shape)
    np.testing.assert_allclose(sample.frames[step], shown, atol=1e-4)


def test_samples_their_films_and_inpainting():
  family, state, batch = prepared()
  sample = jax.jit(lambda keys, cond: family.sample(state, keys, cond, len(keys)))
  keys = sample_keys(KEY, 3)
  images, frames, nfe = sample(keys, CLASSES)
  np.testing.assert_array_equal(nfe, [3] * 3)
  np.testing.assert_array_equal(frames[-1], images)
  # floor(6 cos(30 degrees)) = 5 places are left, then 3, then none.
  for frame, left in zip(frames, (5, 3, 0), strict=True):
    empty = (frame == 0).reshape(3, 2, 2, 3, 2, 3).all((2, 4, 5)).sum((1, 2))
    np.testing.assert_array_equal(empty, [left] * 3)
    drawn = frame != 0
    np.testing.assert_array_equal(frame[drawn], images[drawn])
  alone = sample(keys[1:], jax.tree.map(lambda a: a[1:], CLASSES)).images
  np.testing.assert_allclose(alone, images[1:], atol=1e-5)
  mask = jnp.zeros((3, 4, 6, 1)).at[:, 0, 0].set(1)
  edit = jax.jit(lambda given: family.edits["inpaint"](state, KEY, CLASSES, given))
  found = edit(Given(batch["x"], mask)).images
  off = np.abs(found - batch["x"])
  assert off[:, :2, :2].max((1, 2, 3)).min() > 0.1
  assert off[:, 2:].max() == off[:, :, 2:].max() == 0


@pytest.mark.parametrize(
  ("spec", "field", "value", "message"),
  [
    (Spec((4, 4, 1), jnp.int32, 9, False), "seed", 0, "draws real numbers, not tokens"),
    (SPEC, "autoregressive.schedule", "cosin", "did you mean 'cosine'"),
    (SPEC, "autoregressive.prediction", "epsilon", "did you mean 'eps'"),
    (SPEC, "sample.top_k", 3, "no use for sample.top_k=3"),
    (SPEC, "noise.schedule", "learned", "cannot learn a schedule"),
    (SPEC, "noise.low_discrepancy", True, "no use for noise.low_discrepancy=True"),
    (SPEC, "noise.zero_terminal", True, "tells nothing where there is no signal"),
    (SPEC, "autoregressive.components", 5, "no use for autoregressive.components=5"),
    (SPEC, "sample.edit", "complete", "known: inpaint"),
  ],
)
def test_what_does_not_fit_is_refused(spec, field, value, message):
  with pytest.raises(UserError, match=message):
    make(config_of(**{field: value}), spec)
