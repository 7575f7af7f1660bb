"""MaskGIT hides by its schedule, keeps what it is given, and draws what it tells."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from autoregressive import maskgit, masking
from core.errors import UserError
from core.family import Family, Given, Spec, State, make, sample_keys
from tests.runs import load_config
from tests.test_decoder import CLASSES, KEY, TEXT, shaken
from text.cond import Cond


def config_of(**fields: object) -> ConfigDict:
  config = load_config("configs/autoregressive/maskgit.py")
  config.text.encoder, config.text.classes = "label", 2
  config.text.max_tokens, config.sample.guidance_scale = 4, 1.0
  config.sample.frames = config.sample.steps
  config.update_from_flattened_dict(fields)
  return config


@functools.cache
def prepared(**fields: object) -> tuple[ConfigDict, Family, State, dict]:
  config = config_of(**fields)
  family = make(config, Spec((4, 4, 1)))
  batch = {
    "x": jax.random.uniform(KEY, (3, 4, 4, 1), minval=-1, maxval=1),
    "cond": CLASSES,
    "_id": jnp.arange(3, dtype=jnp.uint32),
    "_mask": jnp.ones(3, bool),
  }
  state = jax.jit(family.init)(KEY, batch)
  weights = {"generator": shaken(state.params["generator"])}
  return config, family, state.replace(params=weights, ema=weights), batch


def test_the_schedule_is_the_papers():
  """ceil(cos(pi t / 2 T) N) hidden after step t of T, for N = 256 tokens in 8 steps."""
  shares = masking.hidden_shares("cosine", 8)
  found = masking.count_of(jnp.asarray(shares, jnp.float32), 256)
  # 256 times the cosines of 11.25, 22.5, ..., 90 degrees, by hand.
  want = [252, 237, 213, 182, 143, 98, 50, 0]
  np.testing.assert_array_equal(found, want)
  r = jnp.linspace(0, 1, 11)
  for name, formula in masking.SCHEDULES.items():
    own = masking.share_at(name, r)
    np.testing.assert_allclose(own, formula(np.linspace(0, 1, 11)), atol=0.002)
    assert own[0] == pytest.approx(1)
    assert own[-1] == pytest.approx(0, abs=1e-6)
    assert masking.hidden_shares(name, 5)[-1] == 0


def test_the_lowest():
  score = jnp.array([[3.0, 1.0, 2.0, 1.0], [0.0, jnp.inf, -1.0, 5.0]])
  found = masking.lowest(score, jnp.array([2, 3]))
  np.testing.assert_array_equal(found, [[0, 1, 0, 1], [1, 0, 1, 1]])
  assert not masking.lowest(score, jnp.array([0, 0])).any()


def test_each_logit_reads_what_is_shown_and_no_more():
  """By the Jacobian: every number has a row of its own in the table of values."""
  config = config_of(**{"text.encoder": "bytes"})
  net = maskgit.network(config, Spec((2, 3, 1), jnp.int32, 6, False), 6)
  x = jnp.tile(jnp.arange(6), (3, 1))
  hidden = jnp.array([[1, 0, 1, 1, 0, 0], [0] * 6, [1] * 6], bool)
  params = shaken(jax.jit(net.init)(KEY, x, hidden, TEXT)["params"])

  def logits(table: jax.Array) -> jax.Array:
    own = params | {"values": {"embedding": table}}
    return net.apply({"params": own}, x, hidden, TEXT).sum(-1)

  jacobian = jax.jit(jax.jacrev(logits))(params["values"]["embedding"])
  reads = np.abs(jacobian).sum(-1) > 0
  np.testing.assert_array_equal(reads, np.repeat(~hidden[:, None], 6, axis=1))


def test_steps_show_more_and_more_and_end_in_the_picture():
  config, family, state, _ = prepared()
  sample = jax.jit(lambda keys, cond: family.sample(state, keys, cond, len(keys)))
  keys = sample_keys(KEY, 3)
  images, frames, nfe = sample(keys, CLASSES)
  steps = config.sample.steps
  np.testing.assert_array_equal(nfe, [steps] * 3)
  np.testing.assert_array_equal(frames[-1], images)
  shares = masking.hidden_shares("cosine", steps)
  for frame, share in zip(frames, shares, strict=True):
    shown = 16 - int(masking.count_of(jnp.asarray(share), 16))
    same = (frame == images).reshape(3, -1).sum(1)
    assert (same >= shown).all()
  # The first guess is not yet the picture.
  assert (frames[0] != images).any()
  alone = sample(keys[1:], jax.tree.map(lambda a: a[1:], CLASSES)).images
  np.testing.assert_array_equal(alone, images[1:])


def test_inpainting_keeps_what_is_shown():
  _, family, state, batch = prepared()
  mask = jnp.zeros((3, 4, 4, 1)).at[0, 1:3].set(1).at[1, :, 0].set(1)
  given = Given(batch["x"], mask)
  edit = jax.jit(lambda given: family.edits["inpaint"](state, KEY, CLASSES, given))
  found = edit(given).images
  off = np.abs(found - batch["x"])
  assert off[np.asarray(mask) == 0].max() <= 1 / 255 + 1e-6
  assert off[0, 1:3].mean() > 0.1
  assert off[1, :, 0].mean() > 0.1


def test_one_token_at_a_time_is_drawn_as_told():
  """With one hidden place left, its value comes as often as the network says."""
  config = config_of(**{"sample.steps": 2, "text.encoder": "none"})
  family = make(config, Spec((1, 2, 1), jnp.int32, 3, False))
  n = 3000
  x = jnp.tile(jnp.array([[1, 0]]), (n, 1)).reshape(n, 1, 2, 1)
  batch = {
    "x": x,
    "cond": Cond(),
    "_id": jnp.arange(n, dtype=jnp.uint32),
    "_mask": jnp.ones(n, bool),
  }
  state = jax.jit(family.init)(KEY, batch)
  weights = {"generator": shaken(state.params["generator"])}
  state = state.replace(params=weights, ema=weights)
  mask = jnp.zeros((n, 1, 2, 1)).at[:, :, 1].set(1)
  edit = jax.jit(family.edits["inpaint"])
  found = edit(state, KEY, batch["cond"], Given(x, mask)).images
  assert (found[:, 0, 0] == 1).all()
  net = maskgit.network(config, Spec((1, 2, 1), jnp.int32, 3, False), 3)
  hidden = jnp.array([[False, True]])
  own = {"params": weights["generator"]}
  p = jax.nn.softmax(net.apply(own, jnp.array([[1, 0]]), hidden, batch["cond"])[0, 1])
  counts = np.bincount(np.asarray(found[:, 0, 1, 0]), minlength=3)
  np.testing.assert_allclose(counts / n, p, atol=0.03)


def test_the_loss_is_of_hidden_numbers():
  """A network that knows nothing tells every level alike: eight bits."""
  _, family, state, batch = prepared()
  fresh = jax.jit(family.init)(KEY, batch)
  found = jax.jit(family.evals["bits_per_hidden"])(fresh, batch, KEY)
  np.testing.assert_allclose(found, [8] * 3, atol=0.2)
  _, metrics = jax.jit(family.step)(state, batch, KEY)
  assert np.isfinite(metrics["loss"])


@pytest.mark.parametrize(
  ("spec", "field", "value", "message"),
  [
    (Spec((4, 4, 1), pixels=False), "seed", 0, "draws pixels or tokens, not latents"),
    (Spec((4, 4, 1)), "autoregressive.schedule", "cosin", "did you mean 'cosine'"),
    (Spec((4, 4, 1)), "sample.edit", "complete", "known: inpaint"),
  ],
)
def test_what_does_not_fit_is_refused(spec, field, value, message):
  with pytest.raises(UserError, match=message):
    make(config_of(**{field: value}), spec)
