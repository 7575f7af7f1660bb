"""Any image data set of TensorFlow Datasets, read at random without TensorFlow."""

import contextlib
import difflib
import fcntl
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from core.errors import UserError
from core.log import say
from data import dataset, images
from data.dataset import Captions, Dataset, Example

OURS = ("folder", "openmoji", "shards")
FAILED = (
  OSError,  # the network's and the disk's errors
  AssertionError,  # a file that must be fetched by hand
  tfds.download.DownloadError,
  tfds.core.download.download_manager.NonMatchingChecksumError,
)
# What features that hold captions are called in TFDS.
TEXT = ("caption", "text", "description", "prompt")


def find(name: str, folder: str) -> tfds.core.DatasetBuilder:
  """The builder called `name` ('cifar10', 'imagenet_resized/64x64').

  Raises:
    UserError: TFDS does not know it; the nearest known name is given.
  """
  try:
    builder = tfds.builder(name, data_dir=folder or None)
    if not prepared(builder):
      builder = tfds.builder(name, data_dir=folder or None, file_format="array_record")
  except (tfds.core.DatasetNotFoundError, ValueError) as error:
    base = name.partition("/")[0]
    known = [*tfds.list_builders(with_community_datasets=False), *OURS]
    if base in known:
      raise UserError(f"Data set {name!r}: {first_line(error)}.") from error
    near = difflib.get_close_matches(base, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else "see tensorflow.org/datasets."
    raise UserError(f"Unknown data set {name!r}: {hint}") from error
  return builder


def prepared(builder: tfds.core.DatasetBuilder) -> bool:
  """Whether the data set is there; the builder's own method warns when it is not."""
  return (builder.data_path / "dataset_info.json").exists()


def prepare(builder: tfds.core.DatasetBuilder) -> None:
  """Downloads and writes the data set, unless that is done.

  Raises:
    UserError: a package is missing, the download or the writing failed, or the
      data lie there in a format without random access.
  """
  name, folder = builder.info.full_name, Path(builder.data_dir)
  with exclusive(builder):
    if not prepared(builder):
      try:
        builder.download_and_prepare()
      except ImportError as error:
        package = (error.name or "tensorflow").partition(".")[0]
        package = {"tensorflow": "tensorflow-cpu"}.get(package, package)
        raise UserError(
          f"{name} cannot be prepared without the package {package}, which reading "
          f"it does not need: pip install {package}, then start again."
        ) from error
      except FAILED as error:
        raise UserError(
          f"{name} cannot be downloaded and prepared in {folder}: "
          f"{first_line(error)}; prepare it elsewhere with file_format="
          "'array_record' and set data.dir, or use other data."
        ) from error
  formats = builder.info.available_file_formats()
  if not formats & tfds.core.file_adapters.FileFormat.with_random_access():
    have = ", ".join(sorted(f.value for f in formats))
    raise UserError(
      f"{name} in {folder} is stored as {have}, which cannot be read at random: "
      "delete it or set data.dir to another place, and it is prepared again as "
      "array_record."
    )


@contextlib.contextmanager
def exclusive(builder: tfds.core.DatasetBuilder) -> Iterator[None]:
  """Lets one process of a machine prepare while the others wait."""
  folder = Path(builder.data_dir).parent
  if prepared(builder) or "://" in builder.data_dir:
    yield
    return
  try:
    folder.mkdir(parents=True, exist_ok=True)
    lock = (folder / ".lock").open("w")
  except OSError as error:
    raise UserError(
      f"Cannot write in {folder} ({error.strerror}): set data.dir to a writable "
      "directory."
    ) from error
  with lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    yield


def open_builder(
  builder: tfds.core.DatasetBuilder,
  split: str,
  *,
  size: int,
  channels: int,
  match: str = "",
  on_bad_image: str = "fail",
  resample: Image.Resampling = Image.Resampling.LANCZOS,
) -> Dataset:
  """The split of a prepared builder.

  Picks the first image feature and the first class label; captions are the text
  features whose name says so (a dict of them is captions by language), else the
  label's name, in English. With `on_bad_image` 'skip' the next whole picture takes
  the place of one that cannot be read.

  Raises:
    UserError: no such split, no image feature, pictures too small or coloured
      where `channels` is 1, nothing matches.
  """
  name, features = builder.info.name, builder.info.features
  image_key = first(features, tfds.features.Image, "image")
  label_key = first(features, tfds.features.ClassLabel, "label")
  if image_key is None:
    raise UserError(f"The data set {name} has no images: choose another data.name.")
  try:
    source = builder.as_data_source(
      split, decoders={image_key: tfds.decode.SkipDecoding()}
    )
  except (ValueError, KeyError) as error:
    raise UserError(
      f"{name} has no split {split!r}: choose among {', '.join(builder.info.splits)}."
    ) from error
  texts = [key for key in features if any(word in key.lower() for word in TEXT)]
  classes = [dataset.words(n) for n in features[label_key].names] if label_key else []
  languages = {"en"} if classes else set()
  if texts:
    languages = set(language_features(features[texts[0]])) or {"en"}

  def label_of(record: Mapping[str, Any]) -> int:
    return int(record[label_key]) if label_key else -1

  def captions_of(record: Mapping[str, Any]) -> Captions:
    if texts:
      return captions(record[texts[0]], features[texts[0]])
    label = label_of(record)
    return {"en": (classes[label],)} if label >= 0 else {}

  test = dataset.matches(match)
  rows = range(len(source))
  if match:
    rows = [i for i in rows if test(captions_of(source[i]))]
  if not rows:
    raise dataset.nothing_matches(name, split, match)

  skipped = set()

  def read(i: int) -> Example:
    record, where = source[rows[i]], f"Image {rows[i]} of {name}"
    try:
      image = images.decode(record[image_key], size)
    except images.Unreadable as error:
      told = f"{where} ({split}) is damaged ({error})"
      skipped.add(i)
      if on_bad_image == "skip" and len(skipped) < len(rows):
        say(f"{told}: skipped, {len(skipped)} so far")
        return read((i + 1) % len(rows))
      raise UserError(
        f"{told}: delete {builder.data_dir} and prepare the data set again, or set "
        "data.on_bad_image to 'skip'."
      ) from error
    pixels = images.fit(image, size, channels, where, resample)
    return Example(pixels, captions_of(record), label_of(record))

  loaded = Dataset(
    name,
    len(rows),
    read,
    shape=(size, size, channels),
    captions=lambda i: captions_of(source[rows[i]]),
    classes=classes,
    languages=languages,
  )
  loaded[0]  # pictures of the wrong kind are refused now, not in the first batch
  return loaded


def first(features: tfds.features.FeaturesDict, kind: type, usual: str) -> str | None:
  """The key of the first feature of this kind, the usual one if it is there."""
  keys = [key for key, feature in features.items() if isinstance(feature, kind)]
  return usual if usual in keys else next(iter(keys), None)


def language_features(feature: Any) -> list[str]:
  """Language codes of a dict of texts, [] for any other feature."""
  if isinstance(feature, tfds.features.FeaturesDict) and "text" not in feature:
    return list(feature)
  return []


def captions(value: Any, feature: Any) -> Captions:
  """A caption feature's value, in whichever form, as captions by language."""
  codes = language_features(feature)
  found = {c: strings(value[c]) for c in codes} if codes else {"en": strings(value)}
  return {code: own for code, own in found.items() if own}


def strings(value: Any) -> tuple[str, ...]:
  """All texts in bytes, a text, a list of them, or records with a key 'text'."""
  if isinstance(value, bytes):
    value = value.decode("utf-8", "replace")
  if isinstance(value, str):
    return (value,) if value.strip() else ()
  if isinstance(value, Mapping):
    return strings(value.get("text", ()))
  if isinstance(value, np.ndarray | list | tuple):
    return tuple(text for item in value for text in strings(item))
  return ()


def first_line(error: BaseException) -> str:
  """The first line of its message, to go into a sentence."""
  lines = str(error).strip().splitlines()
  return lines[0].rstrip(".") if lines else type(error).__name__
