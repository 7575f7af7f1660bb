"""Data sets and batches: order, cuts, resumption, folders, TFDS, refusals."""

import gzip
import io
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from configs import base
from core.errors import UserError
from data import batches, dataset, fashion_mnist, source, tfds_sets
from data.dataset import Dataset, Example
from eval import images
from text.cond import Cond

N = 23  # examples of the data set in memory: no divisor of any batch size


def settings(**changes):
  config = base.get_config().data
  config.size, config.languages = 8, ("en",)
  config.update(changes)
  return config


def make_cond(caption, label):
  raw = np.zeros(12, np.int32)
  raw[: len(caption)] = [ord(letter) for letter in caption[:12]]
  return Cond(tokens=raw, mask=raw > 0, label=np.int32(label))


def spell(tokens):
  return "".join(chr(token) for token in tokens if token)


def pixels(i):
  return np.random.default_rng(i).integers(0, 256, (4, 4, 3), np.uint8)


def in_memory(n=N, cached=True):
  captions = [{"en": (f"en{i}", f"EN{i}"), "ja": (f"ja{i}",)} for i in range(n)]
  captions[3:4] = [{}]
  made = Dataset(
    "numbers",
    n,
    lambda i: Example(pixels(i), captions[i], i),
    shape=(4, 4, 3),
    captions=captions.__getitem__,
    classes=[str(i) for i in range(n)],
    languages=("en", "ja"),
  )
  made.cached = cached
  return made


STREAM = {"seed": 1, "batch_size": 8, "languages": ("en", "ja"), "flip": True}


def at(step, data=None, **changes):
  data = in_memory() if data is None else data
  return batches.batch_at(data, make_cond, step=step, **STREAM | changes)


def same(one, other):
  assert jax.tree.structure(one) == jax.tree.structure(other)
  for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
    assert a.dtype == b.dtype
    np.testing.assert_array_equal(a, b)


# --- The stream


def test_a_batch_is_a_pure_function_of_seed_and_step():
  data = in_memory()
  alone = at(5)
  for step in (9, 0, 5):
    again = at(step, data)
  same(again, alone)
  other = at(5, seed=2)
  assert (other["cond"].label != alone["cond"].label).any()
  np.testing.assert_array_equal(other["_id"], alone["_id"])


def test_the_order_of_the_stream_never_changes():
  # Pinned: a run must see the same data after an upgrade of numpy or grain.
  assert at(0, seed=0)["cond"].label.tolist() == [17, 22, 16, 14, 15, 5, 12, 21]
  assert batches.random_words(7, 2**40, 2)[:, 0].tolist() == [
    9172725776946200104,
    8496270284017638088,
  ]


@pytest.mark.parametrize("count", [2, 4, 8])
def test_processes_cut_the_batch_of_one(count):
  parts = [at(4, process_index=p, process_count=count) for p in range(count)]
  whole = jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
  same(whole, at(4))


def test_each_epoch_is_another_permutation():
  labels = np.concatenate([at(step)["cond"].label for step in range(N * 3)])
  epochs = labels[: N * 24].reshape(24, N)
  assert (np.sort(epochs) == np.arange(N)).all()
  assert len({tuple(epoch) for epoch in epochs.tolist()}) == 24
  # Every example comes in every place about equally often.
  assert (epochs != epochs[0]).mean() > 0.9


def test_the_iterator_resumes_in_the_middle():
  for cached, start in ((True, 0), (True, 7), (False, 7)):
    data = in_memory(cached=cached)
    stream = batches.train_batches(data, make_cond, start_step=start, **STREAM)
    for step in range(start, start + 9):
      same(next(stream), at(step))
    stream.close()


def test_a_late_start_costs_nothing_and_ids_wrap():
  start = time.perf_counter()
  stream = batches.train_batches(in_memory(), make_cond, start_step=2**40, **STREAM)
  batch = next(stream)
  stream.close()
  assert time.perf_counter() - start < 5
  same(batch, at(2**40))
  assert at(2**29 + 1)["_id"].tolist() == list(range(8, 16))
  assert len(set(at(2**29 - 1)["_id"].tolist())) == 8


def test_pictures_are_exact_and_half_of_them_mirrored():
  mirrored = 0
  for step in range(50):
    batch = at(step)
    plain = at(step, flip=False)
    assert batch["x"].dtype == np.float32
    assert batch["_mask"].all()
    for x, own, label in zip(batch["x"], plain["x"], plain["cond"].label, strict=True):
      np.testing.assert_allclose(own, pixels(label) / 127.5 - 1, atol=1e-6)
      flipped = not np.array_equal(x, own)
      mirrored += flipped
      np.testing.assert_array_equal(x, own[:, ::-1] if flipped else own)
  assert 160 < mirrored < 240
  extremes = np.stack(
    [
      batches.collate(
        [Example(np.full((1, 1, 1), v, np.uint8), {}, 0)],
        [make_cond("", 0)],
        np.zeros(1, np.int64),
      )["x"]
      for v in (0, 255)
    ]
  )
  assert extremes.ravel().tolist() == [-1, 1]


def test_language_and_caption_are_drawn_alike_often():
  seen = []
  for step in range(200):
    cond = at(step)["cond"]
    for tokens, label in zip(cond.tokens, cond.label, strict=True):
      text = spell(tokens)
      assert text == "" if label == 3 else text[2:] == str(label)
      seen.append(text[:2])
  share = {code: seen.count(code) / len(seen) for code in ("en", "EN", "ja", "")}
  for code, expected in (("en", 0.25), ("EN", 0.25), ("ja", 0.5)):
    assert abs(share[code] - expected * (N - 1) / N) < 0.04
  assert all(
    spell(t)[:2].lower() in ("en", "") for t in at(0, languages=("en",))["cond"].tokens
  )
  assert not at(0, languages=())["cond"].tokens.any()


@pytest.mark.parametrize("count", [1, 2])
def test_evaluation_sees_every_example_once_and_pads(count):
  parts = [
    list(
      batches.eval_batches(
        in_memory(),
        make_cond,
        batch_size=8,
        languages=("en", "ja"),
        process_index=p,
        process_count=count,
      )
    )
    for p in range(count)
  ]
  rows = [
    jax.tree.map(lambda *leaves: np.concatenate(leaves), *whole)
    for whole in zip(*parts, strict=True)
  ]
  assert [len(row["_id"]) for row in rows] == [8, 8, 8]
  everything = jax.tree.map(lambda *leaves: np.concatenate(leaves), *rows)
  assert everything["_id"].tolist() == list(range(24))
  assert everything["_mask"].tolist() == [True] * N + [False]
  assert everything["cond"].label.tolist() == [*range(N), 0]
  texts = [spell(tokens) for tokens in everything["cond"].tokens[:6]]
  assert texts == ["en0", "ja1", "en2", "", "en4", "ja5"]


def test_a_reader_that_fails_is_heard():
  def fail(i):
    raise UserError("image 3 is damaged")

  broken = Dataset("broken", 4, fail, shape=(1, 1, 1), captions=lambda i: {})
  for stream in (
    batches.train_batches(broken, make_cond, **STREAM),
    batches.eval_batches(broken, make_cond, batch_size=2, languages=()),
  ):
    with pytest.raises(UserError, match="image 3 is damaged"):
      next(stream)
    stream.close()


def test_batches_that_cannot_be_cut_are_refused():
  with pytest.raises(UserError, match="batch_size 8 cannot be cut into 3"):
    at(0, process_count=3)
  with pytest.raises(UserError, match="empty"):
    at(0, data=in_memory(0))
  with pytest.raises(UserError, match="no captions in zh: .* among en, ja"):
    at(0, languages=("en", "zh"))


def test_pictures_stay_in_memory_only_if_small(monkeypatch):
  read = []

  def build():
    return Dataset(
      "counted",
      4,
      lambda i: read.append(i) or Example(pixels(i), {}, -1),
      shape=(4, 4, 3),
      captions=lambda i: {},
    )

  small = build()
  small.image(2), small.image(2)
  assert read == [2]
  monkeypatch.setattr(dataset, "CACHE_BYTES", 100)
  large = build()
  large.image(2), large.image(2)
  assert read == [2, 2, 2]


# --- Folders


def paint(path, i=0, size=(16, 16), mode="RGB", **options):
  path.parent.mkdir(parents=True, exist_ok=True)
  colour = tuple(np.random.default_rng(i).integers(0, 256, 3).tolist())
  Image.new("RGB", size, colour).convert(mode).save(path, **options)
  return colour


def folder(root, n=8, **changes):
  for i in range(n):
    paint(root / f"{i:02}.png", i)
  return settings(name="folder", path=str(root), **changes)


def write_lines(root, *lines):
  text = "\n".join(
    line if isinstance(line, str) else json.dumps(line) for line in lines
  )
  (root / "captions.jsonl").write_text(text + "\n", encoding="utf-8")


def test_folder_with_captions(tmp_path, capsys):
  config = folder(tmp_path, 5, languages=("en", "ja"))
  write_lines(
    tmp_path,
    {"file": "00.png", "caption": "cat"},
    {"file_name": "./01.png", "captions": {"en": ["dog", "hound"], "ja": "犬"}},
    "",
    {"file": "02.png", "caption": " "},
  )
  data = source.load(config, "all")
  assert len(data) == 5
  assert data.languages == ("en", "ja")
  assert data.classes == ()
  assert data.label(0) == -1
  captions = [data.captions(i) for i in range(4)]
  assert captions == [{"en": ("cat",)}, {"en": ("dog", "hound"), "ja": ("犬",)}, {}, {}]
  assert data.image(4).shape == (8, 8, 3)
  assert data[1].captions == captions[1]
  source.prepare(config)

  kept = source.load(settings(name="folder", path=str(tmp_path), match="^ho"), "all")
  assert [kept.captions(i)["en"][0] for i in range(len(kept))] == ["dog"]
  assert (
    f"reading 1 images in {tmp_path} (of 5, by data.match)" in capsys.readouterr().err
  )


def test_folder_without_captions_trains_unconditionally(tmp_path):
  data = source.load(folder(tmp_path, languages=("en", "zh")), "all")
  assert (data.languages, data.classes) == ((), ())


def test_folder_of_classes(tmp_path):
  for i, name in enumerate(("tabby_cat", "dog", "dog/puppies")):
    paint(tmp_path / name / "a.png", i)
  data = source.load(settings(name="folder", path=str(tmp_path)), "all")
  assert data.classes == ("dog", "tabby cat")
  assert [data.label(i) for i in range(3)] == [0, 0, 1]
  assert data.captions(2) == {"en": ("tabby cat",)}
  paint(tmp_path / "loose.png")
  assert source.load(settings(name="folder", path=str(tmp_path)), "all").classes == ()


def test_folder_is_cut_by_names_without_overlap(tmp_path):
  config = folder(tmp_path, 200)
  whole = source.load(config, "all")
  parts = {s: source.load(config, s) for s in ("train", "validation", "test")}
  pictures = {
    split: {data.image(i).tobytes() for i in range(len(data))}
    for split, data in parts.items()
  }
  assert len(set.union(*pictures.values())) == len(whole) == 200
  assert sum(map(len, parts.values())) == 200
  assert len(parts["train"]) > 160
  # Where a file goes depends on its name alone.
  for file in list(tmp_path.glob("*.png"))[::2]:
    file.unlink()
  fewer = source.load(config, "train")
  assert {fewer.image(i).tobytes() for i in range(len(fewer))} <= pictures["train"]


def test_names_may_be_any_bytes(tmp_path):
  names = [os.fsdecode(b"caf\xe9.png"), "café.png", "🔥.png"]
  for i, name in enumerate(names):
    paint(tmp_path / name, i)
  config = settings(name="folder", path=str(tmp_path))
  whole = source.load(config, "all")
  assert len(whole) == len(source.load(config, "train")) == 3
  called = images.open_images(str(tmp_path)).called
  assert sorted(map(called, range(3))) == ["caf?.png", "café.png", "🔥.png"]


def test_folder_with_subfolders_for_splits(tmp_path):
  for split, n in (("train", 3), ("val", 2)):
    for name in ("a", "b"):
      for i in range(n):
        paint(tmp_path / split / name / f"{i}.png", i)
  config = settings(name="folder", path=str(tmp_path))
  assert len(source.load(config, "train")) == 6
  held_out = source.load(config, "validation")
  assert len(held_out) == 4
  assert [held_out.label(i) for i in range(4)] == [0, 0, 1, 1]
  with pytest.raises(UserError, match="no images for the split 'test'"):
    source.load(config, "test")
  write_lines(tmp_path / "val", {"file": "a/0.png", "caption": "here"})
  captioned = source.load(config, "validation")
  assert captioned.captions(0) == {"en": ("here",)}
  assert captioned.classes == ()


def test_pictures_of_all_kinds(tmp_path):
  red = Image.new("RGB", (20, 10), "red")
  red.paste("blue", (0, 0, 5, 10))  # cropped away
  red.save(tmp_path / "a.bmp")
  half = Image.new("RGBA", (10, 10), (0, 0, 255, 0))
  half.paste((0, 255, 0, 255), (0, 0, 5, 10))
  half.save(tmp_path / "b.PNG")
  Image.new("L", (10, 10), 100).save(tmp_path / "c.webp", lossless=True)
  grey16 = np.full((10, 10), 0x80FF, np.uint16)
  Image.fromarray(grey16).save(tmp_path / "d.png")
  turned = Image.new("RGB", (10, 10), "white")
  turned.paste("black", (0, 0, 10, 5))
  exif = Image.Exif()
  exif[0x0112] = 3  # upside down
  turned.save(tmp_path / "e.jpg", quality=95, exif=exif)
  Image.new("CMYK", (300, 300)).save(tmp_path / "f.jpeg")
  paint(tmp_path / ".hidden.png", size=(1, 1))
  data = source.load(settings(name="folder", path=str(tmp_path), size=10), "all")
  assert len(data) == 6
  a, b, c, d, e, f = (data.image(i).astype(int) for i in range(6))
  assert (a == [255, 0, 0]).all()
  assert (b[:, :5] == [0, 255, 0]).all()
  assert (b[:, 5:] == 255).all()
  assert (c == 100).all()
  assert (d == 128).all()
  assert e[0].mean() > 250
  assert e[-1].mean() < 5
  assert (f == 255).all()


def test_large_images_are_averaged_not_sampled(tmp_path):
  stripes = np.zeros((64, 96, 3), np.uint8)
  stripes[:, ::2] = 255
  Image.fromarray(stripes).save(tmp_path / "a.png")
  image = source.load(settings(name="folder", path=str(tmp_path)), "all").image(0)
  assert abs(image[:, 2:-2].astype(int) - 127).max() <= 8


def test_grey_is_repeated_and_colour_is_not_dropped(tmp_path):
  config = settings(name="folder", path=str(tmp_path), channels=1)
  paint(tmp_path / "a.png", mode="L")
  Image.new("RGB", (9, 9), (7, 7, 7)).save(tmp_path / "b.png")
  data = source.load(config, "all")
  assert data.image(0).shape == (8, 8, 1)
  assert (data.image(1) == 7).all()
  paint(tmp_path / "c.png")
  with pytest.raises(UserError, match="c.png is in colour, and data.channels is 1"):
    source.load(config, "all")


def damage(root):
  folder(root)
  for name in ("02.png", "05.png"):
    whole = (root / name).read_bytes()
    (root / name).write_bytes(whole[: len(whole) // 2])
  (root / "06.png").write_text("no picture")
  (root / "07.png").write_bytes(b"")


def test_damaged_images_are_counted_named_and_fatal(tmp_path):
  damage(tmp_path)
  told = r"4 of 8 images in .* cannot be read: 02.png, 05.png, 06.png and 1 more"
  with pytest.raises(UserError, match=told):
    source.load(settings(name="folder", path=str(tmp_path)), "all")


def test_damaged_images_are_skipped_on_demand(tmp_path, capsys):
  damage(tmp_path)
  config = settings(name="folder", path=str(tmp_path), on_bad_image="skip")
  data = source.load(config, "all")
  assert "4 of 8 images" in capsys.readouterr().err
  assert len(data) == 4
  for i, name in enumerate(("00", "01", "03", "04")):
    whole = np.asarray(Image.open(tmp_path / f"{name}.png"))[:8, :8]
    np.testing.assert_array_equal(data.image(i), whole)


def test_a_large_folder_is_decoded_on_demand(tmp_path, monkeypatch):
  config = folder(tmp_path)
  small = source.load(config, "all")
  monkeypatch.setattr(dataset, "CACHE_BYTES", 100)
  large = source.load(config, "all")
  assert not large.cached
  for i in range(8):
    np.testing.assert_array_equal(large.image(i), small.image(i))


BAD_LINES = {
  "{file: a}": "not JSON",
  '["00.png"]': "a JSON list, not an object",
  '{"caption": "x"}': '"file" must be',
  '{"file": 3, "caption": "x"}': '"file" must be',
  '{"file": "00.png"}': 'either "caption" or "captions"',
  '{"file": "00.png", "caption": "x", "captions": {}}': 'either "caption" or',
  '{"file": "00.png", "caption": 3}': "'en' must be text",
  '{"file": "00.png", "caption": ["x", null]}': "'en' must be text",
  '{"file": "00.png", "captions": ["x"]}': "an object of captions by language",
  '{"file": "00.png", "captions": {"ja": {}}}': "'ja' must be text",
  '{"file": "99.png", "caption": "x"}': "no image '99.png'",
  '{"file": "01.png", "caption": "x"}': "'01.png' has a line already",
  '{"file": "00.png", "caption": "\\ud83d"}': "half a character",
  "[" * 100_000: "not JSON",
}


@pytest.mark.parametrize(("line", "reason"), BAD_LINES.items(), ids=BAD_LINES.values())
def test_malformed_captions_name_the_line(tmp_path, line, reason):
  config = folder(tmp_path, 3)
  write_lines(tmp_path, {"file": "01.png", "caption": "ok"}, "", line)
  with pytest.raises(UserError, match="captions.jsonl, line 3: .*") as error:
    source.load(config, "all")
  assert reason in str(error.value)
  assert "\n" not in str(error.value)


def test_captions_in_another_encoding_are_refused(tmp_path):
  config = folder(tmp_path, 3)
  line = '{"file": "00.png", "caption": "Käse"}'
  (tmp_path / "captions.jsonl").write_bytes(line.encode("latin-1"))
  with pytest.raises(UserError, match="line 1: this is not UTF-8"):
    source.load(config, "all")
  (tmp_path / "captions.jsonl").write_bytes(line.encode("utf-8-sig"))
  assert source.load(config, "all").captions(0) == {"en": ("Käse",)}


def test_refusals_of_folders(tmp_path):
  missing = str(tmp_path / "none")
  for path, reason in (
    ("", "data.path is empty"),
    (missing, "does not exist"),
    (str(tmp_path), "No images under"),
  ):
    with pytest.raises(UserError, match=reason):
      source.load(settings(name="folder", path=path), "train")
  config = folder(tmp_path, 2)
  write_lines(tmp_path, {"file": "00.png", "captions": {"ja": "猫"}})

  def refused(reason, split="all", **changes):
    with pytest.raises(UserError, match=reason) as error:
      source.load(settings(name="folder", path=str(tmp_path), **changes), split)
    assert "\n" not in str(error.value)

  refused("no captions in en: choose data.languages among ja")
  refused("matches data.match 'dog'", match="dog")
  refused(r"data.match '\(' is not a valid regular expression", match="(")
  refused("00.png is 16x16 pixels, smaller than data.size 17.*1 more", size=17)
  refused("no split 'dev': choose among train, validation, test, all", split="dev")
  refused("data.size must be", size=0)
  refused("data.channels must be", channels=4)
  refused("data.on_bad_image must be", on_bad_image="ignore")
  config.languages, config.match = ("ja",), "猫"
  assert len(source.load(config, "all")) == 1


# --- Fashion-MNIST


@pytest.fixture(scope="module")
def idx_files(tmp_path_factory):
  root = tmp_path_factory.mktemp("idx")
  for stem, n in (("train", 5010), ("t10k", 7)):
    pictures = np.zeros((n, 28, 28), np.uint8)
    pictures[:, 0, 0] = np.arange(n) % 251 + 1
    labels = (np.arange(n) % 10).astype(np.uint8)
    for name, magic, dims, data in (
      ("images-idx3", 2051, (n, 28, 28), pictures),
      ("labels-idx1", 2049, (n,), labels),
    ):
      header = b"".join(v.to_bytes(4, "big") for v in (magic, *dims))
      packed = gzip.compress(header + data.tobytes(), 1)
      (root / f"{stem}-{name}-ubyte.gz").write_bytes(packed)
  return root


def fashion(root, **changes):
  config = {"name": "fashion_mnist", "path": str(root), "channels": 1, "size": 28}
  return settings(**config | changes)


def test_of_small_pictures_the_smallest_is_told(tmp_path):
  """So that what is said to do is enough for all of them."""
  folder(tmp_path, 2)
  Image.new("RGB", (12, 9)).save(tmp_path / "small.png")
  config = settings(name="folder", path=str(tmp_path), size=17)
  with pytest.raises(UserError, match=r"small.png .* to 9 or less.*2 more"):
    source.load(config, "all")


def test_fashion_mnist_from_idx_files(idx_files):
  sizes = [len(source.load(fashion(idx_files), s)) for s in fashion_mnist.SPLITS]
  assert sizes == [10, 5000, 7]
  data = source.load(fashion(idx_files), "validation")
  assert (len(data.classes), data.languages, data.label(1)) == (10, ("en",), 1)
  assert data.captions(0) == {"en": ("t-shirt",)}
  assert data.image(0)[0, 0, 0] == 11  # the eleventh training picture
  padded = source.load(fashion(idx_files, size=32, channels=3), "test").image(4)
  assert padded.shape == (32, 32, 3)
  assert (padded[2, 2] == 5).all()
  assert padded.sum() == 15
  boots = source.load(fashion(idx_files, match="boot$"), "train")
  assert [boots.label(i) for i in range(len(boots))] == [9]


def test_refusals_of_fashion_mnist(idx_files, tmp_path):
  for reason, split, changes in (
    ("smaller than data.size 64", "train", {"size": 64}),
    ("no split 'dev'", "dev", {}),
    ("no captions in zh", "train", {"languages": ("zh",)}),
    (r"matches data.match '\^hat'", "train", {"match": "^hat"}),
    ("does not exist: set data.path", "train", {"path": str(tmp_path)}),
  ):
    with pytest.raises(UserError, match=reason):
      source.load(fashion(idx_files, **changes), split)
  for file in idx_files.glob("t10k*"):
    whole = file.read_bytes()
    (tmp_path / file.name).write_bytes(whole[: len(whole) // 2])
  with pytest.raises(UserError, match="cannot be read"):
    source.load(fashion(tmp_path), "test")
  for file in idx_files.glob("t10k*"):
    (tmp_path / file.name).write_bytes(gzip.compress(b"\0\0\x08\x01 nothing"))
  with pytest.raises(UserError, match="not a whole Fashion-MNIST idx file"):
    source.load(fashion(tmp_path), "test")


class FashionLike(tfds.core.GeneratorBasedBuilder):
  """Fashion-MNIST as TFDS has it, with fewer pictures."""

  VERSION = tfds.core.Version("1.0.0")
  pkg_dir_path = Path(__file__).parent

  def _info(self):
    features = {
      "image": tfds.features.Image(shape=(28, 28, 1)),
      "label": tfds.features.ClassLabel(num_classes=10),
    }
    return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

  def _split_generators(self, dl_manager):
    return {"train": self._generate_examples(30), "test": self._generate_examples(4)}

  def _generate_examples(self, n):
    for i in range(n):
      png = io.BytesIO()
      Image.new("L", (28, 28), 20 * (i % 10)).save(png, "png")
      yield i, {"image": io.BytesIO(png.getvalue()), "label": i % 10}


def test_fashion_mnist_through_tfds(tmp_path, monkeypatch):
  monkeypatch.setattr(fashion_mnist, "DEBIAN", tmp_path / "none")
  parts = {
    "train": ("train", slice(None, -10)),
    "validation": ("train", slice(-10, None)),
  }
  monkeypatch.setattr(fashion_mnist, "SPLITS", parts)
  find = tfds_sets.find
  monkeypatch.setattr(tfds_sets, "find", lambda _, folder: find("fashion_like", folder))
  config = fashion("", dir=str(tmp_path))
  data = source.load(config, "train")
  assert len(data) == 20
  assert len(source.load(config, "validation")) == 10
  for i in range(20):
    assert (data.image(i) == 20 * data.label(i)).all()
    assert data.captions(i) == {"en": (fashion_mnist.NAMES[data.label(i)],)}


@pytest.mark.skipif(
  not fashion_mnist.DEBIAN.is_dir(), reason="needs Debian's dataset-fashion-mnist"
)
def test_fashion_mnist_from_debian():
  data = source.load(fashion(""), "train")
  assert len(data) == 55_000
  names = [data.captions(i)["en"][0] for i in range(len(data))]
  assert all(names.count(name) > 5_000 for name in fashion_mnist.NAMES)


# --- Any other data set of TFDS


class TinyPairs(tfds.core.GeneratorBasedBuilder):
  """Twelve pictures with a class and, by config, captions in some form."""

  pkg_dir_path = Path(__file__).parent  # TFDS finds it by itself only in a package
  VERSION = tfds.core.Version("1.0.0")
  BUILDER_CONFIGS = [
    tfds.core.BuilderConfig(name=name)
    for name in ("labels", "texts", "records", "languages", "sounds")
  ]

  def _info(self):
    text = tfds.features.Text()
    features = {
      "picture": tfds.features.Image(shape=(None, None, 3)),
      "kind": tfds.features.ClassLabel(names=["red_fox", "owl"]),
      "file_name": text,
    } | {
      "labels": {},
      "texts": {"caption": text},
      "records": {"captions": tfds.features.Sequence({"id": np.int64, "text": text})},
      "languages": {"captions": {"en": text, "de": text}},
      "sounds": {},
    }[self.builder_config.name]
    if self.builder_config.name == "sounds":
      del features["picture"]
    return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

  def _split_generators(self, dl_manager):
    return {"train": self._generate_examples(10), "test": self._generate_examples(2)}

  def _generate_examples(self, n):
    for i in range(n):
      png = io.BytesIO()
      Image.new("RGB", (10, 12), (i, 0, 0)).save(png, "png")
      example = {"kind": i % 2, "file_name": f"{i}.png"}
      if self.builder_config.name != "sounds":
        example["picture"] = io.BytesIO(png.getvalue())
      own = [{"id": 0, "text": f"one {i}"}, {"id": 1, "text": f"two {i}"}]
      match self.builder_config.name:
        case "texts":
          example["caption"] = f"one {i}"
        case "records":
          example["captions"] = own[: i % 3]
        case "languages":
          example["captions"] = {"en": f"one {i}", "de": f"eins {i}" if i else ""}
      yield i, example


class NeedsPackage(TinyPairs):
  def _generate_examples(self, n):
    import tensorflow

    yield from tensorflow


class Offline(TinyPairs):
  def _split_generators(self, dl_manager):
    raise ConnectionError("Name or service not known.\nsecond line")


def tiny(tmp_path, kind, **changes):
  return settings(**{"name": f"tiny_pairs/{kind}", "dir": str(tmp_path)} | changes)


def by_red(data):
  """Captions by the picture's number; TFDS shuffles what it writes."""
  return {int(data.image(i)[0, 0, 0]): data.captions(i) for i in range(len(data))}


def test_a_tfds_set_with_labels(tmp_path):
  data = source.load(tiny(tmp_path, "labels"), "train")
  assert (len(data), len(data.classes), data.languages) == (10, 2, ("en",))
  for number, captions in by_red(data).items():
    assert captions == {"en": ("owl" if number % 2 else "red fox",)}
  assert {(data.image(i)[0, 0, 0] % 2, data.label(i)) for i in range(10)} == {
    (0, 0),
    (1, 1),
  }
  assert data.image(0).shape == (8, 8, 3)
  assert len(source.load(tiny(tmp_path, "labels"), "train[:40%]")) == 4


def test_a_tfds_set_with_captions_in_any_form(tmp_path):
  texts = by_red(source.load(tiny(tmp_path, "texts"), "train"))
  assert texts[4] == {"en": ("one 4",)}
  records = by_red(source.load(tiny(tmp_path, "records"), "train"))
  assert [records[i] for i in range(3)] == [
    {},
    {"en": ("one 1",)},
    {"en": ("one 2", "two 2")},
  ]
  config = tiny(tmp_path, "languages", languages=("de",))
  data = source.load(config, "train")
  assert data.languages == ("de", "en")
  languages = by_red(data)
  assert languages[0] == {"en": ("one 0",)}
  assert languages[7] == {"en": ("one 7",), "de": ("eins 7",)}
  few = source.load(tiny(tmp_path, "languages", match="one [3-5]"), "train")
  assert sorted(by_red(few)) == [3, 4, 5]


def test_one_process_prepares_while_others_wait(tmp_path, monkeypatch):
  made = []
  generate = TinyPairs._generate_examples

  def slow(self, n):
    made.append(n)
    time.sleep(0.2)
    return generate(self, n)

  monkeypatch.setattr(TinyPairs, "_generate_examples", slow)
  config = tiny(tmp_path, "labels")
  with ThreadPoolExecutor(3) as pool:
    sizes = list(pool.map(lambda _: len(source.load(config, "test")), range(3)))
  assert sizes == [2, 2, 2]
  assert made == [10, 2]


def test_refusals_of_tfds_sets(tmp_path):
  def refused(reason, kind="labels", split="train", **changes):
    with pytest.raises(UserError, match=reason) as error:
      source.load(tiny(tmp_path, kind, **changes), split)
    assert "\n" not in str(error.value)

  refused("no split 'dev': choose among train, test", split="dev")
  refused("10x12 pixels, smaller than data.size 11", size=11)
  refused("in colour, and data.channels is 1", channels=1)
  refused("no captions in ja", languages=("ja",))
  refused("matches data.match 'cat'", match="cat")
  refused("has no images", kind="sounds")
  refused("Data set 'tiny_pairs/none'", kind="none")
  refused(
    "Unknown data set 'fashion_mnst': did you mean 'fashion_mnist'", name="fashion_mnst"
  )
  refused("Unknown data set 'opnmoji': did you mean 'openmoji'", name="opnmoji")
  refused("Unknown data set 'zzzzzzzzzzz'", name="zzzzzzzzzzz")
  refused(
    "without the package tensorflow-cpu.*pip install", name="needs_package/labels"
  )
  refused("Name or service not known; prepare it elsewhere", name="offline/labels")
  refused("Cannot write in /proc/none", name="tiny_pairs/texts", dir="/proc/none")


def test_a_tfds_set_without_random_access_is_refused(tmp_path):
  source.prepare(tiny(tmp_path, "labels"))
  info = next(tmp_path.glob("**/dataset_info.json"))
  text = info.read_text()
  assert "array_record" in text
  info.write_text(text.replace("array_record", "tfrecord"))
  with pytest.raises(UserError, match="stored as tfrecord, which cannot be read"):
    source.load(tiny(tmp_path, "labels"), "train")


def test_a_damaged_record_is_named(tmp_path, monkeypatch):
  config = tiny(tmp_path, "labels")
  data = source.load(config, "train")

  def fail(*_):
    raise tfds_sets.images.Unreadable("truncated")

  monkeypatch.setattr(tfds_sets.images, "decode", fail)
  with pytest.raises(UserError, match=r"Image 5 of tiny_pairs \(train\) is damaged"):
    data.image(5)


def test_a_damaged_record_is_skipped_on_demand(tmp_path, monkeypatch, capsys):
  """The next whole picture stands in, with its own caption and label."""
  whole = source.load(tiny(tmp_path, "labels"), "train")
  data = source.load(tiny(tmp_path, "labels", on_bad_image="skip"), "train")
  decode, calls = tfds_sets.images.decode, []

  def fail_twice(*args):
    calls.append(args)
    if len(calls) <= 2:
      raise tfds_sets.images.Unreadable("truncated")
    return decode(*args)

  monkeypatch.setattr(tfds_sets.images, "decode", fail_twice)
  np.testing.assert_array_equal(data[9].image, whole[1].image)
  assert data[9].label == whole[1].label
  assert "Image 0 of tiny_pairs (train) is damaged" in capsys.readouterr().err
