"""The decoder is causal, normalised, and decodes as it is trained."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import PyTree
from ml_collections import ConfigDict

from autoregressive import decoder, decoding, sampling, sequence
from autoregressive.sampling import Sampling
from core.errors import UserError
from core.family import Family, Given, Spec, State, make, sample_keys
from nets.decoder import rotary_angles, rotate
from nets.stream import JointStream, Stream, TextItems
from tests.runs import load_config
from text.cond import Cond

KEY = jax.random.key(0)
TEXT = Cond(  # none, two bytes, and all
  tokens=jnp.arange(12).reshape(3, 4) + 1,
  mask=jnp.arange(4) < jnp.array([[0], [2], [4]]),
)
CLASSES = Cond(label=jnp.array([-1, 0, 1]))
CONDS = {"bytes": TEXT, "label": CLASSES, "none": Cond()}


def draw(i: int, *shape: int) -> jax.Array:
  return jax.random.normal(jax.random.fold_in(KEY, i), shape)


def config_of(encoder: str = "bytes", **fields: object) -> ConfigDict:
  config = load_config("configs/autoregressive/decoder.py")
  config.text.encoder, config.text.classes = encoder, 2
  config.text.max_tokens, config.sample.guidance_scale = 4, 1.0
  for field, value in fields.items():
    group, name = field.split("__")
    config[group][name] = value
  return config


def shaken(params: PyTree) -> PyTree:
  """No weight as it starts."""
  leaves, form = jax.tree.flatten(params)
  leaves = [a + 0.3 * draw(9 + i, *a.shape) for i, a in enumerate(leaves)]
  return jax.tree.unflatten(form, leaves)


@functools.cache
def network(
  encoder: str, shape: tuple[int, int, int], vocab: int
) -> tuple[Stream, PyTree]:
  net = decoder.network(config_of(encoder), Spec(shape, jnp.int32, vocab, False), vocab)
  x = jnp.zeros((3, np.prod(shape)), jnp.int32)
  return net, shaken(jax.jit(net.init)(KEY, x, CONDS[encoder])["params"])


@pytest.mark.parametrize("encoder", list(CONDS))
def test_each_number_depends_on_those_before_it(encoder):
  """By the Jacobian: every number of x has a row of its own in the table."""
  shape, length = (2, 3, 2), 12
  net, params = network(encoder, shape, length)
  x = jnp.tile(jnp.arange(length), (3, 1))

  def logits(table: jax.Array) -> jax.Array:
    own = params | {"values": {"embedding": table}}
    return net.apply({"params": own}, x, CONDS[encoder]).sum(-1)

  table = params["values"]["embedding"]
  jacobian = np.abs(jax.jit(jax.jacrev(logits))(table)).sum(-1)
  rows = np.arange(length) % 2 * length + np.arange(length)
  reads = jacobian[:, :, rows] > 0
  np.testing.assert_array_equal(reads, np.tri(length, k=-1, dtype=bool)[None][[0] * 3])
  others = np.delete(jacobian, rows, axis=2)
  assert (others == 0).all()


def test_padding_of_a_text_is_not_read():
  net, params = network("bytes", (2, 3, 2), 12)
  x = jnp.tile(jnp.arange(12), (3, 1))
  other = TEXT.replace(tokens=jnp.where(TEXT.mask, TEXT.tokens, 99))
  apply = jax.jit(net.apply)
  y, changed = (apply({"params": params}, x, cond) for cond in (TEXT, other))
  np.testing.assert_allclose(y, changed, atol=1e-5)
  # What is read matters.
  third = apply({"params": params}, x, TEXT.replace(tokens=TEXT.tokens + 20))
  assert np.abs(third - y)[1:].max((1, 2)).min() > 0.01
  np.testing.assert_allclose(third[0], y[0], atol=1e-5)


@pytest.mark.parametrize("encoder", list(CONDS))
def test_probabilities_of_all_sequences_sum_to_one(encoder):
  shape, vocab = (2, 2, 1), 3
  net, params = network(encoder, shape, vocab)
  every = jnp.asarray(list(itertools.product(range(vocab), repeat=4)))

  @jax.jit
  def total(x: jax.Array, i: jax.Array) -> jax.Array:
    cond = jax.tree.map(lambda a: jnp.repeat(a[i][None], len(x), 0), CONDS[encoder])
    logits = net.apply({"params": params}, x, cond)
    return jnp.exp(-sequence.cross_entropy(logits, x).sum(1))

  for i in range(3):
    found = total(every, jnp.asarray(i))
    np.testing.assert_allclose(found.sum(), 1, atol=1e-5)
    assert found.max() > 2 * found.min()


@pytest.mark.parametrize("encoder", list(CONDS))
def test_cached_decoding_is_the_forward_pass_token_by_token(encoder):
  length = 12
  net, params = network(encoder, (2, 3, 2), 12)
  x = jax.random.randint(KEY, (3, length), 0, 12)
  cond = CONDS[encoder]

  @jax.jit
  def both(params: PyTree) -> tuple:
    state, logits, advance = decoding.begin(net, params, cond, 3, length)

    def body(carry: tuple, i: jax.Array) -> tuple:
      state, logits = carry
      return advance(state, x[:, i], i), logits

    carry, found = jax.lax.scan(body, (state, logits), jnp.arange(length - 1))
    found = jnp.concatenate([found, carry[1][None]])
    return found.swapaxes(0, 1), net.apply({"params": params}, x, cond)

  cached, full = both(params)
  np.testing.assert_allclose(cached, full, atol=2e-5)
  assert np.abs(full).max() > 1


def drawn(settings: Sampling, guided: bool) -> tuple[jax.Array, jax.Array]:
  """Sequences, and what the full pass tells of them: the logits, and of null."""
  net, params = network("label", (2, 3, 2), 12)
  cond = CLASSES.with_null() if guided else CLASSES
  n = 6 if guided else 3
  start = decoding.begin(net, params, cond, n, 12)
  x = decoding.decode(*start, sample_keys(KEY, 3), 12, settings)
  logits = net.apply({"params": params}, jnp.concatenate([x] * (n // 3)), cond)
  return x, logits


@pytest.mark.parametrize("schedule", sampling.SCHEDULES)
def test_what_is_drawn(schedule):
  """Guided and filtered, number i by draw i of the sample's key."""
  settings = Sampling(0.7, 5, 0.8, 3.0, schedule)
  x, logits = drawn(settings, True)
  for i in range(12):
    own, null = jnp.split(logits[:, i], 2)
    p = (i + 1) / 12
    share = {"constant": 1, "linear": p, "cosine": np.sin(np.pi * p / 2) ** 2}[schedule]
    guided = null + (1 + 2 * share) * (own - null)
    kept = sampling.filtered(guided, settings)
    want = sampling.draw(kept, sample_keys(KEY, 3), jnp.asarray(i))
    np.testing.assert_array_equal(x[:, i], want)


def test_without_temperature_the_likeliest_is_drawn():
  x, logits = drawn(Sampling(temperature=0), False)
  np.testing.assert_array_equal(x, jnp.argmax(logits, -1))


def test_filters_by_hand():
  p = jnp.array([[0.1, 0.4, 0.2, 0.3]])
  kept = lambda logits: np.flatnonzero(np.isfinite(logits[0])).tolist()  # noqa: E731
  logits = jnp.log(p)
  assert kept(sampling.top_k(logits, 1)) == [1]
  assert kept(sampling.top_k(logits, 3)) == [1, 2, 3]
  assert (
    kept(sampling.top_k(logits, 4)) == kept(sampling.top_k(logits, 9)) == [*range(4)]
  )
  for share, want in [(0, [1]), (0.39, [1]), (0.6, [1, 3]), (0.8, [1, 2, 3])]:
    assert kept(sampling.top_p(logits, share)) == want
  assert kept(sampling.top_p(logits, 0.95)) == [0, 1, 2, 3]
  # What is kept is as it was.
  np.testing.assert_array_equal(
    sampling.top_p(logits, 0.6)[0, [1, 3]], logits[0, [1, 3]]
  )
  # The temperature comes first: at a high one all are alike, and more are needed.
  assert kept(sampling.filtered(logits, Sampling(100.0, 0, 0.6))) == [1, 2, 3]
  assert kept(sampling.filtered(logits, Sampling(1.0, 2, 0.9))) == [1, 3]


def test_draws_are_as_likely_as_told():
  keys = sample_keys(KEY, 4000)
  logits = jnp.log(jnp.tile(jnp.array([0.1, 0.2, 0.7]), (4000, 1)))
  found = np.bincount(sampling.draw(logits, keys, jnp.asarray(3))) / 4000
  np.testing.assert_allclose(found, [0.1, 0.2, 0.7], atol=0.03)


def test_rotary_positions_tell_differences_alone():
  q, k = draw(1, 1, 1, 1, 16), draw(2, 1, 1, 1, 16)

  def product(a: list[int], b: list[int]) -> float:
    turned = [
      rotate(x, rotary_angles(jnp.array([at]), 16)) for x, at in ((q, a), (k, b))
    ]
    return float(jnp.vdot(*turned))

  assert product([3, 5], [1, 9]) == pytest.approx(product([12, 5], [10, 9]), abs=1e-4)
  assert product([3, 5], [1, 9]) == pytest.approx(product([3, 25], [1, 29]), abs=1e-4)
  assert abs(product([3, 5], [1, 9]) - product([3, 5], [1, 8])) > 0.01
  assert abs(product([3, 5], [1, 9]) - product([3, 5], [2, 9])) > 0.01


@functools.cache
def prepared() -> tuple[ConfigDict, Family, State, dict]:
  config = config_of("label", sample__frames=4, sample__guidance_scale=2.0)
  family = make(config, Spec((2, 3, 3)))
  batch = {
    "x": jax.random.uniform(KEY, (3, 2, 3, 3), minval=-1, maxval=1),
    "cond": CLASSES,
    "_id": jnp.arange(3, dtype=jnp.uint32),
    "_mask": jnp.ones(3, bool),
  }
  state = jax.jit(family.init)(KEY, batch)
  weights = {"generator": shaken(state.params["generator"])}
  return config, family, state.replace(params=weights, ema=weights), batch


def test_the_canvas_fills_up_and_a_prefix_is_completed():
  config, family, state, batch = prepared()
  sample = jax.jit(lambda keys, cond: family.sample(state, keys, cond, len(keys)))
  keys = sample_keys(KEY, 3)
  images, frames, nfe = sample(keys, CLASSES)
  np.testing.assert_array_equal(nfe, [18] * 3)
  for frame, count in zip(frames, (0, 6, 12, 18), strict=True):
    flat = frame.reshape(3, 18)
    np.testing.assert_array_equal(flat[:, :count], images.reshape(3, 18)[:, :count])
    assert (flat[:, count:] == 0).all()
  # A sample is the same whatever is drawn beside it.
  alone = sample(keys[1:], jax.tree.map(lambda a: a[1:], CLASSES)).images
  np.testing.assert_array_equal(alone, images[1:])
  # The first half is kept, to the nearest grey level.
  given = Given(batch["x"], jnp.ones((3, 2, 3, 1)))
  edit = jax.jit(lambda given: family.edits["complete"](state, KEY, CLASSES, given))
  edited = edit(given)
  found = edited.images.reshape(3, 18)
  off = np.abs(found - batch["x"].reshape(3, 18))
  assert off[:, :9].max() <= 1 / 255 + 1e-6
  assert off[:, 9:].max(1).min() > 0.1
  # The film begins with what is given.
  beginning = edited.frames[0].reshape(3, 18)
  np.testing.assert_array_equal(beginning[:, :9], found[:, :9])
  assert (beginning[:, 9:] == 0).all()
  # Its own sample's first half is completed to it.
  again = edit(given._replace(images=images)).images
  np.testing.assert_array_equal(again, images)


def test_bits_a_dimension_of_grey_levels():
  """By hand: the cross-entropy of the levels, over their number."""
  config, family, state, batch = prepared()
  net = decoder.network(config, Spec((2, 3, 3)), 256)
  levels = jnp.round((batch["x"] + 1) * 127.5).astype(int).reshape(3, 18)
  params = {"params": state.params["generator"]}
  p = jax.nn.softmax(jax.jit(net.apply)(params, levels, CLASSES))
  own = np.take_along_axis(np.asarray(p), np.asarray(levels)[..., None], 2)
  want = -np.log2(own).mean((1, 2))
  found = jax.jit(family.evals["bpd"])(state, batch, KEY)
  np.testing.assert_allclose(found, want, rtol=1e-4)


@pytest.mark.parametrize(
  ("spec", "fields", "message"),
  [
    (Spec((2, 2, 1), pixels=False), {}, "draws pixels or tokens, not latents"),
    (Spec((2, 2, 1)), {"model__heads": 8}, "must be a multiple of 4 x model.heads=32"),
    (Spec((2, 2, 1)), {"sample__guidance_schedule": "linea"}, "did you mean 'linear'"),
    (Spec((2, 2, 1)), {"sample__edit": "complet"}, "did you mean 'complete'"),
    (Spec((2, 2, 1)), {"data__low_size": 4}, "reads no small picture"),
    (Spec((2, 2, 1)), {"sample__top_k": 257}, "more than the 256 values there are"),
    (
      Spec((2, 2, 1)),
      {"sample__guidance_scale": 2.0, "text__drop": 0.0},
      "set text.drop above 0",
    ),
  ],
)
def test_what_does_not_fit_is_refused(spec, fields, message):
  with pytest.raises(UserError, match=message):
    make(config_of(**fields), spec)


def test_dalle_tells_text_and_picture():
  """By the Jacobian: each byte and number depends on those before it, and no other."""
  shape, vocab = (1, 2, 1), 3
  net = decoder.transformer(config_of())
  stream = JointStream(TextItems(net.dim), net, shape, vocab)
  x, cond = jnp.array([[1, 2]] * 3), TEXT
  params = shaken(jax.jit(stream.init)(KEY, x, cond)["params"])

  def told(bytes_: jax.Array, padding: jax.Array, values: jax.Array) -> jax.Array:
    """[example, text and picture]: a number for each that is told."""
    text = params["encoder"] | {"bytes": {"embedding": bytes_}, "padding": padding}
    own = params | {"encoder": text, "values": {"embedding": values}}
    picture, text = stream.apply({"params": own}, x, cond)
    return jnp.concatenate([text.sum(-1), picture.sum(-1)], axis=1)

  leaves = params["encoder"]["bytes"]["embedding"], params["encoder"]["padding"]
  jacobian = jax.jit(jax.jacrev(told, (0, 1, 2)))
  of_bytes, of_padding, of_values = (
    np.abs(a).sum(-1) for a in jacobian(*leaves, params["values"]["embedding"])
  )
  before, mask = np.tri(6, k=-1, dtype=bool), np.asarray(cond.mask)
  for i in range(3):
    own = of_bytes[i][:, np.asarray(cond.tokens[i])] > 0
    np.testing.assert_array_equal(own, before[:, :4] & mask[i])
    np.testing.assert_array_equal(of_padding[i] > 0, before[:, :4] & ~mask[i])
    # The first number, 1, is read where the second is told.
    np.testing.assert_array_equal(of_values[i][:, 1] > 0, before[:, 4])
    assert (of_values[i][:, [0, 2]] == 0).all()
    assert (np.delete(of_bytes[i], np.asarray(cond.tokens[i]), axis=1) == 0).all()
  every = jnp.asarray(list(itertools.product(range(vocab), repeat=2)))
  one = jax.tree.map(lambda a: jnp.repeat(a[1:2], len(every), 0), cond)
  logits, _ = stream.apply({"params": params}, every, one)
  found = sequence.cross_entropy(logits, every).sum(1)
  np.testing.assert_allclose(np.exp(-found).sum(), 1, atol=1e-5)


def test_dalles_loss_is_an_eighth_text_and_the_rest_picture():
  config = load_config("configs/autoregressive/dalle.py")
  config.text.max_tokens, config.text.drop, config.sample.guidance_scale = 4, 0.0, 1.0
  family = make(config, Spec((2, 2, 1)))
  batch = {
    "x": jax.random.uniform(KEY, (3, 2, 2, 1), minval=-1, maxval=1),
    "cond": TEXT,
    "_id": jnp.arange(3, dtype=jnp.uint32),
    "_mask": jnp.ones(3, bool),
  }
  state = jax.jit(family.init)(KEY, batch)
  _, metrics = jax.jit(family.step)(state, batch, KEY)
  want = metrics["text_bits"] / 8 + metrics["bpd"] * 7 / 8
  np.testing.assert_allclose(metrics["loss"], want, rtol=1e-6)
  bpd = jax.jit(family.evals["bpd"])(state, batch, KEY)
  np.testing.assert_allclose(bpd.mean(), metrics["bpd"], rtol=1e-5)
  # What has no training yet tells every byte and level alike.
  np.testing.assert_allclose(metrics["text_bits"], np.log2(257), atol=0.1)
  config.text.encoder = "none"
  with pytest.raises(UserError, match="tells texts too: set text.encoder to 'bytes'"):
    make(config, Spec((2, 2, 1)))
