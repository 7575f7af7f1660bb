"""A folder of shards: tar files of img2dataset and WebDataset, or ArrayRecord files.

Each file is indexed once; pictures and captions are then read where they are.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from core.errors import UserError
from core.log import say
from data import dataset, images, tars
from data.dataset import Captions, Dataset, Example
from data.shard_index import DAMAGED, IMAGE, JSON, SPLITS, TXT, indexed, opened

KINDS = (".tar", ".array_record")


def load(config: ConfigDict, split: str) -> Dataset:
  """The samples of one split in the shards in `config.path`, in order.

  Splits are about 90%, 5% and 5% of the samples, by a hash of their keys; 'all' is
  every one. A sample without a picture is none. Captions are those of `tars.captions`.
  With `config.on_bad_image` 'skip' the next whole picture takes the place of one that
  cannot be read, is smaller than `config.size` or of the wrong kind.

  Raises:
    UserError: the folder is missing or holds no shards; one is damaged; nothing matches
      or is in the split; a picture that is read is damaged (unless skipped).
  """
  root = folder(config.path)
  shards = Shards(root, config.on_bad_image)
  if split not in (*SPLITS, "all"):
    raise UserError(
      f"Shards have no split {split!r}: choose among {', '.join(SPLITS)}, all."
    )
  rows = np.arange(len(shards))
  if split != "all":
    rows = np.flatnonzero(shards.splits == SPLITS.index(split))
  if not len(rows):
    raise UserError(
      f"{root} has no pictures for the split {split!r} (of {len(shards)} in all): add "
      "some, or choose another split, for example 'all'."
    )
  if config.match:
    test = dataset.matches(config.match)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
      rows = rows[list(pool.map(test, pool.map(shards.captions, rows.tolist())))]
    if not len(rows):
      raise dataset.nothing_matches(str(root), split, config.match)
  size, channels, skipped = config.size, config.channels, set()

  def read(i: int) -> Example:
    while True:
      row = int(rows[i])
      try:
        image = images.decode(shards.picture(row), size)
        pixels = images.fit(image, size, channels, shards.where(row))
        break
      except (images.Unreadable, UserError) as error:
        told = str(error)
        if isinstance(error, images.Unreadable):
          told = f"{shards.where(row)} cannot be read ({error})"
        skipped.add(i)
        if config.on_bad_image == "skip" and len(skipped) < len(rows):
          say(f"{told.rstrip('.')}; skipped, {len(skipped)} so far")
          i = (i + 1) % len(rows)
          continue
        if isinstance(error, UserError):
          raise
        raise UserError(
          f"{told}: mend the shard, or set data.on_bad_image to 'skip'."
        ) from error
    return Example(pixels, shards.captions(row), -1)

  loaded = Dataset(
    str(root),
    len(rows),
    read,
    shape=(size, size, channels),
    captions=lambda i: shards.captions(int(rows[i])),
    languages=shards.languages,
  )
  loaded[0]  # pictures of the wrong kind are refused now, not in the first batch
  return loaded


def folder(path: str) -> Path:
  """The folder that data.path names.

  Raises:
    UserError: it is empty or no folder.
  """
  if not path:
    raise UserError(
      "data.path is empty: set --config.data.path to your folder of shards."
    )
  root = Path(path).expanduser()
  if not root.is_dir():
    raise UserError(f"The folder {root} does not exist: check data.path.")
  return root


def find(root: Path) -> list[Path]:
  """The shards in a folder, in the order of their names; [] if there are none."""
  return sorted(p for p in root.iterdir() if p.suffix in KINDS and p.is_file())


class Shards:
  """The samples in a folder of shards, in order; safe for threads.

  Args:
    root: the folder.
    on_bad_image: of samples whose text is damaged: 'fail', or 'skip' them.

  Attributes:
    splits: of each sample, a place in SPLITS.
    languages: of all captions.

  Raises:
    UserError: there are no shards, or of both kinds; one is damaged, or empty of
      pictures altogether.
  """

  def __init__(self, root: Path, on_bad_image: str):
    self._files = find(root)
    kinds = {file.suffix for file in self._files}
    if len(kinds) != 1:
      have = "both .tar and .array_record files" if kinds else "no .tar files"
      raise UserError(
        f"{root} holds {have}: put shards of one kind there, or change data.path."
      )
    indices = indexed(self._files)
    faults = [fault for own in indices for fault in own.faults]
    if faults:
      more = f" ({len(faults) - 1} more like this)" if len(faults) > 1 else ""
      if on_bad_image == "fail":
        raise UserError(
          f"{faults[0]}{more}: mend the shard, or leave the sample out, as python -m"
          " data.pairs does, and training with data.on_bad_image='skip'."
        )
      say(f"{faults[0]}{more}; skipped")
    self._places = np.concatenate([own.places for own in indices])
    self.splits = np.concatenate([own.splits for own in indices])
    self.languages = {code for own in indices for code in own.languages}
    if not len(self._places):
      raise UserError(f"The shards in {root} hold no pictures: change data.path.")
    counts = [len(own.places) for own in indices]
    self._of = np.repeat(np.arange(len(indices), dtype=np.uint32), counts)
    self._records = None
    if kinds == {".array_record"}:
      self._records = [opened(file) for file in self._files]

  def __len__(self) -> int:
    return len(self._places)

  def file(self, row: int) -> Path:
    """The shard that a sample is in."""
    return self._files[self._of[row]]

  def where(self, row: int) -> str:
    """What messages call a sample's picture: its shard and its member."""
    offset = int(self._places[row, IMAGE, 0])
    if self._records:
      return f"{self.file(row)}, record {offset}"
    header = part(self.file(row), offset - tars.BLOCK, tars.BLOCK)
    name = header[:100].partition(b"\0")[0].decode("utf-8", "replace")
    return f"{self.file(row)}, member {name}"

  def picture(self, row: int) -> bytes:
    """The encoded picture of a sample.

    Raises:
      images.Unreadable: the shard is not what it was.
    """
    try:
      return self._read(row, IMAGE)
    except DAMAGED as error:
      raise images.Unreadable(str(error)) from error

  def captions(self, row: int) -> Captions:
    """The captions of a sample, by language.

    Raises:
      UserError: the shard is not what it was.
    """
    try:
      txt, meta = (self._read(row, kind) for kind in (TXT, JSON))
      return tars.captions(txt, tars.fields(meta))
    except DAMAGED as error:
      raise UserError(
        f"the text beside {self.where(row)} cannot be read any more ({error}): leave "
        "shards alone while they are in use, and start again."
      ) from error

  def _read(self, row: int, kind: int) -> bytes | None:
    offset, size = self._places[row, kind].tolist()
    if not size:
      return None
    if not self._records:
      return part(self.file(row), offset, size)
    meta, picture = tars.unpacked(self._records[self._of[row]][offset])
    return picture if kind == IMAGE else meta


def part(file: Path, offset: int, size: int) -> bytes:
  """Bytes of a file.

  Raises:
    OSError: it can't be read, or has not so many.
  """
  with file.open("rb", buffering=0) as raw:
    found = os.pread(raw.fileno(), size, offset)
  if len(found) < size:
    raise OSError(f"it ends before byte {offset + size:,}")
  return found
