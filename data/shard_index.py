"""The index of a shard: where the parts of its samples lie, found once and kept."""

import functools
import hashlib
import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource
from jaxtyping import Int, UInt8

from core import arrays
from core.errors import UserError
from core.log import say
from core.workdir import cache_folder
from data import tars
from data.folder import split_of

SPLITS = ("train", "validation", "test")
VERSION = 1  # of the index: raise it with any change of what is in it
IMAGE, TXT, JSON = range(3)
DAMAGED = (ValueError, RuntimeError, OSError, EOFError)


class Index(NamedTuple):
  """What a shard holds.

  Attributes:
    places: offset and size of picture, .txt and .json of each sample, (0, 0) of what it
      lacks; in an ArrayRecord file the number of the record stands for the offset.
    splits: of each sample, a place in SPLITS.
    languages: of all captions.
    faults: of samples that are left out, the member and what is wrong with it.
  """

  places: Int[np.ndarray, "n 3 2"]
  splits: UInt8[np.ndarray, " n"]
  languages: tuple[str, ...]
  faults: tuple[str, ...]


def opened(file: Path) -> ArrayRecordDataSource:
  """An ArrayRecord file.

  Raises:
    UserError: it is damaged.
  """
  try:
    return ArrayRecordDataSource([str(file)])
  except DAMAGED as error:
    raise UserError(
      f"{file} is no whole ArrayRecord file: make it again, or remove it."
    ) from error


def indexed(files: list[Path]) -> list[Index]:
  """The index of each shard, from TAOLU_CACHE (~/.cache/taolu)/shards if it is there.

  What was stopped goes on at the next shard.
  """
  kept = [(file, kept_at(file)) for file in files]
  missing = sum(not place.exists() for _, place in kept)
  if missing:
    say(f"indexing {missing:,} of {len(files):,} shards in {files[0].parent} (once)")
  with ThreadPoolExecutor(os.cpu_count()) as pool:
    return list(pool.map(index, *zip(*kept, strict=True)))


def kept_at(file: Path) -> Path:
  """Where the index of a shard is kept; another once the shard is changed."""
  found = file.stat()
  told = [VERSION, str(file.resolve()), found.st_size, found.st_mtime_ns]
  key = hashlib.sha256(json.dumps(told).encode()).hexdigest()[:32]
  return cache_folder() / "shards" / f"{key}.npz"


def index(file: Path, place: Path) -> Index:
  """The index of a shard, read at `place` or made and kept there.

  Raises:
    UserError: an ArrayRecord file is damaged.
  """
  try:
    found = arrays.read(place, *Index._fields)
    texts = {name: tuple(found[name].tolist()) for name in ("languages", "faults")}
    return Index(**found | texts)
  except (OSError, KeyError, arrays.Damaged):
    pass
  made = of_tar(file) if file.suffix == ".tar" else of_records(file)
  values = {name: np.asarray(value) for name, value in made._asdict().items()}
  for name in ("languages", "faults"):
    values[name] = values[name].astype(str)
  try:
    arrays.write(place, **values)
  except UserError:
    say(f"could not keep indices in {place.parent}; set TAOLU_CACHE to another place")
  return made


def of_tar(file: Path) -> Index:
  """The index of a tar, from its headers and texts; of a torn one, what is whole."""
  rows, faults = [], []
  try:
    with file.open("rb") as tar:
      read = functools.partial(member, tar)
      for key, parts in tars.samples(tars.members(tar)):
        own = tars.picture(parts), parts.get("txt"), parts.get("json")
        if own[IMAGE] is not None:
          add(rows, faults, f"{file}, member {key}", key, own, read)
  except (tars.Torn, OSError) as error:
    faults.append(f"{file} is no whole tar file ({error})")
  return gathered(rows, faults)


def member(tar: Any, place: tars.Place | None) -> bytes | None:
  """A member's bytes."""
  if place is None:
    return None
  tar.seek(place.offset)
  return tar.read(place.size)


def of_records(file: Path) -> Index:
  """The index of an ArrayRecord file, from its records."""
  source, rows, faults = opened(file), [], []
  for i in range(len(source)):
    where = f"{file}, record {i}"
    try:
      meta, _ = tars.unpacked(source[i])
      key = str(tars.fields(meta).get("key", i))
    except DAMAGED as error:
      faults.append(f"{where} cannot be read ({error})")
      continue
    place = tars.Place(i, 1)
    own = place, None, place
    read = lambda at, meta=meta: at and meta  # noqa: E731
    add(rows, faults, where, key, own, read)
  return gathered(rows, faults)


def add(
  rows: list[Any],
  faults: list[str],
  where: str,
  key: str,
  places: tuple[tars.Place | None, ...],
  read: Callable[[tars.Place | None], bytes | None],
) -> None:
  """Adds a sample to the rows of an index, or what is wrong with its text to faults."""
  try:
    own = tars.captions(read(places[TXT]), tars.fields(read(places[JSON])))
  except ValueError as error:
    faults.append(f"{where}: its text cannot be read ({error})")
    return
  split = SPLITS.index(split_of(key))
  rows.append(([place or (0, 0) for place in places], split, own.keys()))


def gathered(rows: list[Any], faults: list[str]) -> Index:
  """Rows as arrays."""
  places = np.asarray([row[0] for row in rows], np.int64).reshape(-1, 3, 2)
  splits = np.asarray([row[1] for row in rows], np.uint8)
  languages = tuple(sorted({code for row in rows for code in row[2]}))
  return Index(places, splits, languages, tuple(faults))
