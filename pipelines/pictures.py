"""Arrays to picture files: grids, film strips, GIFs."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from core.workdir import written


def to_uint8(images: Float[np.ndarray, "..."]) -> UInt8[np.ndarray, "..."]:
  """[-1, 1] -> 0..255, rounded; what lies outside is clipped."""
  return np.rint((np.clip(images, -1, 1) + 1) * 127.5).astype(np.uint8)


def from_uint8(
  images: Sequence[UInt8[np.ndarray, "h w c"]],
) -> Float[np.ndarray, "n h w c"]:
  """The inverse of `to_uint8`, of a list."""
  return np.stack(images).astype(np.float32) * np.float32(2 / 255) - 1


def grid(
  images: Float[np.ndarray, "n h w c"], columns: int, side: int = 64, gap: int = 2
) -> Image.Image:
  """Pictures row by row, each enlarged by a whole factor to at least `side`."""
  return sheet(to_uint8(images), columns, side, gap)


def sheet(
  images: Iterable[UInt8[np.ndarray, "..."]],
  columns: int,
  side: int = 64,
  gap: int = 2,
) -> Image.Image:
  """`grid` of pixels in 0..255, the tiles as large as the largest, at most 256."""
  tiles = [_enlarged(image, side) for image in images]
  for tile in tiles:
    tile.thumbnail((256, 256))
  width, height = (max(tile.size[i] for tile in tiles) for i in (0, 1))
  rows = -(-len(tiles) // columns)
  size = (columns * (width + gap) + gap, rows * (height + gap) + gap)
  paper = Image.new("RGB", size, "lightgrey")
  for i, tile in enumerate(tiles):
    row, column = divmod(i, columns)
    paper.paste(tile, (gap + column * (width + gap), gap + row * (height + gap)))
  return paper


def film(frames: Float[np.ndarray, "k n h w c"], side: int = 64) -> Image.Image:
  """Pictures while they form: a row each, time from left to right."""
  k, n = frames.shape[:2]
  return grid(frames.swapaxes(0, 1).reshape(n * k, *frames.shape[2:]), k, side)


def save(picture: Image.Image, file: Path) -> None:
  """Writes a PNG, making its folder.

  Raises:
    UserError: the file can't be written.
  """
  with written(file) as partial:
    picture.save(partial, format="PNG")


def save_gif(pictures: Sequence[Image.Image], file: Path) -> None:
  """Writes a looping GIF, a quarter of a second a frame and two for the last.

  Raises:
    UserError: the file can't be written.
  """
  durations = [250] * (len(pictures) - 1) + [2000]
  with written(file) as partial:
    pictures[0].save(
      partial,
      format="GIF",
      save_all=True,
      append_images=pictures[1:],
      duration=durations,
      loop=0,
    )


def _enlarged(image: UInt8[np.ndarray, "h w c"], side: int) -> Image.Image:
  picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
  factor = max(1, -(-side // max(picture.size)))
  size = (picture.width * factor, picture.height * factor)
  return picture.convert("RGB").resize(size, Image.Resampling.NEAREST)
