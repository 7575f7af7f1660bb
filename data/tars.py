"""Shards of pictures with captions: what lies in a tar file or an ArrayRecord file.

A tar is laid out as img2dataset and WebDataset do: members that follow one another and
share a name up to its first dot are one sample, such as 000000012.jpg, 000000012.txt
and 000000012.json. A record of an ArrayRecord file is the same .json and picture:

  4 bytes, the length n of the JSON (little-endian); n bytes of JSON; the picture
"""

import io
import json
import struct
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any, NamedTuple, TypeVar

from data.dataset import Captions

# Extensions of pictures, the first that a sample has counts.
PICTURES = ("jpg", "jpeg", "png", "webp", "bmp")
HEAD = struct.Struct("<I")
BLOCK = tarfile.BLOCKSIZE
T = TypeVar("T")


class Torn(Exception):
  """A tar file ends before its end, or holds something else."""


class Place(NamedTuple):
  """Where a member's bytes are in its file."""

  offset: int
  size: int


def members(tar: io.BufferedIOBase) -> Iterator[tuple[str, Place]]:
  """Names and places of the ordinary files in a tar, in order; reads headers alone.

  Raises:
    Torn: after the last whole member, unless the tar ends as it should.
  """
  end = tar.seek(0, io.SEEK_END)
  tar.seek(0)
  try:
    with tarfile.open(fileobj=tar, mode="r:") as opened:
      for member in opened:
        if member.offset_data + member.size > end:
          raise Torn(f"it ends within {member.name}")
        if member.isfile():
          yield member.name, Place(member.offset_data, member.size)
      # tarfile takes a header that it does not understand for the end.
      tar.seek(opened.offset)
      if tar.read(BLOCK) != bytes(BLOCK):
        raise Torn(f"no whole member at byte {opened.offset:,}")
  except (tarfile.TarError, EOFError) as error:
    raise Torn(str(error)) from error


def samples(found: Iterable[tuple[str, T]]) -> Iterator[tuple[str, dict[str, T]]]:
  """Members one after another -> (key, extension -> member) of each sample.

  Extensions are in lower case. An error in the middle of `found` takes the sample
  before it along, of which parts may be missing.
  """
  key, parts = None, {}
  for name, value in found:
    path = PurePosixPath(name)
    stem, _, extension = path.name.partition(".")
    own = str(path.with_name(stem)) if stem else name
    if own != key and parts:
      yield key, parts
      parts = {}
    key = own
    parts[extension.lower()] = value
  if parts:
    yield key, parts


def picture(parts: Mapping[str, T]) -> T | None:
  """The member of a sample that is its picture."""
  return next((parts[e] for e in PICTURES if e in parts), None)


def fields(raw: bytes | None) -> dict[str, Any]:
  """The object in a .json; {} if there is none. NaN and infinities become null.

  Raises:
    ValueError: it is not an object in JSON.
  """
  if raw is None:
    return {}
  try:
    found = json.loads(raw.decode("utf-8-sig"), parse_constant=lambda _: None)
  except RecursionError as error:
    raise ValueError("it is nested too deep") from error
  if not isinstance(found, dict):
    raise ValueError("it holds no object")
  return found


def captions(
  txt: bytes | None, meta: Mapping[str, Any], names: Iterable[str] = ()
) -> Captions:
  """The captions of a sample by language, blanks and repetitions left out.

  Of the .json the fields `names`, all together; without any, its 'captions'; else the
  lines of the .txt; else the 'caption' of the .json. A field is a text, a list of
  texts, or either by language; texts without one count as English. img2dataset writes
  one caption to both places, and then its line breaks mean nothing.

  Raises:
    ValueError: a .txt that is not UTF-8, or a field of another kind.
  """
  names = tuple(names) or (("captions",) if meta.get("captions") else ())
  if names:
    given = [(name, meta[name]) for name in names if meta.get(name) is not None]
  else:
    one = meta.get("caption")
    lines = None if txt is None else txt.decode("utf-8-sig").strip()
    same = isinstance(one, str) and one.strip() == lines
    given = [("caption", one if lines is None or same else lines.splitlines())]
  found: dict[str, dict[str, None]] = {}
  for name, value in given:
    by_language = value if isinstance(value, dict) else {"en": value}
    for code, texts in by_language.items():
      own = [texts] if isinstance(texts, str) else texts or []
      if not isinstance(own, list) or not all(isinstance(t, str) for t in own):
        raise ValueError(f"its {name!r} must be text, or a list of texts")
      # Half a character (a surrogate) becomes a question mark.
      clean = (" ".join(t.encode("utf-8", "replace").decode().split()) for t in own)
      found.setdefault(code, {}).update({text: None for text in clean if text})
  return {code: tuple(texts) for code, texts in found.items() if texts}


def packed(meta: bytes, encoded: bytes) -> bytes:
  """A record of an ArrayRecord shard."""
  return HEAD.pack(len(meta)) + meta + encoded


def unpacked(record: bytes) -> tuple[bytes, bytes]:
  """The JSON and the picture of a record.

  Raises:
    ValueError: it is cut short.
  """
  if len(record) < HEAD.size or len(record) < HEAD.size + HEAD.unpack_from(record)[0]:
    raise ValueError("it is cut short")
  end = HEAD.size + HEAD.unpack_from(record)[0]
  return record[HEAD.size : end], record[end:]


def write_tar(tar: io.BufferedIOBase, found: Iterable[tuple[str, bytes]]) -> None:
  """Writes members so that the same ones give the same bytes."""
  with tarfile.open(fileobj=tar, mode="w", format=tarfile.PAX_FORMAT) as opened:
    for name, raw in found:
      member = tarfile.TarInfo(name)  # of mode 0644, at the time 0, of nobody
      member.size = len(raw)
      opened.addfile(member, io.BytesIO(raw))
