"""The nearest pictures of a collection, exactly, for a stand-in of a dual encoder."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from core import parallel, tool
from core.errors import UserError
from eval import images, retrieve
from pipelines import contact, dual
from pipelines.embed import Dual, Embedder
from tests.shards import encoded, sample, write_shard
from text.cond import Cond


def unit(angle):
  return jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=-1)


# A picture lies at its first pixel of 255 in degrees, a caption at its number.
JUDGE = Dual(
  name="stand-in",
  origin={"clip": "here"},
  size=4,
  params={"turn": jnp.zeros(())},
  embed_images=lambda params, x: unit(
    jnp.deg2rad((x[:, 0, 0, 0] + 1) * 127.5) + params["turn"]
  ),
  embed_texts=lambda params, cond: unit(jnp.deg2rad(cond.pooled[:, 0])),
  conditions=lambda captions: Cond(
    pooled=np.asarray([[float(c.split()[0])] for c in captions], np.float32)
  ),
)
LEVELS = [80, 10, 200, 40, 40]


@pytest.fixture
def collection(tmp_path, monkeypatch):
  monkeypatch.setenv("TAOLU_CACHE", str(tmp_path / "cache"))
  monkeypatch.setattr(parallel, "keep_freed_memory", lambda: None)
  monkeypatch.setattr(dual, "load", lambda path, parallel, field: JUDGE)
  folder = tmp_path / "pictures"
  folder.mkdir()
  for i, level in enumerate(LEVELS):
    Image.new("RGB", (4 + i, 4 + i), (level,) * 3).save(folder / f"{i}.png")
  return folder


def found(tmp_path, *argv):
  sheet = tmp_path / "out" / "sheet.png"
  retrieve.run([*map(str, argv), "--clip=x", "--batch_size=8", f"--output={sheet}"])
  with Image.open(sheet) as opened:
    return json.loads(sheet.with_suffix(".json").read_text()), opened.copy()


def cosine(degrees):
  return 100 * np.cos(np.deg2rad(degrees))


def test_texts_and_pictures_find_the_nearest(collection, tmp_path, capsys):
  told, sheet = found(
    tmp_path, collection, "--text=50 red", "--text=100 红", "--k=3",
    f"--image={collection}/1.png",
  )  # fmt: skip
  hits = [[hit["index"] for hit in query["hits"]] for query in told["queries"]]
  # 3 and 4 are equal: the first in the collection comes first.
  assert hits == [[3, 4, 0], [0, 3, 4], [1, 3, 4]]
  scores = [[hit["score"] for hit in query["hits"]] for query in told["queries"]]
  apart = [[10, 10, 30], [20, 60, 60], [0, 30, 30]]
  np.testing.assert_allclose(scores, cosine(np.asarray(apart)), atol=2e-4)
  assert told["queries"][0]["text"] == "50 red"
  assert told["queries"][2]["image"] == f"{collection}/1.png"
  assert told["queries"][0]["hits"][0]["picture"] == "3.png"
  assert (told["score"], told["clip"], told["num_pictures"]) == ("stand-in", "here", 5)
  width, height = contact.SIDE + contact.GAP, contact.SIDE + contact.GAP + contact.LINE
  assert sheet.size == (4 * width + contact.GAP, 3 * height + contact.GAP)
  middle = contact.GAP + contact.SIDE // 2
  assert sheet.getpixel((middle + width, middle)) == (40,) * 3
  assert sheet.getpixel((middle + width, middle + height)) == (80,) * 3
  assert "98.5  3.png" in capsys.readouterr().out


def test_a_collection_is_embedded_once_for_its_weights(
  collection, tmp_path, monkeypatch, capsys
):
  first, _ = found(tmp_path, collection, "--text=50")
  assert "embedding 5 pictures" in capsys.readouterr().err
  with monkeypatch.context() as patched:
    patched.setattr(Embedder, "images", None)
    again, _ = found(tmp_path, collection, "--text=50")
  assert again == first
  turned = JUDGE._replace(params={"turn": jnp.deg2rad(jnp.asarray(10.0))})
  with monkeypatch.context() as patched:
    patched.setattr(dual, "load", lambda path, parallel, field: turned)
    told, _ = found(tmp_path, collection, "--text=50", "--k=1")
  assert told["queries"][0]["hits"][0]["score"] == 100
  # The same weights behind other preprocessing.
  capsys.readouterr()
  with monkeypatch.context() as patched:
    other = JUDGE._replace(settings="another mean")
    patched.setattr(dual, "load", lambda path, parallel, field: other)
    found(tmp_path, collection, "--text=50")
  assert "embedding 5 pictures" in capsys.readouterr().err
  Image.new("RGB", (4, 4), (50,) * 3).save(collection / "5.png")
  told, _ = found(tmp_path, collection, "--text=50", "--k=1")
  assert told["queries"][0]["hits"][0]["picture"] == "5.png"


def test_a_folder_of_shards_is_a_collection(collection, tmp_path):
  folder = tmp_path / "shards"
  whole = [sample(encoded((level,) * 3), f"{level}") for level in LEVELS]
  write_shard(folder / "00000.tar", whole[:2])
  write_shard(folder / "00001.tar", whole[2:])
  told, _ = found(tmp_path, folder, "--text=199", "--k=1")
  hit = told["queries"][0]["hits"][0]
  assert hit["index"] == 2
  assert hit["picture"] == f"{folder}/00001.tar, member 000010000.png"
  opened = images.open_images(str(folder))
  assert (opened.length, opened.read(4).shape) == (5, (8, 8, 3))


def test_what_cannot_be_read_is_left_out(collection, tmp_path, capsys):
  (collection / "0.png").write_bytes(b"no picture")
  for again in (False, True):
    told, _ = found(tmp_path, collection, "--text=75", "--k=9")
    assert [hit["index"] for hit in told["queries"][0]["hits"]] == [3, 4, 1, 2]
    left = "1 of 5 pictures are left out: " + str(collection / "0.png")
    assert (left in capsys.readouterr().err) != again
  folder = tmp_path / "shards"
  bad = sample(encoded((70,) * 3)) | {"txt": b"caf\xe9"}
  write_shard(folder / "00000.tar", [bad, sample(encoded((80,) * 3), "80")])
  told, _ = found(tmp_path, folder, "--text=75", "--k=9")
  assert len(told["queries"][0]["hits"]) == 1
  for file in collection.iterdir():
    file.write_bytes(b"no picture")
  with pytest.raises(UserError, match="5 of 5 pictures are left out"):
    found(tmp_path, collection, "--text=75")


def test_nearest_is_the_whole_order_of_random_vectors():
  draw = np.random.default_rng(0)
  queries, vectors = draw.normal(size=(3, 8)), draw.normal(size=(50, 8))
  vectors = np.concatenate([vectors, vectors[:9]])
  for k in (1, 7, 59, 99):
    hits = retrieve.nearest(queries, vectors, k)
    for i, query in enumerate(queries):
      scores = 100 * (vectors @ query)
      order = np.argsort(-scores.round(4), kind="stable")[:k]
      assert hits.places[i].tolist() == order.tolist()
      np.testing.assert_allclose(hits.scores[i], scores[order], atol=1e-4)
  assert hits.places.shape == (3, 59)


@pytest.mark.parametrize(
  ("flags", "told"),
  [
    (("--k=0", "--text=1"), "--k must be 1 or more"),
    ((), "at least one --text or --image"),
    (("--text=",), "a --text is empty"),
    (("--text=caf\udce9",), r"'--text=caf\udce9' is not UTF-8 text"),
    (("--image=none.png",), "--image=none.png cannot be read"),
    (("--txt=1",), "unrecognized arguments: --txt=1"),
  ],
)
def test_refusals_are_one_sentence(flags, told, collection, capsys):
  argv = [str(collection), "--clip=x", "--batch_size=8", *flags]
  assert tool.status(retrieve.run, argv) == 2
  err = capsys.readouterr().err.splitlines()
  assert len([line for line in err if told in line]) == 1
  assert err[-1].startswith("taolu: ")
