"""What is scored: a set of pictures in order, from a folder, an archive or data."""

import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from core import arrays
from core.errors import UserError
from core.log import say
from data import images, shards
from data.dataset import Dataset
from data.folder import SUFFIXES, find

# Pictures of kinds that are not read.
OTHERS = {".gif", ".tif", ".tiff", ".ppm", ".avif", ".heic", ".jp2", ".npy"}
Picture = UInt8[np.ndarray, "h w 3"]


class ImageSet(NamedTuple):
  """Pictures of any sizes, in colour; reading one may be done in any thread.

  Attributes:
    name: what reports call it.
    files: what each picture is called, to find the pairs of two sets; may be empty.
    length: how many there are.
    read: index -> pixels.
    called: index -> where the picture is from, for people.
  """

  name: str
  length: int
  read: Callable[[int], Picture]
  files: tuple[str, ...] = ()
  called: Callable[[int], str] = "picture {}".format

  def first(self, count: int) -> "ImageSet":
    """The first `count` of them, all if that is 0."""
    count = min(count or self.length, self.length)
    return self._replace(length=count, files=self.files[:count])

  def digests(self) -> list[bytes]:
    """A hash of the pixels of each picture."""

    def digest(i: int) -> bytes:
      picture = self.read(i)
      found = hashlib.sha256(str(picture.shape).encode())
      found.update(np.ascontiguousarray(picture))
      return found.digest()

    with ThreadPoolExecutor(os.cpu_count()) as pool:
      return list(pool.map(digest, range(self.length)))

  def sha256(self) -> str:
    """A hash of all pixels in order: the same pictures, the same hash."""
    return hashlib.sha256(b"".join(self.digests())).hexdigest()


def of_array(name: str, pixels: UInt8[np.ndarray, "n h w c"]) -> ImageSet:
  """Pictures in memory; grey ones are repeated for three channels."""
  return ImageSet(name, len(pixels), lambda i: colour(pixels[i]))


def of_dataset(dataset: Dataset, split: str) -> ImageSet:
  """A split of the data that a family was trained on, in its order."""
  return ImageSet(
    f"{dataset.name}:{split}", len(dataset), lambda i: colour(dataset.image(i))
  )


def colour(pixels: UInt8[np.ndarray, "h w c"]) -> Picture:
  """Grey repeated for three channels."""
  return np.repeat(pixels, 3, axis=-1) if pixels.shape[-1] == 1 else pixels


def open_images(path: str, on_bad_text: str = "fail") -> ImageSet:
  """All images under a folder, in the order of their names, or in shards or an archive.

  Shards are those of `data/shards.py`, right in the folder. In an archive, the array
  `images` (or else `arr_0`) holds uint8 [n, h, w, 1 or 3]; `samples/samples.npz` of a
  run is one. Pictures in files are turned upright and laid on white, which other tools
  do not do. With `on_bad_text` 'skip', samples of shards whose captions are damaged,
  and all from where a shard is torn, are left out.

  Raises:
    UserError: there is nothing there, or something else.
  """
  if not path:
    raise UserError("a path is empty; give a folder of images or an .npz archive.")
  place = Path(path).expanduser()
  if place.suffix == ".npz":
    return archive(place)
  if not place.exists():
    raise UserError(f"{place} does not exist.")
  if not place.is_dir():
    raise UserError(f"{place} is neither a folder of images nor an .npz archive.")
  if shards.find(place):
    return of_shards(place, on_bad_text)
  files = find(place)
  if not files:
    raise UserError(f"no images under {place}: put {', '.join(SUFFIXES)} files there.")
  others = {p.suffix.lower() for p in place.rglob("*")} & OTHERS
  if others:
    say(f"{place}: {', '.join(sorted(others))} files are left out; convert them to PNG")

  def read(i: int) -> Picture:
    try:
      picture = images.decode(place / files[i])
    except images.Unreadable as error:
      raise UserError(
        f"{place / files[i]} cannot be read ({error}); repair it or remove it."
      ) from error
    return np.asarray(picture.convert("RGB"))

  called = lambda i: files[i].encode("utf-8", "replace").decode()  # noqa: E731
  return ImageSet(str(place), len(files), read, tuple(files), called)


def of_shards(folder: Path, on_bad_text: str) -> ImageSet:
  """The pictures in a folder of shards."""
  found = shards.Shards(folder, on_bad_text)

  def read(i: int) -> Picture:
    try:
      return np.asarray(images.decode(found.picture(i)).convert("RGB"))
    except images.Unreadable as error:
      raise UserError(
        f"{found.where(i)} cannot be read ({error}); mend the shard."
      ) from error

  return ImageSet(str(folder), len(found), read, called=found.where)


def archive(file: Path) -> ImageSet:
  """The pictures in an .npz archive."""
  for name in ("images", "arr_0"):
    try:
      pixels = arrays.read(file, name)[name]
      break
    except KeyError:
      continue
    except FileNotFoundError as error:
      raise UserError(f"{file} does not exist.") from error
    except (OSError, arrays.Damaged) as error:
      raise UserError(f"{file} is not a whole .npz archive ({error}).") from error
  else:
    raise UserError(f"{file} holds no array called 'images' or 'arr_0'.")
  if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[-1] not in (1, 3):
    raise UserError(
      f"{file} holds {name} of type {pixels.dtype} and shape {pixels.shape}; it"
      " must be uint8 [n, height, width, 1 or 3]."
    )
  if not pixels.size:
    raise UserError(f"{file} holds no pictures.")
  return of_array(str(file), pixels)
