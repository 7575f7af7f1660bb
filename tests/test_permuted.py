"""A decoder in any order reads what comes before, sums to one, and draws as it says."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from autoregressive import diffusion_head, mar, masking, permuted
from core.errors import UserError
from core.family import Family, Given, Spec, State, make, sample_keys
from nets.masked import MaskedTokens
from tests.runs import load_config
from tests.test_decoder import CLASSES, KEY, TEXT, draw, shaken
from tests.test_mar import SPEC as VECTORS
from tests.test_mar import config_of as mar_config
from text.cond import Cond

ORDER = jnp.array([[3, 0, 2, 1, 5, 4], [0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0]])
TOKENS = Spec((1, 3, 1), jnp.int32, 3, False)


def config_of(**fields: object) -> ConfigDict:
  config = load_config("configs/autoregressive/permuted.py")
  config.text.encoder, config.text.classes = "label", 2
  config.sample.guidance_scale, config.sample.frames = 1.0, 3
  config.update_from_flattened_dict(fields)
  return config


@functools.cache
def prepared() -> tuple[Family, State]:
  family = make(config_of(), TOKENS)
  batch = {"x": jnp.zeros((3, 1, 3, 1), jnp.int32), "cond": CLASSES}
  batch |= {"_id": jnp.arange(3, dtype=jnp.uint32), "_mask": jnp.ones(3, bool)}
  state = jax.jit(family.init)(KEY, batch)
  weights = {"generator": shaken(state.params["generator"])}
  return family, state.replace(params=weights, ema=weights)


def known(state: State) -> tuple[MaskedTokens, dict]:
  """The family's network and its weights."""
  net = permuted.network(config_of(), TOKENS, 3)
  return net, {"params": state.params["generator"]}


def test_shown_places_come_first():
  hidden = jnp.array([[1, 0, 1, 0, 1], [1, 1, 1, 1, 1]], bool)
  keys = sample_keys(KEY, 2)
  found = masking.places("raster", keys, hidden)
  np.testing.assert_array_equal(found, [range(5)] * 2)  # a network has seen no other
  found = np.asarray(
    masking.places("random", sample_keys(KEY, 400), hidden[:1].repeat(400, 0))
  )
  assert (np.sort(found[:, :2]) == [1, 3]).all()
  assert (np.sort(found[:, 2:]) == [0, 2, 4]).all()
  # All six orders of the hidden ones, about as often.
  counts = np.unique(found[:, 2:], axis=0, return_counts=True)[1]
  assert len(counts) == 6
  assert counts.min() > 40


def test_each_vector_reads_those_before_it_in_its_order():
  net = mar.network(
    mar_config(**{"autoregressive.order": "random", "text.encoder": "bytes"}), VECTORS
  )
  x = draw(0, 3, 6, 12)
  params = jax.jit(functools.partial(net.init, method="both"))(KEY, x, ORDER, TEXT)
  params = shaken(params)
  total = lambda x: net.apply(params, x, ORDER, TEXT).sum(-1)  # noqa: E731
  jacobian = np.abs(jax.jit(jax.jacrev(total))(x)).sum(-1)
  for row, order in enumerate(ORDER):
    before = np.argsort(order)[:, None] > np.argsort(order)  # place by place
    np.testing.assert_array_equal(jacobian[row, :, row] > 0, before)


def test_probabilities_of_all_pictures_add_up_to_one_in_each_order():
  _, state = prepared()
  net, own = (
    permuted.network(config_of(), TOKENS, 3),
    {"params": state.params["generator"]},
  )
  x = jnp.array(list(itertools.product(range(3), repeat=3)))
  cond = jax.tree.map(lambda a: jnp.repeat(a[1:2], 27), CLASSES)
  for order in itertools.permutations(range(3)):
    places = jnp.tile(jnp.array(order), (27, 1))
    log_p = jax.nn.log_softmax(jax.jit(net.apply)(own, x, places, cond))
    each = jnp.take_along_axis(log_p, x[..., None], -1).sum((1, 2))
    np.testing.assert_allclose(jnp.exp(each).sum(), 1, rtol=1e-5)


def test_the_loss_is_the_code_length_in_the_keys_order():
  family, state = prepared()
  net, own = (
    permuted.network(config_of(), TOKENS, 3),
    {"params": state.params["generator"]},
  )
  x = jnp.array([[2, 0, 1], [1, 1, 0], [0, 2, 2]])
  batch = {"x": x.reshape(3, 1, 3, 1), "cond": CLASSES}
  batch |= {"_id": jnp.arange(3, dtype=jnp.uint32), "_mask": jnp.ones(3, bool)}
  found = jax.jit(family.evals["bits_per_token"])(state, batch, KEY)
  keys = [jax.random.split(jax.random.fold_in(KEY, i), 2)[0] for i in range(3)]
  places = jnp.stack([jnp.argsort(jax.random.uniform(key, (3,))) for key in keys])
  log_p = jax.nn.log_softmax(jax.jit(net.apply)(own, x, places, CLASSES))
  each = np.take_along_axis(np.asarray(log_p), np.asarray(x)[..., None], -1)[..., 0]
  np.testing.assert_allclose(found, -each.sum(1) / 3 / np.log(2), rtol=1e-5)


@pytest.mark.parametrize(
  ("fields", "hidden"),
  [
    ({}, (1, 1, 1)),
    ({"sample.guidance_scale": 2.0, "sample.guidance_schedule": "linear"}, (1, 1, 1)),
    ({}, (1, 0, 1)),
    ({"autoregressive.order": "raster"}, (1, 0, 1)),
  ],
)
def test_a_sample_by_hand(fields, hidden):
  """Place after place, of what is yet to come nothing is read, shown or not."""
  _, state = prepared()
  config = config_of(**fields)
  family, (net, own) = make(config, TOKENS), known(state)
  given = np.array([[2, 1, 2], [1, 1, 2], [0, 2, 2]])
  mask = jnp.tile(jnp.array(hidden, jnp.float32).reshape(1, 1, 3, 1), (3, 1, 1, 1))
  edit = family.edits["inpaint"]
  pictures = Given(jnp.asarray(given).reshape(3, 1, 3, 1), mask)
  found = jax.jit(lambda: edit(state, KEY, CLASSES, pictures))()
  np.testing.assert_array_equal(found.nfe, [3] * 3)
  apply, keys, rows = jax.jit(net.apply), sample_keys(KEY, 3), np.arange(3)
  places = np.tile(np.arange(3), (3, 1))
  if config.autoregressive.order == "random":
    first = [jax.random.fold_in(key, 2**32 - 1) for key in keys]
    score = np.array([jax.random.uniform(key, (3,)) for key in first])
    places = np.argsort(score + 2 * np.array(hidden), axis=1)  # the shown one first
  canvas = np.full((3, 3), 1)
  for i in range(3):
    at = places[:, i]
    logits, null = (
      apply(own, jnp.asarray(canvas), jnp.asarray(places), cond)[rows, at]
      for cond in (CLASSES, CLASSES.null_like())
    )
    scale = 1 + (config.sample.guidance_scale - 1) * (i + 1) / 3
    logits = null + scale * (logits - null)
    own_keys = [jax.random.fold_in(key, i) for key in keys]
    pairs = zip(own_keys, logits, strict=True)
    drawn = [jax.random.categorical(*pair) for pair in pairs]
    canvas[rows, at] = np.where(np.array(hidden)[at], drawn, given[rows, at])
  np.testing.assert_array_equal(found.images.reshape(3, 3), canvas)
  for frame, count in zip(found.frames, (0, 2, 3), strict=True):
    done = np.zeros((3, 3), bool)
    done[rows[:, None], places[:, :count]] = True
    np.testing.assert_array_equal(frame.reshape(3, 3), np.where(done, canvas, -1))


def test_a_sample_is_what_inpainting_all_of_a_picture_is():
  family, state = prepared()
  sample = jax.jit(lambda: family.sample(state, KEY, CLASSES, 3).images)()
  given = Given(jnp.ones((3, 1, 3, 1), jnp.int32), jnp.ones((3, 1, 3, 1)))
  edit = jax.jit(lambda: family.edits["inpaint"](state, KEY, CLASSES, given).images)
  np.testing.assert_array_equal(sample, edit())


def test_a_condition_that_is_dropped_is_not_told_of():
  dropped, state = make(config_of(**{"text.drop": 1.0}), TOKENS), prepared()[1]
  batch = {"x": jnp.array([[2, 0, 1]] * 2).reshape(2, 1, 3, 1)}
  batch |= {"_id": jnp.zeros(2, jnp.uint32), "_mask": jnp.ones(2, bool)}
  batch["cond"] = Cond(label=jnp.array([0, 1]))
  step = jax.jit(
    jax.grad(lambda p: dropped.step(state.replace(params=p), batch, KEY)[1]["loss"])
  )
  table = step(state.params)["generator"]["trunk"]["encoder"]["classes"]["embedding"]
  assert (np.asarray(table[:2]) == 0).all()
  assert (np.asarray(table) != 0).any()  # of no class


@pytest.mark.parametrize("order", ["random", "raster"])
def test_a_causal_mar_by_hand(order):
  """One vector after the other, guided; those to come are not read.

  The second is shown: in a random order it is read by all.
  """
  fields = {"autoregressive.order": order, "sample.steps": 6, "sample.frames": 6}
  fields |= {"sample.guidance_scale": 3.0, "sample.guidance_schedule": "linear"}
  config = mar_config(**fields, **{"autoregressive.prediction": "v"})
  family, net = make(config, VECTORS), mar.network(config, VECTORS)
  batch = {"x": draw(0, 3, *VECTORS.shape), "cond": CLASSES}
  batch |= {"_id": jnp.arange(3, dtype=jnp.uint32), "_mask": jnp.ones(3, bool)}
  state = jax.jit(family.init)(KEY, batch)
  weights = {"generator": shaken(state.params["generator"])}
  state = state.replace(params=weights, ema=weights)
  own, keys, rows = {"params": weights["generator"]}, sample_keys(KEY, 3), np.arange(3)
  mask = jnp.ones((3, 4, 6, 1)).at[:, :2, 2:4].set(0)
  given = Given(batch["x"], mask)
  sample = jax.jit(lambda: family.edits["inpaint"](state, KEY, CLASSES, given))()
  apply, both = jax.jit(functools.partial(net.apply, own)), CLASSES.with_null()
  patches = batch["x"].reshape(3, 2, 2, 3, 2, 3).swapaxes(2, 3).reshape(3, 6, 12)
  hidden = np.arange(6) != 1
  head = functools.partial(net.apply, own, method="denoise")
  diffusion = diffusion_head.make(config)

  @jax.jit
  def drawn(z: jax.Array, scale: jax.Array, keys: jax.Array) -> jax.Array:
    def guided(x_t: jax.Array, logsnr: jax.Array) -> jax.Array:
      mine, null = (head(x_t, logsnr, own) for own in jnp.split(z, 2))
      return null + scale * (mine - null)

    return diffusion_head.draw(diffusion, guided, keys, 12)

  places = np.tile(np.arange(6), (3, 1))
  if order == "random":
    first = [jax.random.fold_in(key, 0) for key in keys]
    score = np.array([jax.random.uniform(key, (6,)) for key in first])
    places = np.argsort(score + 2 * hidden, axis=1)
  canvas = np.full((3, 6, 12), 7.0, np.float32)
  for i in range(6):
    at = places[:, i]
    two = (jnp.concatenate([jnp.asarray(a)] * 2) for a in (canvas, places))
    z = apply(*two, both)[np.arange(6), np.tile(at, 2)][:, None]
    pairs = zip(keys, at, strict=True)
    own_keys = jnp.stack([jax.random.fold_in(key, int(p) + 1) for key, p in pairs])
    new = drawn(z, jnp.asarray(1 + 2 * (i + 1) / 6), own_keys[:, None])[:, 0]
    canvas[rows, at] = np.where(hidden[at][:, None], new, patches[rows, at])
  shown = canvas.reshape(3, 2, 3, 2, 2, 3).swapaxes(2, 3).reshape(3, *VECTORS.shape)
  np.testing.assert_allclose(sample.images, shown, atol=1e-4)
  # The loss is of all places.
  found = jax.jit(family.evals["loss"])(state, batch, KEY)
  want = []
  for i in range(3):
    key = jax.random.split(jax.random.fold_in(KEY, i), 5)
    x = batch["x"][i].reshape(2, 2, 3, 2, 3).transpose(0, 2, 1, 3, 4).reshape(1, 6, 12)
    score = jax.random.uniform(key[1], (6,)) if order == "random" else jnp.zeros(6)
    cond = jax.tree.map(lambda a, i=i: a[i : i + 1], CLASSES)
    z = jnp.tile(apply(x, jnp.argsort(score)[None], cond), (1, 4, 1))
    denoise = lambda x_t, logsnr, z=z: head(x_t, logsnr, z)  # noqa: E731
    each = diffusion_head.losses(
      diffusion, denoise, jnp.tile(x, (1, 4, 1)), key[2:3], key[3:4]
    )
    want.append(each.mean())
  np.testing.assert_allclose(found, want, rtol=1e-4)


def test_refusals():
  with pytest.raises(UserError, match="set sample.steps to 6, not 3"):
    make(mar_config(**{"autoregressive.order": "raster"}), VECTORS)
  with pytest.raises(UserError, match="did you mean 'random'"):
    make(mar_config(**{"autoregressive.order": "randm"}), VECTORS)
  with pytest.raises(UserError, match="autoregressive.order='masked' is unknown"):
    make(config_of(**{"autoregressive.order": "masked"}), TOKENS)
  with pytest.raises(UserError, match="no use for autoregressive.schedule='linear'"):
    make(config_of(**{"autoregressive.schedule": "linear"}), TOKENS)
