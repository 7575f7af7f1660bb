"""Latents in place of pixels: a trained autoencoder before and behind a generator."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from core import family as families
from core.errors import UserError, unknown
from core.family import Codec, Family, Spec
from core.log import say
from core.parallel import Parallel
from core.workdir import read_config, written
from data.dataset import Dataset, Example
from pipelines import features, pictures
from pipelines.opened import Opened

ROWS = 4096  # examples a file


def config_of(config: ConfigDict) -> ConfigDict:
  """The config of the run in `data.codec`, on the devices of this one.

  Raises:
    UserError: there is no run, or it codes pictures of another size.
  """
  workdir = config.data.codec
  if not (Path(workdir) / "config.json").exists():
    raise UserError(
      f"no run in data.codec={workdir}; give the --workdir of a trained autoencoder."
    )
  theirs = read_config(Path(workdir))
  for field in ("size", "channels"):
    if theirs.data[field] != config.data[field]:
      raise UserError(
        f"the autoencoder in data.codec={workdir} has data.{field}="
        f"{theirs.data[field]}, this config {config.data[field]}; give both the same."
      )
  theirs.parallel = config.parallel
  return theirs


def of_family(config: ConfigDict, family: Family) -> Codec:
  """The codec of a family that `data.latents` names.

  Raises:
    UserError: it has none of that name.
  """
  name, workdir = config.data.latents, config.data.codec
  if not family.codecs:
    raise UserError(
      f"the run in data.codec={workdir} is no autoencoder; give the --workdir of one."
    )
  if name == "tokens" and name not in family.codecs:
    raise UserError(
      f"the autoencoder in data.codec={workdir} has no tokens: set data.latents to"
      " 'latents', or train one with codes, such as configs/vae/vq.py."
    )
  if name not in family.codecs:
    raise unknown("data.latents", name, family.codecs)
  return family.codecs[name]


def spec(config: ConfigDict) -> Spec:
  """What the family of a config models: pixels, or what comes in their place.

  These are latents of `data.codec` or a frozen net's features, of `clip.image`.

  Raises:
    UserError: what `config_of`, `of_family` and `features.net` refuse, or a setting for
      pixels alone.
  """
  data = config.data
  pixels = Spec((data.size, data.size, data.channels))
  if own := features.spec(config):
    return own
  if not data.codec:
    if data.latents != "latents":
      raise UserError(
        f"data.latents={data.latents!r} is of an autoencoder, and data.codec names"
        " none: give its --workdir there, or set data.latents to 'latents' for pixels."
      )
    return pixels
  for field, right in (
    ("data.flip", False),
    ("data.low_size", 0),
    ("sample.threshold", "none"),
  ):
    part, name = field.split(".")
    if config[part][name] != right:
      raise UserError(
        f"{field}={config[part][name]} is for pixels, and data.codec gives latents; set"
        f" it to {right}."
      )
  return coded(config).spec


def coded(config: ConfigDict) -> Codec:
  """What the run in `data.codec` makes of what it reads; no weights are read.

  Raises:
    UserError: as `config_of` and `of_family`.
  """
  theirs = config_of(config)
  return of_family(config, families.make(theirs, spec(theirs)))


def dataset(
  config: ConfigDict, opened: Opened, run: Parallel, pixels: Dataset, split: str
) -> Dataset:
  """The latents of a data set, encoded at the first call, with its captions.

  They stay in the codec's workdir, `latents/`, in files of 4,096 examples each; a run
  that was stopped goes on at the next file. All hosts must see that folder.

  Raises:
    UserError: the files can't be written.
  """
  folder = Path(config.data.codec) / "latents" / identity(config, opened, pixels, split)
  count = -(-len(pixels) // ROWS)
  encode = encoder(config, opened, run, pixels)
  missing = [i for i in range(count) if not file_of(folder, i).exists()]
  # What one process sees decides for all.
  missing = multihost_utils.broadcast_one_to_all(
    np.isin(np.arange(count), np.asarray(missing, np.int64))
  )
  for i in np.flatnonzero(missing).tolist():
    first, last = i * ROWS, min((i + 1) * ROWS, len(pixels))
    say(f"encoding {split}: pictures {first} to {last - 1} of {len(pixels)}")
    latents = encode(first, last)
    labels = np.asarray([pixels.label(j) for j in range(first, last)], np.int32)
    if jax.process_index() == 0:
      for file, array in (
        (labels_of(folder, i), labels),
        (file_of(folder, i), latents),
      ):
        with written(file) as partial, partial.open("wb") as opening:
          np.save(opening, array)
  multihost_utils.sync_global_devices("latents")
  parts = [loaded(file_of(folder, i)) for i in range(count)]
  labels = np.concatenate([loaded(labels_of(folder, i)) for i in range(count)])

  def read(i: int) -> Example:
    latents = np.array(parts[i // ROWS][i % ROWS])
    return Example(latents, pixels.captions(i), int(labels[i]))

  return Dataset(
    f"{pixels.name} ({config.data.latents} of {config.data.codec})",
    len(pixels),
    read,
    shape=opened.codec.spec.shape,
    captions=pixels.captions,
    classes=pixels.classes,
    languages=pixels.languages,
  )


def loaded(file: Path) -> np.ndarray:
  """An array on the disk, read where it is needed.

  Raises:
    UserError: it is missing or damaged.
  """
  try:
    return np.load(file, mmap_mode="r")
  except FileNotFoundError as error:
    raise UserError(f"{file} is missing on this host; all must see it.") from error
  except (OSError, ValueError, EOFError) as error:
    raise UserError(
      f"{file} is damaged; delete it, and it will be made again."
    ) from error


def file_of(folder: Path, i: int) -> Path:
  """Where the latents of the i-th 4,096 examples are."""
  return folder / f"{i:06d}.npy"


def labels_of(folder: Path, i: int) -> Path:
  """Where their classes are."""
  return folder / f"{i:06d}_labels.npy"


def identity(config: ConfigDict, opened: Opened, pixels: Dataset, split: str) -> str:
  """A name for these latents: it changes with the codec's weights and the data.

  The data are known by their settings, their number and all pictures, or, where these
  do not stay in memory, sixteen of them.
  """
  d = config.data
  own = [
    opened.key,
    d.latents,
    ROWS,
    [d.name, os.path.normpath(d.path), d.match, d.size, d.channels, split, len(pixels)],
  ]
  found = hashlib.sha256(json.dumps(own).encode())
  seen = len(pixels) if pixels.cached else 16
  for i in np.linspace(0, len(pixels) - 1, seen).astype(int).tolist():
    found.update(np.ascontiguousarray(pixels.image(i)).tobytes())
  return f"{split}_{found.hexdigest()[:16]}"


def encoder(
  config: ConfigDict, opened: Opened, run: Parallel, pixels: Dataset
) -> Callable[[int, int], np.ndarray]:
  """(first, last) -> the latents of those pictures, on all devices of all hosts."""
  size = config.eval.batch_size
  run.check_batch(size, field="eval.batch_size")
  rows = size // jax.process_count()
  own = rows * jax.process_index()

  fn = run.run(opened.codec.encode)

  def encode(first: int, last: int) -> np.ndarray:
    found = []
    for start in range(first, last, size):
      ids = (start + own + np.arange(rows)) % len(pixels)
      images = pictures.from_uint8([pixels.image(i) for i in ids.tolist()])
      found.append(jax.device_get(fn(opened.state, run.put(images))))
    latents = np.concatenate(found)[: last - first]
    if not np.isfinite(latents).all():
      raise UserError(
        f"some latents of {pixels.name} are not finite; look at the training of the"
        f" autoencoder in {config.data.codec}."
      )
    return latents

  return encode
