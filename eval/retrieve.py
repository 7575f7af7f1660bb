"""The pictures of a collection that are nearest to a text or to another picture.

    python -m eval.retrieve COLLECTION --clip=WORKDIR --text="red heart" [--image=A.png]

COLLECTION is a folder of images or of shards, or an .npz archive (see eval/images.py).
It is embedded once by the dual encoder in WORKDIR, a trained configs/text/clip.py or a
directory of Hugging Face's CLIP or SigLIP. Writes a contact sheet, a row for each
--text and --image, and beside it a .json of the hits with their scores.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Float, Int, PyTree
from ml_collections import ConfigDict

from core import arrays, hosts, parallel, tool
from core.errors import UserError
from core.log import say
from core.workdir import cache_folder, write_atomic
from data import images, shards
from data.folder import find
from eval.images import ImageSet, Picture, open_images
from pipelines import contact, dual, pictures
from pipelines.embed import Dual, Embedder

VERSION = 1  # of vectors: raise it with any change of them
Vectors = Float[np.ndarray, "n d"]


class Hits(NamedTuple):
  """What was found: the places of the nearest, nearest first, and 100 cos of each."""

  places: Int[np.ndarray, "q k"]
  scores: Float[np.ndarray, "q k"]


def run(argv: Sequence[str]) -> None:
  """Does what the command line says.

  Raises:
    UserError: something given can't be read or does not fit.
  """
  flags = parser().parse_args(argv)
  if flags.k < 1:
    raise UserError(f"--k must be 1 or more, not {flags.k}.")
  if not flags.text and not flags.image:
    raise UserError("give at least one --text or --image to look for.")
  hosts.initialize()
  parallel.keep_freed_memory()
  settings = ConfigDict({"backend": "auto", "fsdp": 1, "tensor": 1})
  if not all(text.strip() for text in flags.text):
    raise UserError("a --text is empty; say what to look for.")
  encoder = dual.load(flags.clip, settings, "--clip")
  embedder = Embedder(encoder, parallel.make(settings), flags.batch_size)
  collection, asked = open_images(flags.collection, "skip"), given(flags.image)
  rows, vectors = embedded(flags.collection, collection, encoder, embedder)
  queries = []
  if flags.text:
    queries.append(embedder.texts(flags.text))
  if flags.image:
    queries.append(embedder.images(asked))
  hits = nearest(np.concatenate(queries), vectors, flags.k)
  hits = hits._replace(places=rows[hits.places])
  if jax.process_index() == 0:
    write(flags, encoder, collection, asked, hits)


def parser() -> argparse.ArgumentParser:
  """The command line."""
  parser = tool.Parser("python -m eval.retrieve", __doc__)
  add = parser.add_argument
  add("collection", help="where to look")
  add("--clip", required=True, help="the dual encoder")
  add("--text", action="append", default=[], help="what to look for; repeatable")
  add("--image", action="append", default=[], help="likewise a picture; repeatable")
  add("--k", type=int, default=8, help="hits of each; default %(default)s")
  add("--batch_size", type=int, default=64, help="over all devices")
  add("--output", default="retrieved.png", help="the sheet; default %(default)s")
  return parser


def given(files: Sequence[str]) -> ImageSet:
  """The pictures in files.

  Raises:
    UserError: one can't be read.
  """
  found = []
  for file in files:
    try:
      found.append(np.asarray(images.decode(file).convert("RGB")))
    except images.Unreadable as error:
      raise UserError(f"--image={file} cannot be read ({error}).") from error
  return ImageSet("--image", len(found), found.__getitem__, tuple(files))


def nearest(
  queries: Float[np.ndarray, "q d"], vectors: Float[np.ndarray, "n d"], k: int
) -> Hits:
  """The k of n unit vectors with the largest 100 u.v, for each query.

  Scores have four places: what differs by less is rounding. Of equal ones the first in
  the collection comes first; all n if k is more.
  """
  scores = np.round(100.0 * (queries @ vectors.T), 4)
  k = min(k, len(vectors))
  if k < len(vectors):
    # All that are as near as the k-th, and then in order.
    least = np.partition(scores, -k, axis=1)[:, -k, None]
  else:
    least = scores.min(1, keepdims=True)
  places = np.empty((len(queries), k), np.int64)
  for i, own in enumerate(scores):
    near = np.flatnonzero(own >= least[i])
    places[i] = near[np.argsort(-own[near], kind="stable")[:k]]
  return Hits(places, np.take_along_axis(scores, places, 1))


def embedded(
  path: str, collection: ImageSet, encoder: Dual, embedder: Embedder
) -> tuple[Int[np.ndarray, " n"], Vectors]:
  """The pictures of a collection that can be read, and their vectors.

  As they were kept for these files and this encoder, or new: one .npz in TAOLU_CACHE
  (or ~/.cache/taolu)/collections.

  Raises:
    UserError: no picture can be read.
  """
  told = {
    "version": VERSION,
    "collection": stamp(Path(path).expanduser()),
    "count": collection.length,
    "weights_sha256": sha256(encoder.params),
    "settings": encoder.settings,
    "size": encoder.size,
  }
  provenance = json.dumps(told)
  key = hashlib.sha256(provenance.encode()).hexdigest()[:32]
  file = cache_folder() / "collections" / f"{key}.npz"
  found = None
  try:
    kept = arrays.read(file, "rows", "vectors", "provenance")
    if str(kept["provenance"]) == provenance:
      found = kept["rows"], kept["vectors"]
  except (OSError, KeyError, arrays.Damaged):
    pass
  # All processes compute, or none: some may have no file.
  if np.all(multihost_utils.process_allgather(np.asarray(found is not None))):
    return found
  say(f"embedding {collection.length:,} pictures of {collection.name} (once)")
  whole, faults = tolerant(collection)
  vectors = embedder.images(whole)
  bad = np.isin(np.arange(len(vectors)), list(faults))
  bad = multihost_utils.process_allgather(bad).reshape(-1, len(bad)).any(axis=0)
  if bad.any():
    why = min(faults.items(), default=(0, "another process says why"))[1]
    told = f"{bad.sum():,} of {len(bad):,} pictures are left out: {why}"
    if bad.all():
      raise UserError(told)
    say(told)
  rows = np.flatnonzero(~bad)
  found = rows, vectors[rows]
  if jax.process_index() == 0:
    try:
      kept = {"rows": rows, "vectors": found[1], "provenance": provenance}
      arrays.write(file, compress=False, **kept)
    except UserError:
      say(f"could not keep vectors in {file.parent}; set TAOLU_CACHE to another place")
  return found


def tolerant(collection: ImageSet) -> tuple[ImageSet, dict[int, str]]:
  """A blank picture in the place of each that can't be read, and what is wrong there.

  The latter is filled while pictures are read.
  """
  faults: dict[int, str] = {}

  def read(i: int) -> Picture:
    try:
      return collection.read(i)
    except UserError as error:
      faults[i] = str(error)
      return np.zeros((1, 1, 3), np.uint8)

  return collection._replace(read=read), faults


def stamp(place: Path) -> str:
  """A hash of the names, sizes and times of the files of a collection."""
  files = [place]
  if place.is_dir():
    files = shards.find(place) or [place / name for name in find(place)]
  found = [(str(f.relative_to(place)), f.stat()) for f in files]
  told = [[name, own.st_size, own.st_mtime_ns] for name, own in found]
  return hashlib.sha256(json.dumps([str(place.resolve()), told]).encode()).hexdigest()


def sha256(params: PyTree) -> str:
  """A hash of weights."""
  found = hashlib.sha256()
  for leaf in jax.tree.leaves(params):
    found.update(np.ascontiguousarray(jax.device_get(leaf)))
  return found.hexdigest()


def write(
  flags: argparse.Namespace,
  encoder: Dual,
  collection: ImageSet,
  asked: ImageSet,
  hits: Hits,
) -> None:
  """Writes the sheet and the .json, and prints the hits."""
  queries: list[dict[str, Any]] = [{"text": text} for text in flags.text]
  queries += [{"image": file} for file in flags.image]
  shown = [(text, "text") for text in flags.text]
  shown += [(asked.read(i), "picture") for i in range(asked.length)]
  rows = []
  for i, (places, scores) in enumerate(zip(*hits, strict=True)):
    found = list(zip(places.tolist(), scores.tolist(), strict=True))
    queries[i]["hits"] = [
      {"picture": collection.called(at), "index": at, "score": round(score, 4)}
      for at, score in found
    ]
    tiles = [(collection.read(at), f"{score:.1f}") for at, score in found]
    rows.append([shown[i], *tiles])
    print(next(iter(queries[i].values())))
    for hit in queries[i]["hits"]:
      print(f"  {hit['score']:6.1f}  {hit['picture']}")
  sheet = Path(flags.output)
  pictures.save(contact.contact_sheet(rows), sheet)
  told = {
    "score": encoder.name,
    **encoder.origin,
    "collection": collection.name,
    "num_pictures": collection.length,
    "queries": queries,
  }
  beside = sheet.with_suffix(".json")
  write_atomic(beside, json.dumps(told, indent=2, ensure_ascii=False) + "\n")
  print(sheet, beside, sep="\n")


if __name__ == "__main__":
  sys.exit(tool.status(run, sys.argv[1:]))
