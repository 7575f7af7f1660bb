"""What a dual encoder is for: retrieval, alignment of samples, choosing among them."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from core import parallel
from core.checkpoint import Checkpoints
from core.errors import UserError
from core.family import Family, Samples, State, Towers
from core.workdir import open_workdir
from data.dataset import Dataset, Example
from eval import aligned, evaluate, features, images, retrieval
from eval.metrics import alignment
from pipelines import build, draw, dual, inputs, rerank
from pipelines.embed import Dual, Embedder
from tests.runs import command, load_config, on_folder, picture_folder, run
from tests.test_scoring import devices, stand_in
from text.cond import Cond

SIZE, COUNT = 4, 12
RNG = np.random.default_rng(0)


def unit(angle):
  """A direction in the plane."""
  return jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=-1)


# A picture's first pixel, and a caption's number, are the angle they lie at.
def angle_of(x):
  return jnp.pi * x[:, 0, 0, 0] / 2


def number_of(caption: str) -> float:
  """'class 3' lies at 0.3, and what is said in German 0.2 further."""
  word, number = caption.split()
  return int(number) / 10 + (0.2 if word == "Klasse" else 0.0)


def raw(captions) -> Cond:
  return Cond(pooled=np.asarray([[number_of(c)] for c in captions], np.float32))


JUDGE = Dual(
  name=dual.OWN,
  origin={"clip": "here", "clip_sha256": "0"},
  size=SIZE,
  params={"shift": jnp.zeros(())},
  embed_images=lambda params, x: unit(angle_of(x) + params["shift"]),
  embed_texts=lambda params, cond: unit(cond.pooled[:, 0]),
  conditions=raw,
)


def dataset(n: int = COUNT) -> Dataset:
  captions = [{"en": (f"class {i % 9}",), "de": (f"Klasse {i % 9}",)} for i in range(n)]

  def read(i: int) -> Example:
    level = round((i % 9 / 10 / (np.pi / 2) + 1) * 127.5)
    pixels = np.full((SIZE, SIZE, 3), level, np.uint8)
    return Example(pixels, captions[i], i % 9)

  return Dataset(
    "numbers", n, read, shape=(SIZE, SIZE, 3), captions=captions.__getitem__,
    classes=[f"class_{i}" for i in range(9)], languages=("en", "de"),
  )  # fmt: skip


def drawing(off: float, spread: float = 0.0) -> Family:
  """Draws each class `off` beside where it should lie."""

  def sample(state: State, keys: jax.Array, cond: Cond, n: int) -> Samples:
    noise = jax.vmap(jax.random.normal)(keys) * spread
    angle = cond.label / 10 + off + noise
    shape = (n, SIZE, SIZE, 3)
    x = jnp.broadcast_to((angle / (jnp.pi / 2))[:, None, None, None], shape)
    return Samples(x, x[None], jnp.ones(n, int))

  return Family(init=None, step=None, sample=sample, evals={})


def state() -> State:
  weights = {"generator": jnp.zeros(1)}
  return State(jnp.asarray(7), weights, {}, weights, {})


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ConfigDict:
  monkeypatch.setenv("TAOLU_CACHE", str(tmp_path / "cache"))
  monkeypatch.setattr(dual, "load", lambda *_: JUDGE)
  config = load_config("configs/quickstart.py")
  config.text.update({"encoder": "label", "classes": 9})
  config.data.update({"size": SIZE, "languages": ("en", "de")})
  config.eval.num_images, config.eval.batch_size = 0, 8
  config.eval.clip = "here"
  return config


def scored(config: ConfigDict, folder: Path, metric: str, family: Family) -> dict:
  load = lambda split: dataset()  # noqa: E731
  made = evaluate.Scorer(config, family, devices(2), folder, (metric,), load)
  return {r["metric"]: r for r in made(state())["scores"]}


def test_samples_and_their_captions(config: ConfigDict, tmp_path: Path) -> None:
  """Pictures 0.1 beside their English captions, so 0.1 before the German ones."""
  found = scored(config, tmp_path, "clip", drawing(0.1))
  own, others, real = found.values()
  assert own["metric"] == "alignment score (project-trained)"
  np.testing.assert_allclose(own["value"], 100 * np.cos(0.1), atol=0.1)
  for code in ("en", "de"):
    np.testing.assert_allclose(own["by_language"][code], 100 * np.cos(0.1), atol=0.1)
    np.testing.assert_allclose(own["by_prompt"][code], 100 * np.cos(0.1), atol=0.1)
  # Classes 0 to 2 come twice among twelve pictures.
  kinds = np.arange(COUNT) % 9
  wrong = kinds[:, None] != kinds
  scores = 100 * np.cos(kinds[:, None] / 10 + 0.1 - kinds / 10)[wrong]
  np.testing.assert_allclose(others["by_language"]["en"], scores.mean(), atol=0.1)
  assert others["value"] < own["value"]
  np.testing.assert_allclose(real["by_language"]["en"], 100, atol=0.1)
  np.testing.assert_allclose(real["by_language"]["de"], 100 * np.cos(0.2), atol=0.1)
  # What judges is told beside each number, and how well it finds real pictures.
  for record in found.values():
    assert record["clip_sha256"] == "0"
    assert record["num_samples"] == COUNT
    assert record["retrieval_split"] == config.data.eval_split
    told = record["retrieval"]
    # 0.2 beside their captions: two classes further, which the last two have not.
    assert told["en"]["image_to_text_R@1"] == 1
    assert told["de"]["text_to_image_R@1"] == pytest.approx(1 / 9)
    assert told["de"]["pairs"] == 9


def test_samples_that_are_nearest_to_their_own_pictures(
  config: ConfigDict, tmp_path: Path
) -> None:
  """Those three classes further are nearest to another's, but for the last class."""
  own = scored(config, tmp_path, "recognised", drawing(0.0))["recognised"]
  assert own["value"] == 1
  assert own["by_language"] == {"en": 1, "de": 1}
  assert own["chance"] == pytest.approx(18 / 144)
  config.sample.seed = 1
  off = scored(config, tmp_path, "recognised", drawing(0.3))["recognised"]
  assert off["value"] == pytest.approx(1 / 12)
  config.text.encoder = "none"
  with pytest.raises(UserError, match="asks whether a picture is what was asked for"):
    scored(config, tmp_path, "recognised", drawing(0.0))


def test_a_dual_encoder_that_saw_the_pictures_is_told(
  config: ConfigDict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  theirs = ConfigDict(config.data.to_dict())
  theirs.train_split = "all"
  monkeypatch.setattr(dual, "load", lambda *_: JUDGE._replace(data=theirs))
  own, *_ = scored(config, tmp_path, "clip", drawing(0.1)).values()
  assert own["warning"] == "the dual encoder was trained on these pictures"
  theirs.train_split, theirs.name = "train", "others"
  assert "other data" in aligned.seen_in_training(theirs, config.data)
  theirs.name = config.data.name
  assert aligned.seen_in_training(theirs, config.data) == ""


def test_retrieval_of_a_family(config: ConfigDict, tmp_path: Path) -> None:
  """R@1 by hand: German captions lie two classes further than their pictures."""
  towers = Towers(
    lambda state, x: unit(angle_of(x)), lambda state, cond: unit(cond.pooled[:, 0])
  )
  family = drawing(0)._replace(towers=towers, sample=None)
  config.text.encoder = "bytes"
  real, inputs.conditions = (
    inputs.conditions,
    lambda config, captions, labels: raw(captions),
  )
  try:
    found = scored(config, tmp_path, "retrieval", family)
  finally:
    inputs.conditions = real
  first = found["text-to-image-R@1"]
  assert first["by_language"] == {"en": 1, "de": pytest.approx(1 / 9)}
  assert first["value"] == pytest.approx(5 / 9)
  assert first["chance"] == pytest.approx(1 / 9)
  assert found["image-to-text-R@10"]["by_language"] == {"en": 1, "de": 1}
  assert found["image-to-text-R@10"]["chance"] == 1
  np.testing.assert_allclose(found["alignment"]["by_language"]["en"], 100, atol=0.1)
  assert evaluate.in_training(config, family) == ("retrieval",)
  load = lambda split: dataset()  # noqa: E731
  assert evaluate.usual(config, family, load) == ("retrieval",)
  config.text.encoder = "label"
  with pytest.raises(UserError, match="metric 'retrieval' is of dual encoders"):
    scored(config, tmp_path, "retrieval", family)


def test_of_equal_captions_the_first_counts() -> None:
  x = np.eye(4, dtype=np.float32)
  captions = {"en": ["a", "b", "A ", ""], "ja": ["", "", "", ""]}
  texts = {"a": x[0], "b": x[1], "A ": x[0]}
  found = retrieval.by_language(
    x, captions, lambda own: np.stack([texts[c] for c in own])
  )
  assert list(found) == ["en"]
  assert found["en"].pairs == 2
  assert found["en"].image_to_text == {1: 1, 10: 1}
  np.testing.assert_allclose(found["en"].true, 100 * 2 / 3, rtol=1e-6)


@pytest.mark.parametrize("kinds", [[0, 1, 2, 3, 4, 5], [0, 1, 0, 2, 1, 0]])
def test_mismatched_is_the_mean_over_others(kinds) -> None:
  u, v = RNG.normal(size=(2, 6, 3))
  cosines = (u / np.linalg.norm(u, axis=1)[:, None]) @ (
    v / np.linalg.norm(v, axis=1)[:, None]
  ).T
  wrong = np.asarray(kinds)[:, None] != np.asarray(kinds)
  got = alignment.mismatched(u, v, [str(kind) for kind in kinds])
  np.testing.assert_allclose(got, 100 * cosines[wrong].mean(), rtol=1e-5)
  assert np.isnan(alignment.mismatched(u, v, ["one"] * 6))


def test_the_best_of_many(config: ConfigDict, tmp_path: Path) -> None:
  config.sample.per_prompt, config.sample.rerank = 2, 8
  family, one = drawing(0.0, spread=0.2), devices(1)
  asked = ["class_3", "5"], [], ""
  draw.request(config, family, one, dataset, *asked)(state(), tmp_path / "best")
  config.sample.per_prompt, config.sample.rerank = 8, 0
  draw.request(config, family, one, dataset, *asked)(state(), tmp_path / "all")
  best, every = (
    np.load(tmp_path / name / "samples.npz", allow_pickle=False)
    for name in ("best", "all")
  )
  angles = np.pi / 2 * (every["images"][:, 0, 0, 0] / 127.5 - 1)
  scores = 100 * np.cos(angles - np.repeat([0.3, 0.5], 8))
  rows = [*np.argsort(-scores[:8])[:2], *8 + np.argsort(-scores[8:])[:2]]
  np.testing.assert_array_equal(best["images"], every["images"][rows])
  np.testing.assert_array_equal(best["frames"], every["frames"][:, rows])
  np.testing.assert_allclose(best["scores"], scores[rows], rtol=1e-4)
  assert list(best["prompts"]) == ["class_3", "class_3", "5", "5"]


@pytest.mark.parametrize(
  ("part", "changes", "edits", "words"),
  [
    ("sample", {"rerank": 3}, False, "fewer than the sample.per_prompt=4"),
    ("eval", {"clip": ""}, False, "needs a dual encoder"),
    ("text", {"encoder": "none"}, False, "set it to 0"),
    ("sample", {}, True, "set it to 0"),
  ],
)
def test_what_reranking_refuses(
  config: ConfigDict, part, changes, edits, words
) -> None:
  config.sample.rerank = 8
  config[part].update(changes)
  with pytest.raises(UserError, match=words):
    rerank.check(config, edits)


def test_what_the_metric_refuses(config: ConfigDict, tmp_path: Path) -> None:
  config.text.encoder = "none"
  with pytest.raises(UserError, match="without captions"):
    aligned.check(config)
  config.text.encoder, config.data.languages = "label", ("fr",)
  with pytest.raises(UserError, match=r"no captions in data.languages=.'fr'.*'clip'"):
    scored(config, tmp_path, "clip", drawing(0.1))
  config.eval.clip = ""
  with pytest.raises(UserError, match="name in eval.clip"):
    aligned.check(config)


def saved(config: ConfigDict, workdir: Path) -> tuple[Family, State]:
  """A run whose weights are as they started."""
  family = build.family(config)
  init = jax.jit(family.init)
  state = init(jax.random.key(0), build.example_batch(config))
  open_workdir(str(workdir), config)
  build.pin(config, workdir)
  checkpoints = Checkpoints(workdir)
  checkpoints.save(0, state)
  checkpoints.wait()
  checkpoints.close()
  return family, state


def pictures(n: int = 5, size: int = 8) -> np.ndarray:
  return RNG.integers(0, 256, (n, size, size, 3)).astype(np.uint8)


def test_a_workdir_as_frozen_functions(tmp_path: Path) -> None:
  config = load_config("configs/text/clip.py")
  config.parallel.backend = "jit"
  family, state = saved(config, tmp_path)
  judge = dual.load(str(tmp_path), config.parallel)
  assert judge.name == "alignment score (project-trained)"
  assert judge.origin["clip_step"] == 0
  assert judge.data.train_split == "train"
  embed = Embedder(judge, parallel.make(config.parallel), 4)
  x, captions = pictures(), ["red heart", "红心", "red heart"]
  got = embed.images(images.of_array("x", x))
  scaled = jnp.asarray(x * np.float32(2 / 255) - 1)
  want = jax.jit(family.towers.images)(state, scaled)
  np.testing.assert_allclose(got, want, atol=1e-5)
  cond = inputs.conditions(config, captions, [0] * 3)
  want = jax.jit(family.towers.texts)(state, cond)
  np.testing.assert_allclose(embed.texts(captions), want, atol=1e-5)
  # Grey pictures of another size are as colour ones of that.
  large = np.repeat(np.repeat(x[..., :1], 2, 1), 2, 2)
  grey = judge.embed_images(judge.params, jnp.asarray(large / 127.5 - 1, jnp.float32))
  both = embed.images(images.of_array("x", np.repeat(large, 3, -1)))
  np.testing.assert_allclose(grey, both, atol=1e-3)


def test_what_is_no_dual_encoder_is_refused(tmp_path: Path) -> None:
  settings = load_config("configs/text/clip.py").parallel
  with pytest.raises(UserError, match="neither a run nor a model in eval.clip"):
    dual.load(str(tmp_path / "none"), settings)
  for changes, words in (
    ({"family": "vae.vae"}, "is of vae.vae"),
    ({"family": "text.clip", "text": {"encoder": "label"}}, "knows classes"),
  ):
    (tmp_path / "config.json").write_text(json.dumps(changes), encoding="utf-8")
    with pytest.raises(UserError, match=words):
      dual.load(str(tmp_path), settings)


def test_a_map_of_frozen_features(
  tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  """Trained on features found once, and fed with pixels afterwards."""
  net = stand_in()
  monkeypatch.setenv("TAOLU_CACHE", str(tmp_path / "cache"))
  monkeypatch.setattr(features, "load", lambda *_, **__: net)
  config = load_config("configs/text/clip.py")
  config.parallel.backend, config.clip.crop = "jit", 1.0
  config.clip.image, config.data.size = "efficientnet_lite0", 4
  config.data.languages = ("en",)
  build.features._net.cache_clear()
  data = dataset()
  seen = inputs.encoded(config, data, "train")
  assert seen[3].image.shape == (1, 1, 5)
  assert seen.captions(3) == data.captions(3)
  with monkeypatch.context() as patched:
    # The picture that stands in for one that cannot be read has its own captions.
    patched.setattr(data, "captions", lambda i: {})
    assert (
      seen[5].captions == data[5].captions == {"en": ("class 5",), "de": ("Klasse 5",)}
    )
  batch = next(inputs.train_stream(config, data)(0))
  assert batch["x"].shape == (8, 1, 1, 5)
  family, state = saved(config, tmp_path / "run")
  assert state.params["clip"]["towers"]["image"]["head"]["kernel"].shape == (5, 8)
  state, metrics = jax.jit(family.step)(state, batch, jax.random.key(0))
  assert np.isfinite(metrics["loss"])
  judge = dual.load(str(tmp_path / "run"), config.parallel)
  embed = Embedder(judge, parallel.make(config.parallel), 4)
  got = embed.images(images.of_dataset(data, "train"))
  x = np.stack([seen[i].image for i in range(COUNT)])
  again = judge.params[0]
  np.testing.assert_allclose(
    got, family.towers.images(again, jnp.asarray(x)), atol=1e-4
  )
  # Other weights of the same name are refused.
  monkeypatch.setattr(features, "load", lambda *_, **__: stand_in("1" * 64))
  build.features._net.cache_clear()
  with pytest.raises(
    UserError, match="clip.image='efficientnet_lite0' has other weigh"
  ):
    dual.load(str(tmp_path / "run"), config.parallel)
  build.features._net.cache_clear()


@pytest.mark.slow
def test_from_the_command_line(tmp_path: Path) -> None:
  """It trains by the one loop, is scored, and draws nothing."""
  folder = picture_folder(tmp_path / "pictures")
  argv = command(
    tmp_path / "run", *on_folder(folder), config="configs/text/clip.py:tiny"
  )
  done = run(argv)
  assert done.returncode == 0, done.stderr
  lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
  logged = {key for line in lines for key in json.loads(line)}
  assert {"loss", "accuracy", "scale", "eval/loss", "eval/text-to-image-R@1"} <= logged
  refused = run([*argv, "--mode=sample", "--prompt=red"])
  assert refused.returncode == 2
  assert "draws no pictures" in refused.stderr
