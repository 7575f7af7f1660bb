"""Arrays in .npz files: written whole or not at all, and read whole or refused."""

import zipfile
import zlib
from pathlib import Path

import numpy as np

from core.workdir import written


class Damaged(Exception):
  """The file is not a whole .npz archive."""


def write(file: Path, compress: bool = True, **arrays: np.ndarray | str) -> None:
  """Writes an archive; a kill at any moment leaves the old one or the new one.

  Raises:
    UserError: it can't be written.
  """
  with written(file) as partial, partial.open("wb") as opened:
    (np.savez_compressed if compress else np.savez)(opened, **arrays)


def read(file: Path, *names: str) -> dict[str, np.ndarray]:
  """The named arrays of an archive, or all.

  Raises:
    FileNotFoundError: it is not there.
    KeyError: it holds no array of that name.
    Damaged: it is cut short, or something else.
  """
  with open(file, "rb") as opened:
    try:
      with np.load(opened) as arrays:
        found = {name: arrays[name] for name in names or arrays.files}
    except KeyError:
      raise
    # A pickle is a ValueError, a torn archive may be any of these; a lone array in a
    # .npy file has no `files`.
    except (OSError, ValueError, EOFError, AttributeError, TypeError,
            zipfile.BadZipFile, zlib.error) as error:  # fmt: skip
      raise Damaged(str(error).split(".")[0] or type(error).__name__) from error
  for name, array in found.items():
    if not isinstance(array, np.ndarray):
      raise Damaged(f"{name} is no array")
  return found
