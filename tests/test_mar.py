"""MAR hides as its authors do, and its head's diffusion draws what it was told."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from scipy import stats

from autoregressive import mar, masking
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


def after(steps: int) -> float:
  """The variance of what DDPM's steps of the cosine schedule make with v = 0."""
  angles = np.pi / 2 * (1 - np.arange(steps) / steps)  # alpha = cos, sigma = sin
  variance = 1.0
  for t, s in zip(angles, angles[1:], strict=False):
    share = 1 - (np.tan(s) / np.tan(t)) ** 2
    kept = np.cos(s) * np.cos(t) + np.sin(s) * np.sin(t) * np.sqrt(1 - share)
    variance = kept**2 * variance + np.sin(s) ** 2 * share
  return variance * np.cos(angles[-1]) ** 2


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
  assert x.std() == pytest.approx(np.sqrt(after(64)), abs=0.012)
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
    (SPEC, "sample.edit", "complete", "known: inpaint"),
  ],
)
def test_what_does_not_fit_is_refused(spec, field, value, message):
  with pytest.raises(UserError, match=message):
    make(config_of(**{field: value}), spec)
