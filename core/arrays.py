"""Arrays in .npz files: written whole or not at all, and read whole or refused."""

import os
import zipfile
import zlib
from pathlib import Path

import numpy as np

from core.workdir import explained


class Damaged(Exception):
  """The file is not a whole .npz archive."""


def write(file: Path, **arrays: np.ndarray | str) -> None:
  """Writes a compressed archive; a kill at any moment leaves the old one or the new.

  Raises:
    UserError: it can't be written.
  """
  with explained(file):
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{os.getpid()}_{file.name}")
    try:
      np.savez_compressed(partial, **arrays)
      os.replace(partial, file)
    finally:
      partial.unlink(missing_ok=True)


def read(file: Path) -> dict[str, np.ndarray]:
  """All arrays of an archive.

  Raises:
    FileNotFoundError: it is not there.
    Damaged: it is cut short, or something else.
  """
  with open(file, "rb") as opened:
    try:
      with np.load(opened) as arrays:
        return {name: arrays[name] for name in arrays.files}
    # A pickle is a ValueError, a torn archive may be any of these; a lone array in a
    # .npy file has no `files`.
    except (OSError, ValueError, EOFError, AttributeError, TypeError,
            zipfile.BadZipFile, zlib.error) as error:  # fmt: skip
      raise Damaged(str(error) or type(error).__name__) from error
