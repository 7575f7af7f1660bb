"""Which pictures with captions are kept, how they are stored, and the report of it."""

import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from PIL import Image

from data import images, tars
from data.near import Signature, signature_of

QUALITY = 95  # of JPEG and WebP that are written again


class Rules(NamedTuple):
  """What is kept, and how.

  Attributes:
    size: of what is stored, the shorter side at most; 0 leaves pictures as they are.
    min_side: of pictures, in pixels.
    max_aspect: the longer side by the shorter.
    min_caption, max_caption: characters of a caption.
    captions: fields of the .json that hold captions; see `tars.captions`.
    at_least, at_most: fields of the .json and the bounds of their numbers.
    near_bits: of nearly equal perceptual hashes; -1 keeps near duplicates.
  """

  size: int = 0
  min_side: int = 1
  max_aspect: float = float("inf")
  min_caption: int = 1
  max_caption: int = 10**9
  captions: tuple[str, ...] = ()
  at_least: tuple[tuple[str, float], ...] = ()
  at_most: tuple[tuple[str, float], ...] = ()
  near_bits: int = 4


class Kept(NamedTuple):
  """A sample that passed the filters, as it will be stored.

  Attributes:
    order: of equal pictures the first in this order stays.
    signature: what it looks like.
    suffix: of its picture.
    picture, txt, meta: the bytes of its three parts.
  """

  order: tuple[str, int]
  signature: Signature
  suffix: str
  picture: bytes
  txt: bytes
  meta: bytes


def judge(
  parts: Mapping[str, bytes], rules: Rules, order: tuple[str, int], source: str
) -> Kept | str:
  """A sample as it will be stored, or why it is dropped: the first that holds.

  Args:
    parts: of the sample, by extension.
    rules: what is kept.
    order: its place in the input.
    source: what it was called there, for its .json.
  """
  raw = tars.picture(parts)
  if raw is None:
    return "no picture"
  try:
    meta = tars.fields(parts.get("json"))
    captions = tars.captions(parts.get("txt"), meta, rules.captions)
  except ValueError:
    return "text unreadable"
  for field, low, high in bounds(rules):
    value = meta.get(field)
    if isinstance(value, bool) or not isinstance(value, int | float):
      return f"{field} missing"
    if not low <= value <= high:
      return f"{field} too low" if value < low else f"{field} too high"
  if not captions:
    return "no caption"
  fits = lambda text: rules.min_caption <= len(text) <= rules.max_caption  # noqa: E731
  captions = {code: list(filter(fits, own)) for code, own in captions.items()}
  captions = {code: own for code, own in captions.items() if own}
  if not captions:
    return "caption too short or long"
  try:
    image = images.decode(raw)
  except images.Unreadable:
    return "picture unreadable"
  if min(image.size) < rules.min_side:
    return "too small"
  if max(image.size) > rules.max_aspect * min(image.size):
    return "too long"
  signature = signature_of(image)
  suffix, picture, size = stored(image, raw, rules.size)
  texts = next(iter(captions.values()))
  meta = {
    "original_width": image.width,
    "original_height": image.height,
    **meta,
    "key": signature.digest,
    "source": source,
    "caption": texts[0],
    "captions": captions,
    "width": size[0],
    "height": size[1],
    "sha256": hashlib.sha256(picture).hexdigest(),
  }
  told = json.dumps(meta, sort_keys=True).encode()
  return Kept(order, signature, suffix, picture, "\n".join(texts).encode(), told)


def bounds(rules: Rules) -> Iterator[tuple[str, float, float]]:
  """(field, least, most) of each bound."""
  for field, low in rules.at_least:
    yield field, low, float("inf")
  for field, high in rules.at_most:
    yield field, -float("inf"), high


def stored(
  image: Image.Image, raw: bytes, size: int
) -> tuple[str, bytes, tuple[int, int]]:
  """(extension, bytes, (width, height)) of a picture as it is stored.

  Larger ones get a shorter side of `size`, with antialiasing, and stay in their format
  (JPEG and WebP at quality 95; BMP becomes PNG). Others, and all with `size` 0, keep
  their bytes.
  """
  kind = Image.open(io.BytesIO(raw), formats=images.FORMATS).format
  short = min(image.size)
  if not size or short <= size:
    return {"JPEG": "jpg"}.get(kind, kind.lower()), raw, image.size
  wide = (round(image.width * size / short), round(image.height * size / short))
  image = image.resize(wide, Image.Resampling.LANCZOS)
  kind = "PNG" if kind == "BMP" else kind
  options = {
    "PNG": {},
    "JPEG": {"quality": QUALITY, "subsampling": 0},
    "WEBP": {"quality": QUALITY},
  }
  file = io.BytesIO()
  image.save(file, kind, **options[kind])
  return {"JPEG": "jpg"}.get(kind, kind.lower()), file.getvalue(), image.size


def shard_of(digest: str, count: int) -> int:
  """Which of `count` shards a picture goes to."""
  return int(digest[:16], 16) % count


def members(kept: Sequence[Kept]) -> Iterator[tuple[str, bytes]]:
  """Members of a tar shard, in its order."""
  for one in kept:
    key = one.signature.digest
    yield f"{key}.{one.suffix}", one.picture
    yield f"{key}.txt", one.txt
    yield f"{key}.json", one.meta


def report(counts: Mapping[str, int], torn: Iterable[Any]) -> dict[str, Any]:
  """What the preparation says it did.

  Args:
    counts: 'read', 'passed' (the filters), 'unique', 'near', 'kept', 'shards', and how
      many were dropped for each reason.
    torn: names of the tar files that are cut short, with what is wrong.
  """
  rest = dict(counts)
  count = lambda name: rest.pop(name, 0)  # noqa: E731
  read, passed, unique = count("read"), count("passed"), count("unique")
  near_ones, kept, shards = count("near"), count("kept"), count("shards")
  dropped = dict(sorted(rest.items()))
  dropped |= {"duplicate": passed - unique, "near duplicate": near_ones}
  return {
    "read": read,
    "dropped": {reason: number for reason, number in dropped.items() if number},
    "kept": kept,
    "shards": shards,
    "torn": sorted(torn),
  }
