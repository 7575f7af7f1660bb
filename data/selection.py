"""Which pictures with captions are kept: filters, and which are equal or nearly so."""

import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool
from PIL import Image

from data import images, tars

HASH = 64  # bits of the perceptual hash
THUMB = 8  # side of the thumbnail
# Nearly equal pictures differ by no more than this in their thumbnails, as the root of
# the mean square, in grey levels: the perceptual hash sees no colours.
LEVELS = 4.0
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


class Signature(NamedTuple):
  """What near duplicates are known by.

  Attributes:
    digest: the hash of the pixels, which names the picture.
    area: its pixels; of near duplicates the largest stays, then the smallest digest.
    perceptual: `perceptual_hash`.
    thumb: `thumbnail`.
  """

  digest: str
  area: int
  perceptual: int
  thumb: bytes


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


def signature_of(image: Image.Image) -> Signature:
  """What a decoded picture is known by.

  `digest` begins the sha256 of width, height and RGB, so of equal pictures in different
  files it is the same.
  """
  colour = image.convert("RGB")
  found = hashlib.sha256(f"{colour.width}x{colour.height}".encode())
  found.update(colour.tobytes())
  area = image.width * image.height
  return Signature(
    found.hexdigest()[:32], area, perceptual_hash(colour), thumbnail(colour)
  )


def thumbnail(image: Image.Image) -> bytes:
  """Eight by eight means of the picture, in RGB."""
  return image.resize((THUMB, THUMB), Image.Resampling.BOX).tobytes()


def perceptual_hash(image: Image.Image) -> int:
  """pHash (Zauner 2010, from memory), 64 bits.

  Of the picture in grey at 32 x 32, the cosine transform C = D X D^T with
  D[k, n] = cos(pi k (2n + 1) / 64); a bit for each of C[1..8, 1..8], row by row: is it
  above their median? Resizing and compression change few of them.
  """
  side = 32
  grey = image.convert("L").resize((side, side), Image.Resampling.LANCZOS)
  k, n = np.arange(1, 9)[:, None], np.arange(side)
  basis = np.cos(np.pi * k * (2 * n + 1) / (2 * side))
  waves = basis @ np.asarray(grey, np.float64) @ basis.T
  # What is 0 but for rounding must not give random bits.
  waves = waves.round(6)
  above = (waves > np.median(waves)).ravel()
  return int.from_bytes(np.packbits(above).tobytes(), "big")


def bands(perceptual: int, near_bits: int) -> Iterator[tuple[int, int]]:
  """Parts of a hash, of which two that differ in `near_bits` or fewer share one.

  The 64 bits are cut into near_bits + 1 parts: too few differences to be in all.
  """
  count = near_bits + 1
  for i in range(count):
    low, high = HASH * i // count, HASH * (i + 1) // count
    yield i, perceptual >> low & (1 << high - low) - 1


def losers(found: Iterable[Signature], near_bits: int) -> Iterator[str]:
  """Digests of the pictures that are near to a larger one of these.

  Near are hashes that differ in `near_bits` or fewer, with thumbnails within LEVELS. A
  picture is dropped for each larger one that it is near to, kept or not, so the answer
  for a pair does not depend on what else is there, nor on any order.
  """
  ranked = sorted(set(found), key=lambda one: (-one.area, one.digest))
  hashes = np.asarray([one.perceptual for one in ranked], np.uint64)
  thumbs = np.asarray([np.frombuffer(one.thumb, np.uint8) for one in ranked], np.int32)
  for i in range(1, len(ranked)):
    if near(hashes[:i], thumbs[:i], hashes[i], thumbs[i], near_bits).any():
      yield ranked[i].digest


def near(
  hashes: np.ndarray, thumbs: np.ndarray, one: np.uint64, thumb: np.ndarray, bits: int
) -> Bool[np.ndarray, " n"]:
  """Which of n pictures are near to one."""
  found = np.bitwise_count(hashes ^ one) <= bits
  squares = np.square(thumbs[found] - thumb).mean(1)
  found[found] = squares <= LEVELS**2
  return found


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
