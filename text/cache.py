"""Vectors of captions under frozen encoders, on the disk.

One folder an encoder, named after the hash of all that its vectors depend on, so what
is found there is never stale. In it one folder for each set of captions that was
encoded together: files of 1,024 records, in the order of the captions' hashes, and
those hashes, which are written last and so tell that the set is whole.
"""

import functools
import hashlib
import re
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import ml_dtypes
import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordWriter
from jax.experimental import multihost_utils
from jaxtyping import UInt64

from core.errors import UserError
from core.log import say
from core.workdir import cache_folder, explained, written
from text.encoded import Encoded, Frozen
from text.tokens import clean

ROWS = 1024  # captions a file
INDEX = "index.npy"
HEAD = struct.Struct("<II")  # bytes of the caption, number of its tokens
# One record a group: any can be read alone.
OPTIONS = "group_size:1,uncompressed"


def folder_of(encoder: Frozen) -> Path:
  """Where the sets of an encoder are."""
  name = re.sub(r"\W+", "_", Path(encoder.name).name)
  return cache_folder() / "text" / f"{name}_{encoder.key[:16]}"


def number(caption: str) -> int:
  """64 bits of a hash of a clean caption."""
  digest = hashlib.blake2b(caption.encode("utf-8"), digest_size=8).digest()
  return int.from_bytes(digest, "little")


class Set(NamedTuple):
  """Captions that were encoded together.

  Attributes:
    numbers: of the captions, ascending.
    records: of each.
    folder: where they are.
  """

  numbers: UInt64[np.ndarray, " n"]
  records: ArrayRecordDataSource
  folder: Path


class Texts:
  """What the cache knows of one encoder when this is made; safe for threads."""

  def __init__(self, encoder: Frozen):
    """Raises UserError if a set is damaged."""
    self.encoder = encoder
    folders = (file.parent for file in folder_of(encoder).glob(f"*/{INDEX}"))
    self._sets = [opened(folder) for folder in sorted(folders)]

  def find(self, caption: str) -> Encoded | None:
    """The vectors of a caption; None if it is not there.

    Raises:
      UserError: the files are damaged.
    """
    caption = clean(caption)
    own = np.uint64(number(caption))
    for part in self._sets:
      at = int(np.searchsorted(part.numbers, own))
      if at < len(part.numbers) and part.numbers[at] == own:
        text, encoded = unpacked(part, at, self.encoder)
        if text == caption:
          return encoded
    return None

  def missing(self, captions: Iterable[str]) -> list[str]:
    """Those that are not there, clean, once each, in the order of their numbers.

    The empty caption is none: its vectors are those of the null condition.
    """
    wanted = {number(caption): caption for caption in set(map(clean, captions)) - {""}}
    keys = np.asarray(sorted(wanted), np.uint64)
    for part in self._sets:
      keys = keys[~np.isin(keys, part.numbers)]
    return [wanted[key] for key in keys.tolist()]


@functools.lru_cache(64)
def opened(folder: Path) -> Set:
  """A whole set; what is in it never changes.

  Raises:
    UserError: it is damaged.
  """
  try:
    numbers = np.load(folder / INDEX)
    records = ArrayRecordDataSource(
      [str(file_of(folder, i)) for i in range(-(-len(numbers) // ROWS))]
    )
    if len(records) != len(numbers):
      raise ValueError("records are missing")
    return Set(numbers, records, folder)
  except (OSError, ValueError, RuntimeError, EOFError) as e:
    raise damaged(folder) from e


def damaged(folder: Path) -> UserError:
  """The error for a set that cannot be read."""
  return UserError(
    f"{folder} is damaged; delete it, and make it again with --mode=prepare."
  )


def file_of(folder: Path, i: int) -> Path:
  """Where the i-th 1,024 records are."""
  return folder / f"{i:05d}.array_record"


def packed(caption: str, encoded: Encoded) -> bytes:
  """A record: the caption and its vectors."""
  raw = caption.encode("utf-8")
  seq, pooled = encoded
  head = HEAD.pack(len(raw), len(seq))
  return b"".join((head, raw, seq.tobytes(), pooled.tobytes()))


def unpacked(part: Set, at: int, encoder: Frozen) -> tuple[str, Encoded]:
  """The caption and the vectors of a record.

  Raises:
    UserError: it is damaged.
  """
  try:
    record = part.records[at]
    size, length = HEAD.unpack_from(record)
    start = HEAD.size + size
    values = np.frombuffer(record, np.uint8, offset=start).view(ml_dtypes.bfloat16)
    if values.size != length * encoder.dim + encoder.pooled_dim:
      raise ValueError("a record of another size")
    seq = values[: length * encoder.dim].reshape(length, encoder.dim)
    pooled = values[length * encoder.dim :]
    return record[HEAD.size : start].decode("utf-8"), Encoded(seq, pooled)
  except (ValueError, RuntimeError, IndexError, struct.error) as e:
    raise damaged(part.folder) from e


def prepare(encoder: Frozen, captions: Iterable[str]) -> None:
  """Encodes the captions that the cache lacks, each process a share of the files.

  What was stopped goes on at the next file, and the files come out the same. All hosts
  must see the folder.

  Raises:
    UserError: the files can't be written, or the encoder can't be loaded.
  """
  missing = Texts(encoder).missing(captions)
  multihost_utils.sync_global_devices("texts looked up")
  if not missing:
    return
  numbers = np.asarray([number(caption) for caption in missing], np.uint64)
  name = hashlib.sha256(numbers.tobytes()).hexdigest()[:16]
  folder = folder_of(encoder) / name
  with explained(folder):  # before hours of encoding
    folder.mkdir(parents=True, exist_ok=True)
  load = functools.cache(encoder.load)
  for i in range(jax.process_index(), -(-len(missing) // ROWS), jax.process_count()):
    if not file_of(folder, i).exists():
      part = missing[i * ROWS : (i + 1) * ROWS]
      last = i * ROWS + len(part) - 1
      say(f"{encoder.name}: captions {i * ROWS} to {last} of {len(missing)}")
      write(file_of(folder, i), part, load()(part))
  multihost_utils.sync_global_devices("texts encoded")
  if jax.process_index() == 0:
    with written(folder / INDEX) as partial, partial.open("wb") as opening:
      np.save(opening, numbers)
  multihost_utils.sync_global_devices("texts kept")


def write(file: Path, captions: Sequence[str], vectors: Sequence[Encoded]) -> None:
  """Writes records, all or none.

  Raises:
    UserError: they are not finite, or can't be written.
  """
  for caption, one in zip(captions, vectors, strict=True):
    if not all(np.isfinite(a.astype(np.float32)).all() for a in one):
      raise UserError(
        f"the vectors of {caption!r} are not finite; set text.frozen_dtype to 'float32'"
        " and look at the weights."
      )
  with written(file) as partial:
    try:
      writer = ArrayRecordWriter(str(partial), OPTIONS)
      for caption, one in zip(captions, vectors, strict=True):
        writer.write(packed(caption, one))
      writer.close()
    except RuntimeError as e:
      why = str(e).partition(";")[0]
      raise UserError(
        f"cannot write to {file} ({why}); make room or set TAOLU_CACHE."
      ) from e
