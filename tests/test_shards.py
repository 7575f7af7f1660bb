"""Shards as a data set: tar files as img2dataset writes them, and ArrayRecord."""

import io
import json

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter

from configs import base
from core.errors import UserError
from data import batches, shard_index, source, tars
from data.folder import split_of
from tests.shards import colour, encoded, sample, squares, write_shard
from text.cond import Cond


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
  monkeypatch.setenv("TAOLU_CACHE", str(tmp_path / "cache"))


def config_of(path, **more):
  config = base.get_config().data
  config.update(name="shards", path=str(path), size=8, languages=("en",), **more)
  return config


def load(path, split="all", **more):
  return source.load(config_of(path, **more), split)


def two_shards(tmp_path):
  folder = tmp_path / "shards"
  write_shard(folder / "00000.tar", squares(0, 30))
  write_shard(folder / "00001.tar", squares(30, 10))
  (folder / "00000.parquet").write_bytes(b"metadata")
  (folder / "00000_stats.json").write_text("{}")
  return folder


def test_pictures_and_captions_in_order(tmp_path):
  loaded = load(two_shards(tmp_path))
  assert len(loaded) == 40
  assert loaded.languages == ("en",)
  for i in (0, 29, 30, 39):
    assert loaded.captions(i) == {"en": (f"colour {i}",)}
    assert (loaded.image(i) == colour(i)).all()
    assert loaded[i].label == -1


def test_splits_follow_the_hash_of_the_key(tmp_path):
  folder = two_shards(tmp_path)
  keys = [f"00000{i:04d}" for i in range(30)] + [f"00001{i:04d}" for i in range(10)]
  for split in ("train", "validation", "test"):
    expected = [i for i, key in enumerate(keys) if split_of(key) == split]
    if not expected:
      with pytest.raises(UserError, match="no pictures for the split"):
        load(folder, split)
      continue
    loaded = load(folder, split)
    found = [loaded.captions(i)["en"][0] for i in range(len(loaded))]
    assert found == [f"colour {i}" for i in expected]


def test_match_keeps_rows_by_caption(tmp_path):
  loaded = load(two_shards(tmp_path), match="^colour 3")
  found = [loaded.captions(i)["en"][0] for i in range(len(loaded))]
  assert found == [f"colour {i}" for i in (3, *range(30, 40))]
  with pytest.raises(UserError, match=r"data\.match"):
    load(tmp_path / "shards", match="nothing like it")


def test_a_shard_is_indexed_once_and_again_when_changed(tmp_path, capsys, monkeypatch):
  folder = two_shards(tmp_path)
  load(folder)
  assert "indexing 2 of 2 shards" in capsys.readouterr().err
  with monkeypatch.context() as patched:
    patched.setattr(shard_index, "of_tar", None)
    assert len(load(folder)) == 40
  assert "indexing" not in capsys.readouterr().err
  write_shard(folder / "00001.tar", squares(50, 11))
  assert load(folder).captions(30) == {"en": ("colour 50",)}
  assert "indexing 1 of 2 shards" in capsys.readouterr().err


def test_batches_are_a_function_of_seed_and_step(tmp_path):
  folder = two_shards(tmp_path)

  def batch(step):
    make = lambda caption, label: Cond(tokens=np.frombuffer(  # noqa: E731
      caption.ljust(16).encode(), np.uint8))  # fmt: skip
    return batches.batch_at(
      load(folder), make, seed=3, step=step, batch_size=8, languages=("en",)
    )

  once, again = batch(7), batch(7)
  assert (once["x"] == again["x"]).all()
  assert (once["cond"].tokens == again["cond"].tokens).all()
  for x, tokens in zip(once["x"], once["cond"].tokens, strict=True):
    own = colour(int(tokens.tobytes().decode().split()[1]))
    np.testing.assert_allclose(x[0, 0], np.asarray(own) / 127.5 - 1, atol=1e-6)


@pytest.mark.parametrize(
  ("txt", "meta", "expected"),
  [
    ("a\n b  c\n\na\n", {}, {"en": ("a", "b c")}),
    (None, {"caption": "a"}, {"en": ("a",)}),
    ("two\nlines", {"caption": "two\nlines"}, {"en": ("two lines",)}),
    ("a\nb", {"caption": "a"}, {"en": ("a", "b")}),
    ("a", {"captions": ["b", "c"]}, {"en": ("b", "c")}),
    ("a", {"captions": {"en": "b", "zh": ["红", ""]}}, {"en": ("b",), "zh": ("红",)}),
    ("a", {"captions": []}, {"en": ("a",)}),
    (None, {"caption": "half \ud83d"}, {"en": ("half ?",)}),
    (None, {"caption": None}, {}),
    (None, {}, {}),
  ],
)
def test_which_captions_a_sample_has(txt, meta, expected):
  assert tars.captions(txt and txt.encode(), meta) == expected


def test_captions_of_named_fields():
  meta = {"caption": "a", "blip": ["b", "a"], "other": None, "captions": "c"}
  assert tars.captions(b"t", meta, ("caption", "blip", "other")) == {"en": ("a", "b")}
  with pytest.raises(ValueError, match="'width' must be text"):
    tars.captions(None, {"width": 3}, ("width",))


def test_samples_are_members_in_a_row():
  names = ["d/1.jpg", "d/1.TXT", "e/1.jpg", "2.seg.png", "2.png", "x", ".hidden"]
  found = list(tars.samples((name, name) for name in names))
  assert [(key, list(parts)) for key, parts in found] == [
    ("d/1", ["jpg", "txt"]),
    ("e/1", ["jpg"]),
    ("2", ["seg.png", "png"]),
    ("x", [""]),
    (".hidden", ["hidden"]),
  ]
  assert tars.picture(found[2][1]) == "2.png"
  assert tars.picture(found[3][1]) is None


def test_bad_members_are_named_or_skipped(tmp_path, capsys):
  folder = tmp_path / "shards"
  whole = squares(0, 6)
  broken = sample(encoded(colour(9))[:40], "broken")
  small = sample(encoded(np.zeros((4, 9, 3), np.uint8)), "small")
  no_json = whole[4] | {"json": b"{"}
  nothing = sample(None, "no picture")
  own = [*whole[:2], broken, small, nothing, no_json, *whole[2:4]]
  write_shard(folder / "00000.tar", own)
  with pytest.raises(UserError, match=r"00000\.tar, member 000000005: its text cannot"):
    load(folder)
  loaded = load(folder, on_bad_image="skip")
  assert len(loaded) == 6
  # The next whole picture stands in, with its captions.
  for i in (2, 3, 4):
    assert loaded[i].captions == {"en": ("colour 2",)}
    assert (loaded[i].image == colour(2)).all()
  told = capsys.readouterr().err
  assert "00000.tar, member 000000002.png cannot be read" in told
  assert "00000.tar, member 000000003.png is 9x4 pixels" in told
  write_shard(folder / "00000.tar", [broken, *whole])
  with pytest.raises(UserError, match=r"member 000000000\.png cannot be read .* mend"):
    load(folder)


def test_any_number_of_bad_pictures_in_a_row_is_skipped(tmp_path):
  bad = sample(encoded(colour(0))[:40], "bad")
  write_shard(tmp_path / "00000.tar", [bad] * 1100 + squares(0, 1))
  loaded = load(tmp_path, on_bad_image="skip")
  assert loaded[0].captions == {"en": ("colour 0",)}


def test_a_torn_tar_gives_what_is_whole_when_skipped(tmp_path):
  file = write_shard(tmp_path / "shards" / "00000.tar", squares(0, 4))
  # Each sample is three members of a header and one block; of the last before the tear
  # there might have been more.
  raw = file.read_bytes()
  for cut in (6 * 1024 + 100, 6 * 1024, 6 * 1024 + 512 + 10):
    file.write_bytes(raw[:cut])
    with pytest.raises(UserError, match=r"00000\.tar is no whole tar file"):
      load(file.parent)
    assert len(load(file.parent, on_bad_image="skip")) == 1
  file.write_bytes(raw[: 6 * 1024] + b"x" * 512 + raw[6 * 1024 + 512 :])
  assert len(load(file.parent, on_bad_image="skip")) == 1


def test_array_records_read_as_tars_do(tmp_path):
  folder = tmp_path / "records"
  folder.mkdir()
  writer = ArrayRecordWriter(str(folder / "00000.array_record"), "group_size:1")
  for i in range(5):
    meta = {"key": f"key{i}", "captions": {"en": [f"colour {i}", "x"], "zh": "颜色"}}
    writer.write(tars.packed(json.dumps(meta).encode(), encoded(colour(i))))
  writer.write(b"\xff\xff\xff\xff")
  writer.close()
  with pytest.raises(UserError, match="record 5 cannot be read"):
    load(folder)
  loaded = load(folder, on_bad_image="skip")
  assert len(loaded) == 5
  assert loaded.languages == ("en", "zh")
  assert (loaded.image(3) == colour(3)).all()
  assert loaded.captions(3) == {"en": ("colour 3", "x"), "zh": ("颜色",)}


def test_what_is_no_folder_of_shards(tmp_path):
  for path, told in (("", "data.path is empty"), (tmp_path / "none", "does not exist")):
    with pytest.raises(UserError, match=told):
      load(path)
  with pytest.raises(UserError, match="holds no .tar files"):
    load(tmp_path)
  write_shard(tmp_path / "00000.tar", [sample(None, "text alone")])
  with pytest.raises(UserError, match="hold no pictures"):
    load(tmp_path)
  with pytest.raises(UserError, match="Shards have no split 'half'"):
    load(two_shards(tmp_path), "half")
  (tmp_path / "00000.array_record").write_bytes(b"")
  with pytest.raises(UserError, match="both .tar and .array_record"):
    load(tmp_path)


def test_tars_are_the_same_bytes_each_time(tmp_path):
  members = [("é" * 90 + ".txt", b"a"), ("b.txt", b"")]
  first, second = io.BytesIO(), io.BytesIO()
  for file in (first, second):
    tars.write_tar(file, members)
  assert first.getvalue() == second.getvalue()
  first.seek(0)
  found = dict(tars.members(first))
  assert [name for name, _ in members] == list(found)
  assert shard_index.member(first, found["é" * 90 + ".txt"]) == b"a"
