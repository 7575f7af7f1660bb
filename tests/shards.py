"""What tests of shards share: tar files as img2dataset writes them."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image


def encoded(pixels, kind: str = "PNG", **options) -> bytes:
  """A picture's file; `pixels` is a colour (of an 8x8 square) or an array."""
  if isinstance(pixels, tuple):
    pixels = np.full((8, 8, 3), pixels, np.uint8)
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, kind, **options)
  return file.getvalue()


def sample(picture: bytes | None, caption: str = "", suffix: str = "png", **meta):
  """Parts of a sample: the picture, its caption in .txt, and a .json."""
  parts = {} if picture is None else {suffix: picture}
  if caption:
    parts["txt"] = caption.encode()
  return parts | {"json": json.dumps(meta | {"caption": caption or None}).encode()}


def write_shard(file: Path, samples) -> Path:
  """A tar of samples, each a dict of parts, under keys as img2dataset's."""
  file.parent.mkdir(parents=True, exist_ok=True)
  with tarfile.open(file, "w") as tar:
    for i, parts in enumerate(samples):
      for suffix, raw in parts.items():
        member = tarfile.TarInfo(f"{file.stem}{i:04d}.{suffix}")
        member.size = len(raw)
        tar.addfile(member, io.BytesIO(raw))
  return file


def colour(i: int) -> tuple[int, int, int]:
  """A colour of its own for each i."""
  return tuple(int(c) for c in np.random.default_rng(i).integers(0, 256, 3))


def squares(first: int, count: int, **meta):
  """Samples of one-coloured squares, each with a caption of its own."""
  return [
    sample(encoded(colour(i)), f"colour {i}", **meta)
    for i in range(first, first + count)
  ]
