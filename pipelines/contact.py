"""Contact sheets: rows of pictures, each with a line under it."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

Tile = tuple[UInt8[np.ndarray, "..."] | str, str]
SIDE, LINE, GAP = 112, 16, 4


def contact_sheet(rows: Sequence[Sequence[Tile]]) -> Image.Image:
  """Rows of tiles; a tile is a picture, or a text in its place, and the line under it.

  Pictures are fitted into squares of 112 pixels, small ones enlarged by a whole factor.
  """
  columns = max(len(row) for row in rows)
  width, height = SIDE + GAP, SIDE + LINE + GAP
  paper = Image.new("RGB", (columns * width + GAP, len(rows) * height + GAP), "white")
  draw, font = ImageDraw.Draw(paper), ImageFont.load_default(11)
  for y, row in enumerate(rows):
    for x, (shown, line) in enumerate(row):
      left, top = GAP + x * width, GAP + y * height
      if isinstance(shown, str):
        paper.paste("lightgrey", (left, top, left + SIDE, top + SIDE))
        draw.multiline_text((left + 4, top + 4), wrapped(shown, font), "black", font)
      else:
        picture = fitted(shown)
        at = left + (SIDE - picture.width) // 2, top + (SIDE - picture.height) // 2
        paper.paste(picture, at)
      draw.text((left + 2, top + SIDE + 1), line, "black", font)
  return paper


def fitted(image: UInt8[np.ndarray, "h w c"]) -> Image.Image:
  """A picture in a tile's square."""
  picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
  picture = picture.convert("RGB")
  factor = SIDE // max(picture.size)
  if factor > 1:
    size = (picture.width * factor, picture.height * factor)
    return picture.resize(size, Image.Resampling.NEAREST)
  picture.thumbnail((SIDE, SIDE))
  return picture


def wrapped(text: str, font: ImageFont.FreeTypeFont) -> str:
  """Lines that fit a tile, of what the built-in font can write; 8 at most.

  It has no letters but Latin ones: others become question marks.
  """
  lines = [""]
  for word in text.encode("latin-1", "replace").decode("latin-1").split():
    longer = f"{lines[-1]} {word}".strip()
    if font.getlength(longer) > SIDE - 8 and lines[-1]:
      lines.append(word)
    else:
      lines[-1] = longer
  return "\n".join(lines[:8])
