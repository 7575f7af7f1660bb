"""MaskGIT hides by its schedule, keeps what it is given, and draws what it tells."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from scipy import special

from autoregressive import maskgit, masking, sampling
from autoregressive.sampling import Sampling
from autoregressive.settings import DEFAULTS
from configs import base
from core.errors import UserError
from core.family import Family, Given, Spec, State, make, sample_keys
from tests.runs import load_config, random_batch
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
  halves = {"linear": 0.5, "square": 0.75, "cubic": 0.875, "root": 1 - 0.5**0.5}
  for name, half in {"cosine": 0.5**0.5, **halves}.items():
    own = masking.share_at(name, jnp.array([0, 0.5, 1]))
    np.testing.assert_allclose(own, [1, half, 0], atol=1e-6)
    assert masking.hidden_shares(name, 5)[-1] == 0
  assert {"cosine", *halves} == set(masking.SCHEDULES)


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


TOKENS = Spec((2, 3, 1), jnp.int32, 6, False)


def of_tokens(**fields: object) -> tuple[Callable, Family, State, dict]:
  """(network, family, state, batch) of six values in six places, without dropping."""
  config = config_of(**{"text.drop": 0.0, **fields})
  family = make(config, TOKENS)
  batch = {
    "x": jax.random.randint(KEY, (3, 2, 3, 1), 0, 6),
    "cond": CLASSES,
    "_id": jnp.arange(3, dtype=jnp.uint32),
    "_mask": jnp.ones(3, bool),
  }
  state = jax.jit(family.init)(KEY, batch)
  weights = {"generator": shaken(state.params["generator"])}
  net = maskgit.network(config, TOKENS, 6)
  apply = jax.jit(functools.partial(net.apply, {"params": weights["generator"]}))
  return apply, family, state.replace(params=weights, ema=weights), batch


@pytest.mark.parametrize(
  ("temperature", "top_k", "tau"), [(0.8, 4, 2.0), (0.0, 0, 0.0)], ids=["noise", "none"]
)
def test_what_is_kept_is_what_the_network_is_surest_of(temperature, top_k, tau):
  """Step by step as the paper has it: the first picture is inpainted, others drawn."""
  steps, mask = 3, jnp.ones((3, 2, 3, 1)).at[0, 0, :2].set(0)
  settings = Sampling(temperature, top_k, 1.0, 3.0, "linear")
  fields = {f"sample.{k}": v for k, v in settings._asdict().items()}
  fields |= {"sample.steps": steps, "sample.choice_temperature": tau}
  # Guidance needs a network that may be without its class.
  apply, family, state, batch = of_tokens(**fields, **{"text.drop": 0.1})
  keys, given = sample_keys(KEY, 3), Given(batch["x"], mask)
  found = jax.jit(family.edits["inpaint"])(state, KEY, CLASSES, given)
  x, hidden = np.array(batch["x"]).reshape(3, 6), np.array(mask).reshape(3, 6) > 0
  first = hidden.sum(1)
  for t in range(1, steps + 1):
    both = (jnp.concatenate([a, a]) for a in (jnp.asarray(x), jnp.asarray(hidden)))
    own, null = np.split(np.asarray(apply(*both, CLASSES.with_null())), 2)
    gamma = np.cos(np.pi * t / (2 * steps))
    guided = null + (1 + 2 * (1 - gamma)) * (own - null)
    log_p = special.log_softmax(guided, axis=-1)
    drawn = sampling.draw(
      sampling.filtered(jnp.asarray(guided), settings), keys, jnp.asarray(2 * t - 2)
    )
    x = np.where(hidden, drawn, x)
    np.testing.assert_array_equal(found.frames[t - 1].reshape(3, 6), x)
    for i in range(3):
      noise = jax.random.gumbel(jax.random.fold_in(keys[i], 2 * t - 1), (6,))
      sure = log_p[i, np.arange(6), x[i]] + tau * (1 - t / steps) * np.asarray(noise)
      count = int(np.ceil(gamma * first[i] - 1e-9))
      places = np.flatnonzero(hidden[i])
      hidden[i] = False
      hidden[i, places[np.argsort(sure[places])[:count]]] = True
  assert not hidden.any()
  np.testing.assert_array_equal(found.images.reshape(3, 6), x)


def test_the_loss_by_hand():
  """Of hidden numbers alone; in training with a tenth told alike of all values."""
  apply, family, state, batch = of_tokens()
  want, smooth = [], []
  for i in range(3):
    keys = jax.random.split(jax.random.fold_in(KEY, i), 3)
    count = max(1, int(np.ceil(np.cos(jax.random.uniform(keys[0]) * np.pi / 2) * 6)))
    hidden = np.zeros((1, 6), bool)
    hidden[0, np.argsort(jax.random.uniform(keys[1], (6,)))[:count]] = True
    x = batch["x"][i].reshape(1, 6)
    cond = jax.tree.map(lambda a, i=i: a[i : i + 1], CLASSES)
    logits = apply(x, jnp.asarray(hidden), cond)
    bits = -special.log_softmax(np.asarray(logits[0]), axis=-1) / np.log(2)
    own = bits[np.arange(6), x[0]]
    want.append(own[hidden[0]].mean())
    smooth.append((0.9 * own + 0.1 * bits.mean(1))[hidden[0]].mean())
  found = jax.jit(family.evals["bits_per_hidden"])(state, batch, KEY)
  np.testing.assert_allclose(found, want, rtol=1e-4)
  _, metrics = jax.jit(family.step)(state, batch, KEY)
  np.testing.assert_allclose(metrics["loss"], np.mean(smooth), rtol=1e-4)


@pytest.mark.parametrize("name", ["dalle", "mar", "maskgit"])
def test_draws_of_training_come_from_each_examples_key(name):
  """Rows in another order have the same loss and gradient, with all that is random."""
  config = load_config(f"configs/autoregressive/{name}.py")
  config.model.dropout, config.text.drop, config.data.batch_size = 0.3, 0.5, 4
  batch = random_batch(config)
  family = make(config, Spec(batch["x"].shape[1:]))
  state = jax.jit(family.init)(KEY, batch)
  weights = {"generator": shaken(state.params["generator"])}
  state, step = state.replace(params=weights), jax.jit(family.step)
  other = jax.tree.map(lambda a: a[::-1], batch)
  first, second = (step(state, rows, KEY)[1] for rows in (batch, other))
  for metric in first:
    np.testing.assert_allclose(first[metric], second[metric], rtol=1e-5)
  again = step(state, batch | {"_id": batch["_id"] + 4}, KEY)[1]
  assert abs(again["loss"] - first["loss"]) > 1e-4 * first["loss"]


def test_every_field_of_the_config_is_some_methods():
  assert base.autoregressive().to_dict() == DEFAULTS


@pytest.mark.parametrize(
  ("spec", "field", "value", "message"),
  [
    (Spec((4, 4, 1), pixels=False), "seed", 0, "draws pixels or tokens, not latents"),
    (Spec((4, 4, 1)), "autoregressive.schedule", "cosin", "did you mean 'cosine'"),
    (Spec((4, 4, 1)), "sample.edit", "complete", "known: inpaint"),
    (Spec((4, 4, 1)), "autoregressive.draws", 2, "no use for autoregressive.draws=2"),
  ],
)
def test_what_does_not_fit_is_refused(spec, field, value, message):
  with pytest.raises(UserError, match=message):
    make(config_of(**{field: value}), spec)
