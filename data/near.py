"""Which pictures are equal or nearly so: what they are known by, and who has to go."""

import hashlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int32, UInt64
from PIL import Image

HASH = 64  # bits of the perceptual hash
THUMB = 8  # side of the thumbnail
# Nearly equal pictures differ by no more than this in their thumbnails, as the root of
# the mean square, in grey levels: the perceptual hash sees no colours.
LEVELS = 4.0


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
  hashes: UInt64[np.ndarray, " n"],
  thumbs: Int32[np.ndarray, "n d"],
  one: np.uint64,
  thumb: Int32[np.ndarray, " d"],
  bits: int,
) -> Bool[np.ndarray, " n"]:
  """Which of n pictures are near to one."""
  found = np.bitwise_count(hashes ^ one) <= bits
  squares = np.square(thumbs[found] - thumb).mean(1)
  found[found] = squares <= LEVELS**2
  return found
