"""Dual encoders: losses by hand, the whole batch over devices, refusals."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from core import parallel
from core.errors import UserError
from core.family import Batch, Spec
from core.family import make as make_family
from core.train import train
from core.workdir import open_workdir
from pipelines import build, draw, inputs
from tests.runs import largest_difference, load_config
from text import clip, contrastive
from text.cond import Cond

N, D, T, B = 5, 3, 7.0, -2.0
RNG = np.random.default_rng(0)


def unit(x: np.ndarray) -> np.ndarray:
  return x / np.linalg.norm(x, axis=-1, keepdims=True)


U, V = (unit(RNG.normal(size=(N, D))) for _ in range(2))
# Captions 0 and 3 are equal, pictures 1 and 2 are, and pair 4 is padding.
MARKS = np.arange(4 * N, dtype=np.uint32).reshape(N, 2, 2)
MARKS[3, 1], MARKS[2, 0] = MARKS[0, 1], MARKS[1, 0]
MASK = np.arange(N) < 4
WRONG = np.array(
  [
    [0, 1, 1, 0, 0],
    [1, 0, 0, 1, 0],
    [1, 0, 0, 1, 0],
    [0, 1, 1, 0, 0],
    [1, 1, 1, 1, 0],
  ],
  bool,
)


def pairs(u=U, v=V) -> contrastive.Pairs:
  return contrastive.Pairs(*map(jnp.asarray, (u, v, MARKS, MASK)))


def softmax(z: np.ndarray) -> np.ndarray:
  """Of each row over its own entry and its negatives."""
  e = np.exp(z) * (WRONG | np.eye(N, dtype=bool))
  return e / e.sum(1, keepdims=True)


def test_equal_captions_and_pictures_are_no_negatives() -> None:
  batch = contrastive.gathered(pairs(), None)
  np.testing.assert_array_equal(contrastive.negatives(batch), WRONG)


def test_info_nce_and_its_gradient_by_hand() -> None:
  to_texts, to_images = softmax(T * U @ V.T), softmax(T * V @ U.T)
  want = -(np.log(np.diag(to_texts)) + np.log(np.diag(to_images))) / 2

  @jax.jit
  def loss(u, v, scale):
    batch = contrastive.gathered(pairs(u, v), None)
    return contrastive.info_nce(batch, scale)

  np.testing.assert_allclose(loss(U, V, T), want, rtol=1e-5)
  grads = jax.grad(lambda *a: loss(*a).sum(), (0, 1, 2))(U, V, T)
  # d loss / d logits: softmax - one-hot, of either direction.
  p, q = (np.asarray(a) - np.eye(N) for a in (to_texts, to_images))
  np.testing.assert_allclose(grads[0], T / 2 * (p + q.T) @ V, atol=1e-5)
  np.testing.assert_allclose(grads[1], T / 2 * (p.T + q) @ U, atol=1e-5)
  by_scale = ((p + q.T) * (U @ V.T)).sum() / 2
  np.testing.assert_allclose(grads[2], by_scale, rtol=1e-4)


def test_sigmoid_loss_and_its_gradient_by_hand() -> None:
  z = T * U @ V.T + B
  log = lambda z: -np.log1p(np.exp(-z))  # noqa: E731, log of the logistic function
  want = [
    -log(z[i, i]) - sum(log(-z[i, j]) for j in range(N) if WRONG[i, j])
    for i in range(N)
  ]

  @jax.jit
  def loss(u, v, scale, bias):
    batch = contrastive.gathered(pairs(u, v), None)
    return contrastive.sigmoid(batch, scale, bias)

  np.testing.assert_allclose(loss(U, V, T, B), want, rtol=1e-5)
  grads = jax.grad(lambda *a: loss(*a).sum(), (0, 1, 2, 3))(U, V, T, B)
  slope = WRONG / (1 + np.exp(-z)) - np.diag(1 / (1 + np.exp(np.diag(z))))
  np.testing.assert_allclose(grads[0], T * slope @ V, atol=1e-5)
  np.testing.assert_allclose(grads[1], T * slope.T @ U, atol=1e-5)
  np.testing.assert_allclose(grads[2], (slope * (U @ V.T)).sum(), rtol=1e-4)
  np.testing.assert_allclose(grads[3], slope.sum(), rtol=1e-4)


def test_found_is_the_nearest_caption() -> None:
  u = unit(np.array([[1.0, 0, 0], [0, 1, 0], [0, 0.6, 0.8], [1, 0, 0], [0, 0, 1]]))
  v = unit(np.array([[1.0, 0, 0], [0, 0, 1], [0, 1, 0], [0.9, 0.1, 0], [0, 0, 1]]))
  batch = contrastive.gathered(pairs(u, v), None)
  # 1 is as near to its own caption as to a wrong one: not found, and so is 4. 3 has
  # the caption of 0, which therefore is not wrong.
  np.testing.assert_array_equal(contrastive.found(batch), [1, 0, 1, 1, 0])


def test_marks_are_equal_only_for_equal_rows() -> None:
  rows = RNG.integers(0, 257, (2000, 48))
  rows = np.unique(rows, axis=0)
  near = rows[:1000].copy()
  near[np.arange(1000), np.arange(1000) % 48] ^= 1  # one bit of one byte
  found = jax.jit(contrastive.marks)(
    Cond(tokens=jnp.asarray(np.concatenate([rows, near])))
  )
  assert len(np.unique(found, axis=0)) == len(rows) + 1000
  again = contrastive.marks(Cond(tokens=jnp.asarray(rows[::-1].copy())))
  np.testing.assert_array_equal(found[: len(rows)][::-1], again)
  # Fields and places count; the two zeros are one number.
  x = jnp.asarray([[[0.0, 1.0]], [[1.0, 0.0]], [[-0.0, 1.0]]])
  a, b, c = contrastive.marks(x).tolist()
  assert a == c
  assert a != b


def config_for(backend: str, loss: str, **optim: float) -> ConfigDict:
  config = load_config("configs/text/clip.py")
  config.parallel.backend = backend
  config.clip.loss, config.data.batch_size = loss, 16
  config.model.depth = 1
  # The bias of attention's keys has no gradient but rounding, which Adam would magnify.
  config.optim.eps = 1e-4
  config.optim.update({"schedule": "constant", "learning_rate": 1e-3, **optim})
  config.train.steps = config.train.checkpoint_every = 3
  return config


def batch_of(config: ConfigDict, step: int) -> Batch:
  """Pictures and captions of which some come twice, on different devices."""
  n, size = config.data.batch_size, config.data.size
  draw = np.random.default_rng(step)
  x = draw.uniform(-1, 1, (n, size, size, 3)).astype(np.float32)
  x[n - 1] = x[2]
  words = [f"caption {i % (n - 3)}" for i in range(n)]
  return {
    "x": x,
    "cond": inputs.conditions(config, words, [0] * n),
    "_id": np.arange(step * n, (step + 1) * n, dtype=np.uint32),
    "_mask": np.arange(n) != 4,
  }


def trained(config: ConfigDict, workdir: Path):
  def batches(start: int):
    for step in range(start, config.train.steps + 1):
      yield batch_of(config, step)

  run = parallel.make(config.parallel)
  opened = open_workdir(str(workdir), config)
  return jax.device_get(train(config, build.family(config), run, batches, opened))


@pytest.mark.parametrize("sigmoid", [False, True])
def test_rows_of_all_devices_are_negatives(sigmoid: bool) -> None:
  """Losses and gradients of 16 pairs on 8 devices are those on one."""
  rng = np.random.default_rng(1)
  marks = rng.integers(0, 9, (16, 2, 1)).repeat(2, axis=2).astype(np.uint32)
  given = unit(rng.normal(size=(2, 16, D))), marks, rng.random(16) < 0.8

  def total(vectors, scale, rest, axis=None):
    own = contrastive.Pairs(*vectors, *rest)
    batch = contrastive.gathered(own, axis)
    losses = (
      contrastive.sigmoid(batch, scale, -scale)
      if sigmoid
      else contrastive.info_nce(batch, scale)
    )
    return jnp.sum(losses * own.mask), losses

  def step(u, v, rest, axis=None):
    grad = jax.grad(total, (0, 1), has_aux=True)
    (vectors, scale), losses = grad((u, v), jnp.asarray(T), rest, axis)
    return losses, vectors, scale if axis is None else jax.lax.psum(scale, axis)

  u, v = given[0]
  whole = jax.jit(step)(u, v, given[1:])
  cut = jax.tree.map(lambda a: a.reshape(8, 2, *a.shape[1:]), (u, v, given[1:]))
  parts = jax.pmap(lambda *a: step(*a, "batch"), axis_name="batch")(*cut)
  joined = jax.tree.map(
    lambda a, b: np.reshape(a, b.shape) if b.ndim else a[0], parts, whole
  )
  for a, b in zip(jax.tree.leaves(joined), jax.tree.leaves(whole), strict=True):
    np.testing.assert_allclose(a, b, atol=2e-5)


def test_eight_devices_equal_one(tmp_path: Path) -> None:
  """After three steps of the whole loop."""
  alone = trained(config_for("jit", "infonce"), tmp_path / "jit")
  state = trained(config_for("pmap", "infonce"), tmp_path / "pmap")
  assert largest_difference(alone.params, state.params) < 1e-5
  assert largest_difference(alone.ema, state.ema) < 1e-5


def test_scale_stays_below_a_hundred() -> None:
  config = config_for("jit", "infonce", learning_rate=10.0, warmup_steps=0)
  family = build.family(config)
  batch = batch_of(config, 0)
  state = jax.jit(family.init)(jax.random.key(0), batch)
  start = float(jnp.exp(state.params["clip"]["scale"]))
  np.testing.assert_allclose(start, 1 / 0.07, rtol=1e-6)
  high = {**state.params["clip"], "scale": jnp.log(99.0)}
  state, _ = jax.jit(family.step)(
    state.replace(params={"clip": high}), batch, jax.random.key(1)
  )
  assert float(jnp.exp(state.params["clip"]["scale"])) <= 100 + 1e-4


@pytest.mark.parametrize("image", clip.TOWERS)
def test_unit_vectors_and_the_loss_of_the_family(image: str) -> None:
  config = config_for("jit", "infonce")
  config.clip.image = image
  config.clip.crop = 1.0
  family, batch = build.family(config), batch_of(config, 0)
  state = jax.jit(family.init)(jax.random.key(0), batch)
  u = jax.jit(family.towers.images)(state, jnp.asarray(batch["x"]))
  v = jax.jit(family.towers.texts)(state, batch["cond"])
  for x in (u, v):
    np.testing.assert_allclose(np.linalg.norm(x, axis=1), 1, rtol=1e-5)
  # The same caption, the same vector.
  np.testing.assert_allclose(v[0], v[13], atol=1e-6)
  x, cond = jax.tree.map(jnp.asarray, (batch["x"], batch["cond"]))
  marks = [contrastive.marks(part) for part in (x, cond)]
  own = contrastive.Pairs(u, v, jnp.stack(marks, 1), jnp.asarray(batch["_mask"]))
  want = contrastive.info_nce(
    contrastive.gathered(own, None), jnp.exp(state.params["clip"]["scale"])
  )
  rng = jax.random.key(3)
  got = jax.jit(family.evals["loss"])(state, batch, rng)
  np.testing.assert_allclose(got, want, rtol=1e-4)
  _, metrics = jax.jit(family.step)(state, batch, rng)
  mean = np.asarray(want)[batch["_mask"]].mean()
  np.testing.assert_allclose(metrics["loss"], mean, rtol=1e-4)


def test_squares_are_enlarged_linearly() -> None:
  rows, columns = np.meshgrid(np.arange(8.0), np.arange(8.0), indexing="ij")
  x = jnp.asarray(np.stack([rows, columns], -1))[None].repeat(6, axis=0)
  keys = jax.random.split(jax.random.key(0), 6)
  np.testing.assert_allclose(clip.cropped(x, keys, 1.0), x, atol=1e-5)
  y = np.asarray(clip.cropped(x, keys, 0.5))
  # On a ramp each axis stays a ramp, of slope side in [0.5, 1], inside the picture.
  steps = np.diff(y[:, 1:-1, :, 0], axis=1), np.diff(y[:, :, 1:-1, 1], axis=2)
  slopes = [step.reshape(6, -1) for step in steps]
  np.testing.assert_allclose(slopes[0].std(1), 0, atol=1e-4)
  np.testing.assert_allclose(slopes[0].mean(1), slopes[1].mean(1), atol=1e-4)
  assert (slopes[0] >= 0.5 - 1e-4).all()
  assert (slopes[0] <= 1 + 1e-4).all()
  assert len(np.unique(slopes[0].mean(1).round(3))) == 6


def test_the_papers_network_has_its_parameters() -> None:
  """151,277,313 of OpenAI's ViT-B/32, with 257 bytes for 49,408 byte pairs."""
  config = load_config("configs/text/clip.py", "")
  shapes = build.shapes(config, build.family(config))
  count = sum(leaf.size for leaf in jax.tree.leaves(shapes.params))
  assert count == 151_277_313 - (49_408 - 257) * 512


@pytest.mark.parametrize(
  ("part", "changes", "words"),
  [
    ("clip", {"loss": "infonse"}, "did you mean 'infonce'"),
    ("clip", {"image": "vitt"}, "did you mean 'vit'"),
    ("text", {"encoder": "none"}, "text.encoder to 'bytes'"),
    ("text", {"encoder": "frozen"}, "text.frozen_output to .'pooled',."),
    ("text", {"drop": 0.1}, "text.drop=0.1"),
    ("optim", {"microbatches": 2}, "optim.microbatches=2"),
    ("model", {"patch": 3}, "patches of 3"),
    ("model", {"dropout": 0.1}, "model.dropout=0.1"),
  ],
)
def test_refusals(part: str, changes: dict, words: str) -> None:
  config = load_config("configs/text/clip.py")
  config[part].update(changes)
  with pytest.raises(UserError, match=words):
    build.shapes(config, build.family(config))


def test_other_input_than_pixels_is_refused() -> None:
  config = load_config("configs/text/clip.py")
  with pytest.raises(UserError, match="sees pixels"):
    make_family(config, Spec((4, 4, 8), pixels=False))
  config.clip.image, config.clip.crop = "efficientnet_lite0", 0.5
  with pytest.raises(UserError, match="whole pictures"):
    make_family(config, Spec((1, 1, 8), pixels=False))


def test_it_draws_nothing(tmp_path: Path) -> None:
  config = load_config("configs/text/clip.py")
  family, run = build.family(config), parallel.make(config.parallel)
  with pytest.raises(UserError, match="draws no pictures"):
    draw.request(config, family, run, lambda: None, ["red heart"], [], "")
