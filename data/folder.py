"""A directory of images, with captions in captions.jsonl or classes as subfolders."""

import hashlib
import json
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from jaxtyping import UInt8
from ml_collections import ConfigDict

from core.errors import UserError
from core.log import say
from data import dataset, images
from data.dataset import Captions, Dataset, Example

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
CAPTIONS = "captions.jsonl"
SUBFOLDERS = {
  "train": ("train",),
  "validation": ("validation", "val"),
  "test": ("test",),
}


def load(config: ConfigDict, split: str) -> Dataset:
  """The images of one split under `config.path`, in the order of their names.

  Splits are the subfolders train/, validation/ (or val/) and test/ if they hold
  all the images; else about 90%, 5% and 5% of the files, by a hash of the name.
  The split 'all' is every image.

  captions.jsonl lies beside the images, one JSON object a line: {"file": "a.png",
  "caption": "a cat"} or {"file": "a.png", "captions": {"en": "a cat", "ja":
  ["猫", "ねこ"]}}; "file_name" may stand for "file". Without it, if every image is
  in a subfolder, the subfolder is the class and its name the English caption.

  Every image is decoded once here, so a damaged one is found before training.

  Raises:
    UserError: the folder is missing or empty; captions.jsonl is malformed; an
      image is damaged (unless `config.on_bad_image` is 'skip'), smaller than
      `config.size`, or coloured where `config.channels` is 1; nothing matches.
  """
  if not config.path:
    raise UserError(
      "data.path is empty: set --config.data.path to your folder of images."
    )
  root = Path(config.path).expanduser()
  if not root.is_dir():
    raise UserError(f"The folder {root} does not exist: check data.path.")
  everything = find(root)
  if not everything:
    raise UserError(
      f"No images under {root}: put {', '.join(SUFFIXES)} files there, or change "
      "data.path."
    )
  files, labels, classes = everything, {}, []
  tops = {file.split("/")[0] for file in everything}
  if tops <= {top for own in SUBFOLDERS.values() for top in own}:
    homes = sorted(f"{top}/" for top in tops)
  else:
    homes = [""]
  captions = read_captions(root, homes, everything)
  if captions is None:
    inner = {f: f[len(home) :] for home in homes for f in files if f.startswith(home)}
    captions = {}
    if all("/" in name for name in inner.values()):
      labels = {file: name.split("/")[0] for file, name in inner.items()}
      classes = sorted(set(labels.values()))
      captions = {f: {"en": (dataset.words(c),)} for f, c in labels.items()}
  files = choose(everything, split, homes, root)
  test = dataset.matches(config.match)
  kept = [file for file in files if test(captions.get(file, {}))]
  if not kept:
    raise dataset.nothing_matches(str(root), split, config.match)
  good, pictures = check(root, kept, config, len(files))
  numbers = {name: i for i, name in enumerate(classes)}
  texts = [captions.get(file, {}) for file in good]
  labels = [numbers[labels[file]] if labels else -1 for file in good]

  def read(i: int) -> Example:
    image = pictures[i] if pictures else open_image(root, good[i], config)
    return Example(image, texts[i], labels[i])

  return Dataset(
    str(root),
    len(good),
    read,
    shape=(config.size, config.size, config.channels),
    captions=texts.__getitem__,
    classes=[dataset.words(name) for name in classes],
    languages={code for own in captions.values() for code in own},
  )


def find(root: Path) -> list[str]:
  """Paths of all images below `root`, relative, sorted; hidden files are left out."""
  paths = (p.relative_to(root) for p in root.rglob("*") if p.suffix.lower() in SUFFIXES)
  return sorted(
    path.as_posix()
    for path in paths
    if not any(part.startswith(".") for part in path.parts) and (root / path).is_file()
  )


def choose(files: list[str], split: str, homes: list[str], root: Path) -> list[str]:
  """The files of one split."""
  if split == "all":
    return files
  if split not in SUBFOLDERS:
    raise UserError(
      f"A folder has no split {split!r}: choose among {', '.join(SUBFOLDERS)}, all."
    )
  if homes != [""]:
    own = tuple(f"{name}/" for name in SUBFOLDERS[split])
    kept = [file for file in files if file.startswith(own)]
    have = ", ".join(homes)
  else:
    kept = [file for file in files if split_of(file) == split]
    have = f"{len(files)} images, too few to cut by the hash of their names"
  if not kept:
    raise UserError(
      f"{root} has no images for the split {split!r} (it has {have}): add some, or "
      "choose another split, for example 'all'."
    )
  return kept


def split_of(file: str) -> str:
  """The split of a file in a folder that is not cut already."""
  raw = file.encode("utf-8", "surrogateescape")  # names may be any bytes
  share = int.from_bytes(hashlib.sha256(raw).digest()[:8], "big") / 2**64
  return "train" if share < 0.9 else "validation" if share < 0.95 else "test"


def read_captions(
  root: Path, homes: list[str], files: Iterable[str]
) -> dict[str, Captions] | None:
  """Captions by file, from root/captions.jsonl or one in each split's subfolder.

  None if there is no such file.
  """
  places = dict.fromkeys(["", *homes])
  sources = [home for home in places if (root / home / CAPTIONS).is_file()]
  if not sources:
    return None
  known, found = set(files), {}
  for home in sources:
    path = root / home / CAPTIONS
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
      if not line.strip():
        continue
      try:
        file, captions = parse(line)
        file = str(PurePosixPath(home, file))
        if file not in known:
          raise ValueError(f"there is no image {file!r} under {root}")
        if file in found:
          raise ValueError(f"{file!r} has a line already")
      except ValueError as error:
        raise UserError(
          f"{path}, line {number}: {error}; a line looks like "
          '{"file": "a.png", "caption": "a cat"}.'
        ) from error
      found[file] = captions
  return found


def parse(line: bytes) -> tuple[str, Captions]:
  """One line of captions.jsonl -> (file, captions by language); blanks left out.

  Raises:
    ValueError: saying what is wrong with it.
  """
  try:
    entry = json.loads(line.decode("utf-8-sig"))
  except UnicodeDecodeError:
    raise ValueError("this is not UTF-8 text") from None
  except (json.JSONDecodeError, RecursionError) as error:
    raise ValueError(f"this is not JSON ({error})") from None
  if not isinstance(entry, dict):
    raise ValueError(f"this is a JSON {type(entry).__name__}, not an object")
  file = entry.get("file", entry.get("file_name"))
  if not isinstance(file, str) or not file:
    raise ValueError('"file" must be the name of an image')
  if ("caption" in entry) == ("captions" in entry):
    raise ValueError('there must be either "caption" or "captions"')
  own = {"en": entry["caption"]} if "caption" in entry else entry["captions"]
  if not isinstance(own, dict):
    raise ValueError('"captions" must be an object of captions by language')
  captions = {}
  for code, texts in own.items():
    texts = [texts] if isinstance(texts, str) else texts
    if not isinstance(texts, list) or not all(isinstance(t, str) for t in texts):
      raise ValueError(f"the caption in {code!r} must be text, or a list of texts")
    texts = tuple(text.strip() for text in texts if text.strip())
    if any("\ud800" <= letter <= "\udfff" for letter in "".join(texts)):
      raise ValueError(f"the caption in {code!r} holds half a character (a surrogate)")
    if texts:
      captions[code] = texts
  return file, captions


def open_image(root: Path, file: str, config: ConfigDict) -> UInt8[np.ndarray, "h w c"]:
  """One image, decoded and fitted."""
  image = images.decode(root / file, config.size)
  return images.fit(image, config.size, config.channels, str(root / file))


def check(
  root: Path, files: list[str], config: ConfigDict, total: int
) -> tuple[list[str], list[UInt8[np.ndarray, "h w c"]]]:
  """Decodes every file: (those that are whole, their pictures if all fit in memory).

  `total` is how many there are of the split, with those that do not match.
  """
  size, channels = config.size, config.channels
  keep = len(files) * size * size * channels <= dataset.CACHE_BYTES
  left = f" (of {total:,}, by data.match)" if len(files) < total else ""
  say(f"reading {len(files):,} images in {root}{left}")

  def attempt(file: str) -> Any:
    try:
      image = open_image(root, file, config)
    except (images.Unreadable, UserError) as error:
      return error
    return image if keep else None

  with ThreadPoolExecutor(os.cpu_count()) as pool:
    results = list(pool.map(attempt, files))
  faults = [r for r in results if isinstance(r, UserError)]
  if faults:
    more = f" ({len(faults) - 1} more like this.)" if len(faults) > 1 else ""
    # The smallest picture: its size is one that fits all.
    worst = min(faults, key=lambda fault: getattr(fault, "side", 0))
    raise UserError(f"{worst}{more}")
  pairs = list(zip(files, results, strict=True))
  bad = [file for file, result in pairs if isinstance(result, images.Unreadable)]
  if bad:
    report(root, bad, len(files), config.on_bad_image)
    pairs = [pair for pair in pairs if not isinstance(pair[1], images.Unreadable)]
  return [file for file, _ in pairs], [r for _, r in pairs] if keep else []


def report(root: Path, bad: list[str], total: int, on_bad_image: str) -> None:
  """Names the unreadable images: a warning to 'skip' them, else a UserError."""
  more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
  told = (
    f"{len(bad)} of {total} images in {root} cannot be read: {', '.join(bad[:3])}{more}"
  )
  if len(bad) == total:
    raise UserError(f"{told}; repair them, or change data.path.")
  if on_bad_image == "fail":
    raise UserError(
      f"{told}; repair or remove them, or set data.on_bad_image to 'skip'."
    )
  say(f"{told}; they are skipped")
