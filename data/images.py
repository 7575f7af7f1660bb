"""Encoded picture -> uint8 array of the size and channels that a config asks for."""

import io
from os import PathLike

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from core.errors import UserError

FORMATS = ("PNG", "JPEG", "WEBP", "BMP")


class Unreadable(Exception):
  """The bytes are not a whole picture."""


class TooSmall(UserError):
  """A picture whose shorter side, `side`, is less than data.size."""

  def __init__(self, message: str, side: int):
    super().__init__(message)
    self.side = side


def decode(file: bytes | str | PathLike, size: int = 0) -> Image.Image:
  """A picture from its bytes or path, upright, as mode L or RGB.

  Transparent parts become white. `size` only tells a JPEG decoder how much of a
  large photograph it may leave out; with 0 every pixel is decoded.

  Raises:
    Unreadable: damaged, truncated, or not one of FORMATS.
  """
  try:
    with Image.open(
      io.BytesIO(file) if isinstance(file, bytes) else file, formats=FORMATS
    ) as image:
      if size:
        image.draft(None, (2 * size, 2 * size))
      image = ImageOps.exif_transpose(image)
      image.load()
  # Pillow's decoders raise a dozen different types on damaged data.
  except Exception as error:
    raise Unreadable(str(error) or type(error).__name__) from error
  if image.mode.startswith("I"):  # 16 bits of grey, which convert() would clip
    wide = np.asarray(image).astype(np.int32)
    return Image.fromarray((wide >> 8).clip(0, 255).astype(np.uint8))
  if image.has_transparency_data:
    white = Image.new("RGBA", image.size, "white")
    image = Image.alpha_composite(white, image.convert("RGBA"))
  return image.convert("L" if image.mode in ("1", "L", "LA") else "RGB")


def fit(
  image: Image.Image,
  size: int,
  channels: int,
  where: str,
  resample: Image.Resampling = Image.Resampling.LANCZOS,
) -> UInt8[np.ndarray, "h w c"]:
  """Shorter side to `size` with antialiasing, centre crop, [size, size, channels].

  Grey is repeated for three channels; RGB becomes one channel only if it holds
  nothing but grey.

  Raises:
    TooSmall: the picture is smaller than `size`.
    UserError: it is coloured, and `channels` 1.
  """
  short = min(image.size)
  if short < size:
    raise TooSmall(
      f"{where} is {image.width}x{image.height} pixels, smaller than data.size "
      f"{size}: set data.size to {short} or less, or remove the image.",
      short,
    )
  if short > size:
    wide = (round(image.width * size / short), round(image.height * size / short))
    image = image.resize(wide, resample, reducing_gap=3)
  left, top = (image.width - size) // 2, (image.height - size) // 2
  pixels = np.array(image.crop((left, top, left + size, top + size)))
  if pixels.ndim == 2:
    return np.repeat(pixels[..., None], channels, axis=-1)
  if channels == 3:
    return pixels
  if (pixels != pixels[..., :1]).any():
    raise UserError(f"{where} is in colour, and data.channels is 1: set it to 3.")
  return pixels[..., :1].copy()
