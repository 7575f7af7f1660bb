"""PixelCNN++ is causal, its masses sum to 1, and it draws what it tells."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import PyTree
from ml_collections import ConfigDict
from scipy import special

from core import logistic_mixture
from core.errors import UserError
from core.family import Family, Given, Spec, State, make, sample_keys
from nets.pixelcnn import PixelCNNPP
from tests.runs import load_config
from text.cond import Cond

KEY = jax.random.key(0)


def draw(i: int, *shape: int) -> jax.Array:
  return jax.random.normal(jax.random.fold_in(KEY, i), shape)


def shaken(params: PyTree) -> PyTree:
  """No weight as it starts."""
  leaves, form = jax.tree.flatten(params)
  leaves = [a + 0.2 * draw(9 + i, *a.shape) for i, a in enumerate(leaves)]
  return jax.tree.unflatten(form, leaves)


@pytest.mark.parametrize(("shape", "widths"), [((4, 8), (4, 6, 4)), ((4, 6), (4,))])
def test_each_pixel_sees_those_before_it(shape, widths):
  net, cond = PixelCNNPP(2, widths, 1), Cond(pooled=draw(1, 1, 3))
  x = draw(0, 1, *shape, 2)
  params = shaken(jax.jit(net.init)(KEY, x, cond))
  total = lambda x: net.apply(params, x, cond)[0].sum(-1)  # noqa: E731
  jacobian = np.abs(jax.jit(jax.jacrev(total))(x)).sum((2, -1))
  count = shape[0] * shape[1]
  reads = jacobian.reshape(count, count) > 0
  assert not reads[np.triu_indices(count)].any()
  # The pixel to the left, the three above, and in all most of what came before.
  rows, columns = np.divmod(np.arange(count), shape[1])
  for i in range(count):
    near = (rows[i] - rows == 1) & (abs(columns - columns[i]) <= 1)
    near |= (rows == rows[i]) & (columns[i] - columns == 1)
    assert reads[i, near].all()
  if len(widths) > 1:
    assert reads[-1].sum() > 0.6 * count


def test_the_mixture_by_hand():
  """Both ends included; in float64 by the definition."""
  x = np.array([[-1, 0.2, 1], [1, 1, -1], [-1 / 255, 127 / 255, 3 / 255]])
  x = np.round((x + 1) * 127.5) / 127.5 - 1
  raw = np.asarray(draw(0, 3, logistic_mixture.width(3, 2)), np.float64)
  each = raw.reshape(3, 2, 10)
  pi = special.softmax(each[..., 0], axis=-1)
  p = np.zeros(3)
  for n, i in itertools.product(range(3), range(2)):
    _, r, g, b, *log_s = each[n, i, :7]
    alpha, beta, gamma = np.tanh(each[n, i, 7:])
    means = [r, g + alpha * x[n, 0], b + beta * x[n, 0] + gamma * x[n, 1]]
    mass = 1.0
    for c in range(3):
      s = np.exp(-7 + np.log1p(np.exp(log_s[c] + 7)))  # the least scale, softly
      above = (
        1.0 if x[n, c] > 0.999 else special.expit((x[n, c] + 1 / 255 - means[c]) / s)
      )
      below = (
        0.0 if x[n, c] < -0.999 else special.expit((x[n, c] - 1 / 255 - means[c]) / s)
      )
      mass *= above - below
    p[n] += pi[n, i] * mass
  found = logistic_mixture.log_prob(
    jnp.asarray(x, jnp.float32), jnp.asarray(raw, jnp.float32), 2
  )
  np.testing.assert_allclose(found, np.log(p), rtol=1e-4)


def test_pixels_come_as_often_as_told():
  raw = 2 * draw(3, logistic_mixture.width(2, 3))
  n = 20_000
  keys = sample_keys(KEY, n)
  pixel = functools.partial(logistic_mixture.draw, channels=2, components=3)
  drawn = jax.jit(pixel)(jnp.tile(raw, (n, 1)), keys)
  levels = jnp.arange(256) / 127.5 - 1
  every = jnp.stack(jnp.meshgrid(levels, levels, indexing="ij"), axis=-1)
  tiled = jnp.broadcast_to(raw, (256, 256, len(raw)))
  p = np.exp(logistic_mixture.log_prob(every, tiled, 3))
  assert p.sum() == pytest.approx(1, abs=1e-4)
  places = np.round((np.asarray(drawn) + 1) * 127.5).astype(int)
  # In 8x8 cells, the ends of both channels in cells of their own.
  edges = np.array([0, 1, 40, 90, 128, 170, 215, 255, 256])
  cells = np.add.reduceat(np.add.reduceat(p, edges[:-1], 0), edges[:-1], 1)
  counts, *_ = np.histogram2d(*places.T, bins=[edges, edges])
  np.testing.assert_allclose(counts / n, cells, atol=0.015)
  assert cells[0].sum() > 0.01  # the ends matter
  assert cells[:, -1].sum() > 0.01


@functools.cache
def prepared() -> tuple[Family, State, dict]:
  config: ConfigDict = load_config("configs/autoregressive/pixelcnn_pp.py")
  config.text.encoder, config.text.classes = "label", 2
  config.model.widths, config.sample.frames = (4, 4), 3
  family = make(config, Spec((2, 4, 3)))
  batch = {
    "x": jax.random.uniform(KEY, (3, 2, 4, 3), minval=-1, maxval=1),
    "cond": Cond(label=jnp.array([0, 1, 1])),
    "_id": jnp.arange(3, dtype=jnp.uint32),
    "_mask": jnp.ones(3, bool),
  }
  state = jax.jit(family.init)(KEY, batch)
  weights = {"generator": shaken(state.params["generator"])}
  return family, state.replace(params=weights, ema=weights), batch


def test_samples_their_films_and_completion():
  family, state, batch = prepared()
  cond = batch["cond"]
  sample = jax.jit(lambda keys, cond: family.sample(state, keys, cond, len(keys)))
  keys = sample_keys(KEY, 3)
  images, frames, nfe = sample(keys, cond)
  np.testing.assert_array_equal(nfe, [8] * 3)
  np.testing.assert_array_equal(frames[1, :, 0], images[:, 0])
  assert (frames[1, :, 1] == 0).all()
  alone = sample(keys[1:], jax.tree.map(lambda a: a[1:], cond)).images
  np.testing.assert_allclose(alone, images[1:], atol=1e-6)
  given = Given(images, jnp.ones((3, 2, 4, 1)))
  edit = jax.jit(lambda given: family.edits["complete"](state, KEY, cond, given))
  again = edit(given)
  np.testing.assert_allclose(again.images, images, atol=1e-6)
  np.testing.assert_array_equal(again.nfe, [4] * 3)
  other = edit(given._replace(images=-images)).images
  np.testing.assert_allclose(other[:, 0], -images[:, 0], atol=1e-6)


def test_the_class_matters_to_its_own_picture_alone():
  family, state, batch = prepared()
  bpd = jax.jit(family.evals["bpd"])
  before = bpd(state, batch, KEY)
  after = bpd(state, batch | {"cond": Cond(label=jnp.array([0, 0, 1]))}, KEY)
  changed = np.abs(after - before)
  assert changed[1] > 0.01
  assert changed[0] == changed[2] == 0


@pytest.mark.parametrize(
  ("spec", "field", "value", "message"),
  [
    (Spec((8, 8, 1), pixels=False), "sample.top_k", 0, "draws pixels, not latents"),
    (Spec((8, 8, 1)), "sample.temperature", 0.5, "no use for sample.temperature=0.5"),
    (Spec((8, 8, 1)), "text.drop", 0.1, "no use for text.drop=0.1"),
    (Spec((8, 8, 1)), "sample.guidance_scale", 2.0, "without guidance"),
    (Spec((8, 8, 1)), "data.low_size", 4, "reads no small picture"),
    (Spec((8, 8, 1)), "autoregressive.draws", 1, "no use for autoregressive.draws=1"),
  ],
)
def test_what_does_not_fit_is_refused(spec, field, value, message):
  config = load_config("configs/autoregressive/pixelcnn_pp.py")
  config.update_from_flattened_dict({field: value})
  with pytest.raises(UserError, match=message):
    make(config, spec)


@pytest.mark.parametrize(
  ("widths", "message"),
  [((4, 4, 4), "6x5 cannot be halved 2 times"), ((4, 4), "6x5 cannot be halved once")],
)
def test_pictures_that_cannot_be_halved_are_refused(widths, message):
  with pytest.raises(UserError, match=message):
    PixelCNNPP(2, widths, 1).init(KEY, jnp.zeros((1, 6, 5, 1)), Cond())
