"""Scores of what a run draws, with a generator whose pictures say what they were."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from core.errors import UserError
from core.family import Family, Samples, State
from data.dataset import Dataset, Example
from eval import evaluate, features
from pipelines.drawn import Drawn
from tests.runs import load_config
from tests.test_scoring import devices, stand_in

SIZE = 8


def draws(state: State, keys: jax.Array, cond: object, n: int) -> Samples:
  """Left half: the class; right half: noise of the key; all times the weight."""
  noise = jax.vmap(lambda key: jax.random.uniform(key, (SIZE, SIZE // 2, 3)))(keys)
  left = jnp.broadcast_to(cond.label[:, None, None, None] / 10, noise.shape)
  pictures = jnp.concatenate([left, noise], axis=2) * state.ema["generator"]["scale"]
  return Samples(pictures, jnp.stack([pictures] * 3), jnp.full(n, 5))


FAMILY = Family(init=None, step=None, sample=draws, evals={})


def state(scale: float = 0.5, step: int = 7) -> State:
  weights = {"generator": {"scale": jnp.asarray(scale)}}
  return State(jnp.asarray(step), weights, {}, weights, {})


def dataset(classes: int = 10, n: int = 40, shift: int = 0) -> Dataset:
  captions = [{"en": (f"class {i % classes}",)} for i in range(n)]

  def read(i: int) -> Example:
    pixels = np.random.default_rng(i + shift).integers(0, 256, (SIZE, SIZE, 3))
    return Example(pixels.astype(np.uint8), captions[i], i % classes)

  return Dataset(
    "numbers", n, read, shape=(SIZE, SIZE, 3), captions=captions.__getitem__,
    classes=[str(i) for i in range(classes)], languages=("en",),
  )  # fmt: skip


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ConfigDict:
  monkeypatch.setenv("TAOLU_CACHE", str(tmp_path / "cache"))
  monkeypatch.setattr(features, "load", lambda *_: stand_in())
  config = load_config("configs/quickstart.py")
  config.text.update({"encoder": "label", "classes": 10})
  config.eval.num_images, config.eval.batch_size = 30, 8
  return config


def drawn(config: ConfigDict, folder: Path, run=None, **changes) -> np.ndarray:
  run = run or devices(1)
  count = config.eval.num_images
  made = Drawn(config, FAMILY, run, folder, changes.pop("data", dataset()), count)
  return made(state(**changes))


def test_pictures_are_of_their_conditions_and_their_own_noise(
  config: ConfigDict, tmp_path: Path
) -> None:
  made = drawn(config, tmp_path)
  assert made.shape == (30, SIZE, SIZE, 3)
  labels = np.rint((made[:, 0, 0, 0] / 127.5 - 1) * 20).astype(int)
  # 30 of 40 examples, each once: every class comes, none more than 4 times.
  counts = np.bincount(labels, minlength=10)
  assert counts.sum() == 30
  assert counts.max() <= 4
  right = made[:, :, SIZE // 2 :].reshape(30, -1)
  assert len(np.unique(right, axis=0)) == 30
  for run, size in ((devices(4), 4), (devices(8), 16), (devices(1), 30)):
    config.eval.batch_size = size
    (tmp_path / "samples" / "eval.npz").unlink()
    np.testing.assert_array_equal(drawn(config, tmp_path, run), made)


def test_pictures_are_drawn_again_only_if_something_changed(
  config: ConfigDict, tmp_path: Path
) -> None:
  file = tmp_path / "samples" / "eval.npz"
  first = drawn(config, tmp_path)

  def again(**changes: object) -> bool:
    before = file.stat().st_mtime_ns
    drawn(config, tmp_path, **changes)
    return file.stat().st_mtime_ns != before

  assert not again()
  assert again(scale=0.6)  # the same step of another run
  assert again()
  assert again(step=8)
  again()
  assert again(data=dataset(classes=9))
  again()
  config.sample.num_images = 5  # only how a grid is shown
  assert not again()
  for field, value in (("steps", 3), ("guidance_scale", 9.0), ("clip", False)):
    config.sample[field] = value
    assert again()
  config.sample.seed = 5
  assert again()
  assert (drawn(config, tmp_path) != first).any()
  file.write_bytes(file.read_bytes()[:99])
  assert again()


def test_pictures_that_are_not_finite_are_refused(
  config: ConfigDict, tmp_path: Path
) -> None:
  with pytest.raises(UserError, match="pictures 0 to 7 drawn at step 7 are not finite"):
    drawn(config, tmp_path, scale=np.nan)


SPLITS = {
  "train": dataset(),
  "test": dataset(shift=1000),
  "all": dataset(),
  "copy": dataset(),
}


def scorer(
  config: ConfigDict, folder: Path, *metrics: str, family: Family = FAMILY
) -> evaluate.Scorer:
  load = SPLITS.__getitem__
  return evaluate.Scorer(config, family, devices(1), folder, metrics, load)


def test_records_tell_where_a_number_comes_from(
  config: ConfigDict, tmp_path: Path, capsys
) -> None:
  config.data.eval_split = "test"
  scorer(config, tmp_path, "fd", "kid", "memorisation").write(state())
  printed = json.loads(capsys.readouterr().out)
  assert printed == json.loads((tmp_path / "eval.json").read_text())
  assert printed["step"] == 7
  assert printed["FD-StandIn"] == printed["scores"][0]["value"]
  for record in printed["scores"]:
    origin = {key: record[key] for key in (
      "num_samples", "num_reference", "reference", "seed", "sampler", "steps",
      "guidance_scale", "nfe", "ema", "features", "weights_sha256", "resize",
    )}  # fmt: skip
    assert origin["num_samples"] == 30
    assert origin["num_reference"] == 40
    assert origin["reference"] == "numbers:train"
  lines = (tmp_path / "scores.jsonl").read_text().splitlines()
  assert [json.loads(line) for line in lines] == printed["scores"]
  assert (tmp_path / "samples" / "neighbours.png").exists()
  with np.load(tmp_path / "samples" / "memorisation.npz") as saved:
    assert saved["samples"].shape == (30, 3)
    assert saved["held_out"].shape == (40,)


def test_a_family_that_keeps_no_average_of_its_weights_names_none(
  config: ConfigDict, tmp_path: Path
) -> None:
  config.data.eval_split, config.data.languages = "test", ("en",)
  evals = {"loss": lambda state, batch, rng: jnp.ones(len(batch["x"]))}
  for averages in (True, False):
    family = FAMILY._replace(evals=evals, averages=averages)
    found = scorer(config, tmp_path, "loss", "fd", family=family)(state())["scores"]
    assert [record["metric"] for record in found] == ["loss", "FD-StandIn"]
    assert ["ema" in record for record in found] == [averages] * 2


def test_a_record_tells_what_its_number_depends_on(
  config: ConfigDict, tmp_path: Path
) -> None:
  config.data.eval_split, config.data.languages = "test", ("en",)
  evals = {
    name: lambda state, batch, rng: jnp.ones(len(batch["x"])) for name in ("bpd", "kl")
  }
  family = FAMILY._replace(evals=evals, details={"bpd": {"draws": 7}})
  found = scorer(config, tmp_path, "bpd", "kl", family=family)(state())["scores"]
  assert [record.get("draws") for record in found] == [7, None]


def test_memorisation_is_measured_against_the_training_split(
  config: ConfigDict, tmp_path: Path
) -> None:
  config.data.eval_split = config.eval.reference_split = "test"
  found = scorer(config, tmp_path, "memorisation")(state())["scores"]
  with np.load(tmp_path / "samples" / "memorisation.npz") as saved:
    assert saved["held_out"].min() > 0  # were it the reference, each would find itself
  assert found[0]["held_out"] == "numbers:test"
  config.data.eval_split = "all"
  with pytest.raises(UserError, match="40 of the 40 in numbers:all are in numbers:tra"):
    scorer(config, tmp_path, "memorisation")


def test_what_is_usual_is_what_the_pictures_allow(config: ConfigDict, capsys) -> None:
  def usual(split: str, count: int) -> tuple[str, ...]:
    config.data.eval_split, config.eval.num_images = split, count
    return evaluate.usual(config, FAMILY, SPLITS.__getitem__)

  assert usual("test", 30) == ("fd", "kid", "prdc", "memorisation")
  assert usual("all", 30) == usual("train", 30) == ("fd", "kid", "prdc")
  assert usual("copy", 0) == ("fd", "kid", "prdc")
  assert "holds training pictures" in capsys.readouterr().err
  assert usual("test", 5) == ("fd", "kid")
  assert "prdc is left out: it needs 6 pictures, not 5" in capsys.readouterr().err
  assert usual("test", 1) == ()


def test_reconstructions_are_scored_where_pictures_are_large_enough(
  config: ConfigDict, capsys
) -> None:
  config.data.train_split, config.data.eval_split = "train", "all"
  config.eval.num_images = 1
  codec = FAMILY._replace(edits={"reconstruct": None})

  def usual(size: int) -> tuple[str, ...]:
    config.data.size = size
    return evaluate.usual(config, codec, SPLITS.__getitem__)

  assert usual(8) == ("rfd", "psnr")
  assert "ssim is left out: it needs pictures of 11 pixels" in capsys.readouterr().err
  assert usual(16) == ("rfd", "psnr", "ssim", "lpips")
  assert evaluate.in_training(config, codec) == ("psnr",)


def test_in_training_it_is_numbers(config: ConfigDict, tmp_path: Path) -> None:
  made = scorer(config, tmp_path, "fd", "prdc").log(state())
  assert set(made) == {
    f"eval/{name}-StandIn"
    for name in ("FD", "precision", "recall", "density", "coverage")
  }
  config.eval.num_images = 5
  with pytest.raises(UserError, match="prdc needs 6 pictures or more, and there are 5"):
    scorer(config, tmp_path, "prdc")
  with pytest.raises(UserError, match="did you mean 'kid'"):
    scorer(config, tmp_path, "kidd")
