"""The OpenMoji builder: what is drawn, in which languages, in which split."""

import hashlib
import itertools
import os
from pathlib import Path

import numpy as np
import pytest

from configs import base
from core.errors import UserError
from data import openmoji, source, tfds_sets

ROOT = Path(__file__).resolve().parents[1]
SPLITS = ("train", "validation", "test")
ASKED_FIRST = {
  *("red heart", "blue heart", "green heart", "yellow heart"),
  *("red circle", "blue circle", "green circle", "yellow circle"),
  *("grinning face", "crescent moon", "star", "red apple", "cat face", "sun", "pizza"),
}


@pytest.fixture(scope="module")
def config():
  """The data settings, with a place where the pictures are kept between runs.

  They are drawn again when the builder's source changes.
  """
  code = hashlib.sha256(Path(openmoji.__file__).read_bytes()).hexdigest()[:12]
  place = os.environ.get("TAOLU_TEST_DATA", ROOT / ".cache" / "tfds")
  config = base.get_config().data
  config.dir = str(Path(place) / code)
  return config


@pytest.fixture(scope="module")
def splits(config):
  return {split: source.load(config, split) for split in SPLITS}


@pytest.fixture(scope="module")
def records(config, splits):
  builder = source.find(config)
  return {split: list(builder.as_data_source(split)) for split in SPLITS}


def english(data):
  return [data.captions(i)["en"][0] for i in range(len(data))]


def test_every_picture_has_a_caption_in_14_languages(splits):
  assert len(openmoji.LANGUAGES) == 14
  for data in splits.values():
    assert data.languages == openmoji.LANGUAGES
    for i in range(len(data)):
      captions = data.captions(i)
      assert set(captions) == set(openmoji.LANGUAGES)
      for (text,) in captions.values():
        assert text == text.strip() != ""
        assert not set(text) & set(":_\ufe0f")
  heart = splits["train"].captions(english(splits["train"]).index("red heart"))
  assert heart["zh"] == ("红心",)
  assert heart["ja"] == ("赤いハート",)


def test_no_two_pictures_are_the_same(splits):
  pictures = [
    data.image(i).tobytes() for data in splits.values() for i in range(len(data))
  ]
  assert len(set(pictures)) == len(pictures) > 3700


def test_no_concept_is_in_two_splits(splits, records):
  assert [len(data) for data in splits.values()] == [3365, 183, 183]
  concepts = {
    split: {record["concept"].decode() for record in own}
    for split, own in records.items()
  }
  for one, other in itertools.combinations(SPLITS, 2):
    assert not concepts[one] & concepts[other]
  assert set(english(splits["train"])) >= ASKED_FIRST


def test_no_picture_has_a_copy_in_another_split(splits):
  x = {
    split: np.stack([data.image(i).ravel() / np.float32(255) for i in range(len(data))])
    for split, data in splits.items()
  }
  for one, other in itertools.combinations(SPLITS, 2):
    a, b = x[one], x[other]
    distance = (a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * a @ b.T
    assert np.sqrt(distance.min() / a.shape[1]) > openmoji.COPY


@pytest.mark.parametrize(
  ("names", "concept"),
  [
    ("pilot; woman pilot; man pilot dark skin tone", "pilot"),
    ("family; family man woman girl boy; family adult child", "family"),
    ("man medium-light skin tone red hair; person; woman beard", "person"),
    ("woman and man holding hands; people holding hands", "holding hands"),
    ("man running facing right; person running", "running"),
    ("mermaid; merman dark skin tone; merperson", "merperson"),
    ("princess; person with crown light skin tone", "royalty"),
    ("old man; older person", "old"),
    ("woman’s hat", "woman’s hat"),
    ("red heart", "red heart"),
  ],
)
def test_concepts_leave_out_who_is_drawn(names, concept):
  assert {openmoji.concept(name) for name in names.split("; ")} == {concept}


def test_colours_are_those_of_the_drawing(splits):
  data = splits["train"]
  names = english(data)
  for name, (r, g, b) in (
    ("red circle", (211, 47, 39)),
    ("yellow circle", (252, 234, 43)),
    ("blue heart", (30, 80, 160)),
  ):
    image = data.image(names.index(name)).astype(int)
    assert (image[0, 0] == 255).all()
    np.testing.assert_allclose(image[16, 16], (r, g, b), atol=12)


def test_other_sizes_are_averaged(config, splits):
  small = config.copy_and_resolve_references()
  small.size = 8
  data = source.load(small, "train")
  assert len(data) == len(splits["train"])
  for i in (0, 100, 2000):
    large = splits["train"].image(i).reshape(8, 4, 8, 4, 3).mean((1, 3))
    np.testing.assert_allclose(data.image(i), large, atol=1)


def test_a_caption_filter_and_refusals(config):
  def load(**changes):
    own = config.copy_and_resolve_references()
    own.update(changes)
    return source.load(own, "train")

  assert all("heart" in name for name in english(load(match="heart$")))
  for reason, changes in (
    (
      "no captions in xx: choose data.languages among ar, de, en",
      {"languages": ("xx",)},
    ),
    ("up to 256 pixels, smaller than data.size 512", {"size": 512}),
    ("in colour, and data.channels is 1", {"channels": 1, "match": "red heart"}),
  ):
    with pytest.raises(UserError, match=reason):
      load(**changes)


@pytest.mark.slow
def test_all_sizes_hold_the_same_examples(config, records):
  codes = {split: [r["code"] for r in own] for split, own in records.items()}
  for size in openmoji.SIZES[1:]:
    own = config.copy_and_resolve_references()
    own.size = size
    source.prepare(own)
    for split in SPLITS:
      drawn = source.find(own).as_data_source(split)
      assert [record["code"] for record in drawn] == codes[split]
      assert drawn[0]["image"].shape == (size, size, 3)


def test_it_is_prepared_once(config, splits, capsys):
  source.prepare(config)
  assert tfds_sets.prepared(source.find(config))
  assert capsys.readouterr().out == ""
