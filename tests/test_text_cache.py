"""Captions encoded once: the cache, what it refuses, and runs that read it."""

import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from core import parallel
from core.errors import UserError
from core.train import train
from core.workdir import open_workdir
from data import source
from data.dataset import Dataset
from pipelines import build, draw, inputs, sample, texts
from tests import encoders as tiny
from tests.runs import ROOT, environment, load_config, picture_folder
from text import cache, frozen


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch) -> Path:
  monkeypatch.setenv("TAOLU_CACHE", str(tmp_path / "cache"))
  return tmp_path / "cache"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
  """Pictures with captions in two languages, and two encoders."""
  place = tmp_path_factory.mktemp("texts")
  picture_folder(place / "pictures")
  tiny.directory(place / "bert", tiny.BERT)
  tiny.directory(place / "t5", tiny.T5)
  return place


def config(place: Path, **fields: object) -> ConfigDict:
  c = load_config("configs/quickstart.py")
  c.text.encoder = "frozen"
  c.text.frozen = (str(place / "bert"), str(place / "t5"))
  c.data.name, c.data.path = "folder", str(place / "pictures")
  c.data.match, c.data.eval_split, c.data.languages = "", "all", ("en", "zh")
  c.sample.prompts = ("a red colour",)
  c.parallel.backend = "jit"
  c.update_from_flattened_dict(fields)
  return c


def load(c: ConfigDict):
  return lambda split: source.load(c.data, split)


def encoder(c: ConfigDict, i: int = 0):
  return frozen.encoders(c.text)[i]


def hashes(folder: Path) -> dict[str, str]:
  return {
    file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
    for file in sorted(folder.rglob("*"))
    if file.is_file() and not file.name.startswith(".")
  }


def test_the_cache_holds_what_encoding_gives(place, monkeypatch, capsys):
  monkeypatch.setattr(cache, "ROWS", 20)
  c = config(place, **{"sample.negative_prompt": "grey"})
  texts.prepare(c, load(c))
  said = capsys.readouterr().err
  # 24 captions in each language, a prompt and what guidance leads away from.
  assert said.count("captions 40 to 49 of 50") == 2
  found, captions = texts.known(c), sorted(set(texts.captions(c, load(c))))
  assert {"a red colour", "grey", "colour 3", "颜色3"} < set(captions)
  for i, known in enumerate(found):
    direct = encoder(c, i).load()(captions)
    for caption, want in zip(captions, direct, strict=True):
      for a, b in zip(known.find(f" {caption}"), want, strict=True):
        assert a.shape == b.shape
        a, b = np.float32(a), np.float32(b)
        np.testing.assert_allclose(a, b, rtol=2**-7, atol=1e-5)
    assert known.find("no such caption") is None
  texts.prepare(c, load(c))
  assert "captions 0" not in capsys.readouterr().err


def test_more_captions_are_another_set(place, home):
  c = config(place)
  one = encoder(c)
  cache.prepare(one, ["red", "green", "", "red "])
  cache.prepare(one, ["blue", "green"])
  files = [file.relative_to(home).parts[2] for file in home.rglob("index.npy")]
  assert len(set(files)) == 2
  known = cache.Texts(one)
  assert known.missing(["red", "green", "blue", "grey", " grey", ""]) == ["grey"]
  seq = [np.float32(known.find(text).seq) for text in ("red", "blue")]
  assert [len(rows) for rows in seq] == [5, 6]


KILLED = """
import sys
from ml_collections import ConfigDict
from text import cache, frozen
cache.ROWS = 64
(encoder,) = frozen.encoders(ConfigDict({"frozen": (sys.argv[1],), "max_tokens": 12,
  "frozen_dtype": "float32",
  "frozen_as_is": False}))
cache.prepare(encoder, [f"colour {i}" for i in range(300)])
"""


def test_killed_and_resumed_it_is_the_same_to_the_byte(place, tmp_path):
  argv = [sys.executable, "-c", KILLED, str(place / "bert")]

  def start(name: str) -> subprocess.Popen:
    env = environment() | {"TAOLU_CACHE": str(tmp_path / name), "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(argv, env=env, stderr=subprocess.PIPE, text=True)

  with start("whole") as process:
    whole = process.communicate()[1]
  assert process.returncode == 0, whole
  assert whole.count("captions") == 5
  with start("killed") as process:
    for line in process.stderr:
      if "captions 128 to" in line:
        process.send_signal(signal.SIGKILL)
        break
  assert process.wait() == -signal.SIGKILL
  want, part = (hashes(tmp_path / name) for name in ("whole", "killed"))
  assert 2 <= len(part) < len(want) == 6
  assert not any(name.endswith("index.npy") for name in part)
  with start("killed") as process:
    again = process.communicate()[1]
  assert process.returncode == 0, again
  assert "captions 0 to" not in again
  assert hashes(tmp_path / "killed") == want


def test_without_a_cache_training_is_refused(place):
  c = config(place)
  sentence = r"lacks .* more captions .* run the same command with --mode=prepare first"
  with pytest.raises(UserError, match=sentence):
    texts.check(c, load(c), Path("none"))
  texts.prepare(c, load(c))
  texts.check(c, load(c), Path("none"))
  # What was kept of other captions, lengths, weights or tokenizers is not enough.
  c.sample.prompts = ("another",)
  with pytest.raises(UserError, match="lacks 'another' under these"):
    texts.check(c, load(c), Path("none"))
  c.sample.prompts, c.text.max_tokens = (), 9
  with pytest.raises(UserError, match=sentence):
    texts.check(c, load(c), Path("none"))


def test_a_cache_of_other_weights_is_stale(place, tmp_path):
  c = config(place)
  texts.prepare(c, load(c))
  other = tiny.directory(tmp_path / "bert", tiny.BERT, seed=1)
  c.text.frozen = (str(other), c.text.frozen[1])
  with pytest.raises(UserError, match="more captions under these weights"):
    texts.check(c, load(c), Path("none"))
  look_up = texts.cached(c)
  with pytest.raises(UserError, match="--mode=prepare"):
    look_up("colour 1")


def test_what_is_cut_or_unknown_is_said(place, capsys):
  c = config(place, **{"text.max_tokens": 5})
  texts.report(c, ["red", "red", "", "a red colour", "\u0639\u0644\u0649"])
  cut = "1 of 3 texts looked at have more than 5 tokens, the longest 12, and"
  strange = "1 of 3 texts looked at hold what its tokenizer does not know, such as"
  bert, t5 = c.text.frozen
  said = capsys.readouterr().err.splitlines()
  assert [line.split(": ")[0] for line in said] == [bert, bert, t5, t5]
  assert [cut in line for line in said] == [True, False] * 2
  assert [strange in line for line in said] == [False, True] * 2
  c.text.encoder = "bytes"
  texts.check(c, load(c), place)
  assert "bytes: 42 of 42 texts looked at have more than 5" in capsys.readouterr().err
  c.text.max_tokens = 64
  texts.check(c, load(c), place)
  assert "looked at" not in capsys.readouterr().err
  own = [{"en": ("red",)}, {"fr": ("rouge",)}, {}]
  bare = Dataset("bare", 3, repr, shape=(1, 1, 3), captions=own.__getitem__)
  texts.check(c, lambda split: bare, place)
  said = capsys.readouterr().err
  assert said.startswith("2 of 3 pictures looked at have no caption in data.languages")


def test_a_damaged_set_is_refused(place, home):
  c = config(place)
  one = encoder(c)
  cache.prepare(one, ["red", "green"])
  (file,) = home.rglob("*.array_record")
  os.truncate(file, file.stat().st_size // 2)
  cache.opened.cache_clear()
  with pytest.raises(UserError, match="is damaged; delete it, and make it again"):
    cache.Texts(one).find("red")
  file.unlink()
  cache.opened.cache_clear()
  with pytest.raises(UserError, match="is damaged; delete it, and make it again"):
    cache.Texts(one)


def test_vectors_that_are_not_finite_are_refused(place, tmp_path):
  broken = tiny.directory(
    tmp_path / "nan", tiny.BERT | {"layer_norm_eps": float("nan")}
  )
  c = config(place, **{"text.frozen": (str(broken),)})
  with pytest.raises(UserError, match="the vectors of 'red' are not finite"):
    cache.prepare(encoder(c), ["red"])


def test_a_full_disk_is_told(place, home, monkeypatch):
  class Full:
    def __init__(self, *_):
      """Opens."""

    def write(self, record):
      """Is buffered."""

    def close(self):
      raise RuntimeError("write() failed: No space left on device; writing x; at 0")

  one = encoder(config(place))
  monkeypatch.setattr(cache, "ArrayRecordWriter", Full)
  with pytest.raises(UserError, match=r"\(write\(\) failed: No space left on device\)"):
    cache.prepare(one, ["red"])
  assert not [path for path in home.rglob("*") if path.is_file()]
  home.rename(home.with_name("elsewhere"))
  home.write_text("a file where the folder was")
  monkeypatch.setattr(frozen.HuggingFace, "load", None)  # before it is asked for
  with pytest.raises(UserError, match="cannot write to"):
    cache.prepare(one, ["red"])


def test_the_weights_of_encoders_are_pinned(place, tmp_path):
  c = config(place)
  build.pin(c, tmp_path)
  build.pin(c, tmp_path)
  (tmp_path / "text.json").write_text(json.dumps({c.text.frozen[0]: "another"}))
  with pytest.raises(UserError, match="has other weights or another tokenizer than"):
    build.pin(c, tmp_path)
  # Before the cache is asked for: to prepare it would be in vain.
  with pytest.raises(UserError, match="has other weights or another tokenizer than"):
    texts.check(c, load(c), tmp_path)


def test_a_run_reads_the_cache_and_prompts_are_encoded(place, tmp_path, monkeypatch):
  """Prepared, trained without the encoders, and drawn from a prompt of its own."""
  c = config(place, **{"text.drop": 0.1, "text.frozen_drop": (0.0, 0.4)})
  texts.prepare(c, load(c))
  loads = []
  whole = frozen.HuggingFace.load
  count = lambda self: loads.append(self.name) or whole(self)  # noqa: E731
  monkeypatch.setattr(frozen.HuggingFace, "load", count)
  family, run = build.family(c), parallel.make(c.parallel)
  workdir = open_workdir(str(tmp_path / "run"), c)
  c.train.steps = 2
  build.pin(c, workdir)
  state = train(c, family, run, inputs.train_stream(c, load(c)("train")), workdir)
  batch = next(iter(inputs.eval_stream(c, load(c)("all"))))
  assert batch["cond"].parts[0].seq.shape == (8, 16, 8)
  known = texts.known(c)[1].find("颜色1")
  np.testing.assert_array_equal(batch["cond"].parts[1].pooled[1], known.pooled)
  preview = draw.preview(c, family, run, lambda: load(c)("all"), tmp_path)
  preview(state)
  assert not loads
  c.sample.negative_prompt = "grey"
  asked = sample.batch_sampler(c, family, run, 2, film=False)
  one = asked(state, 0, ["red", "colour 1"], [0, 0]).images
  assert loads == list(c.text.frozen) * 2  # the prompts, and the negative one
  np.testing.assert_array_equal(
    one, asked(state, 0, ["red", "colour 1"], [0, 0]).images
  )
  assert len(loads) == 4  # what was made is kept
  other = asked(state, 0, ["blue", "colour 1"], [0, 0]).images
  assert np.abs(one[0] - other[0]).max() > 0
  np.testing.assert_allclose(one[1], other[1], atol=1e-5)
  assert jax.tree.leaves(state.params)
