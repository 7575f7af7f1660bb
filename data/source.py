"""`load` and `prepare`: from a config to a `Dataset`."""

import contextlib
import io
from collections.abc import Iterator

import tensorflow_datasets as tfds
from ml_collections import ConfigDict
from PIL.Image import Resampling

from core.errors import UserError
from data import fashion_mnist, folder, shards, tfds_sets
from data.dataset import Dataset, Example

__all__ = ["Dataset", "Example", "load", "prepare"]


def load(config: ConfigDict, split: str) -> Dataset:
  """The split of the data set that `config` (the `data` part) names, prepared first.

  `config.name` is 'openmoji', 'fashion_mnist', 'folder', 'shards' or any image data set
  of TensorFlow Datasets.

  Raises:
    UserError: the data are unknown, missing, damaged, of another size or number
      of channels, without the languages asked for, or nothing matches.
  """
  check(config)
  size, channels = config.size, config.channels
  match config.name:
    case "folder":
      loaded = folder.load(config, split)
    case "shards":
      loaded = shards.load(config, split)
    case "fashion_mnist":
      loaded = fashion_mnist.load(config, split)
    case name:
      prepare(config)
      loaded = tfds_sets.open_builder(
        find(config),
        split,
        size=size,
        channels=channels,
        match=config.match,
        on_bad_image=config.on_bad_image,
        # Flat shapes with sharp edges: area averaging neither rings nor blurs.
        resample=Resampling.BOX if name == "openmoji" else Resampling.LANCZOS,
      )
  loaded.check_languages(config.languages)
  return loaded


def prepare(config: ConfigDict) -> None:
  """Builds the data set ahead of time; does nothing if it is there.

  Raises:
    UserError: it cannot be built, or the folder is at fault.
  """
  check(config)
  match config.name:
    case "folder":
      folder.load(config, config.train_split)
    case "shards":
      shards.load(config, config.train_split)
    case "fashion_mnist":
      fashion_mnist.load(config, config.train_split)
    case "openmoji":
      builder = find(config)
      if not tfds_sets.prepared(builder):
        print(
          f"Drawing OpenMoji at {builder.builder_config.name} pixels into "
          f"{builder.data_dir} (once).",
          flush=True,
        )
      with quiet():
        tfds_sets.prepare(builder)
    case _:
      tfds_sets.prepare(find(config))


def find(config: ConfigDict) -> tfds.core.DatasetBuilder:
  """The TFDS builder of the data set, in `config.dir`."""
  if config.name != "openmoji":
    return tfds_sets.find(config.name, config.dir)
  # Only this data set needs the packages that draw it.
  from data import openmoji

  large = [size for size in openmoji.SIZES if size >= config.size]
  if not large:
    raise UserError(
      f"openmoji comes in up to {openmoji.SIZES[-1]} pixels, smaller than data.size "
      f"{config['size']}: set data.size to {openmoji.SIZES[-1]} or less."
    )
  return openmoji.Openmoji(
    config=str(large[0]),
    data_dir=config.dir or None,
    file_format="array_record",
  )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
  """Without the progress bars and lines of TFDS."""
  tfds.disable_progress_bar()
  try:
    with contextlib.redirect_stdout(io.StringIO()):
      yield
  finally:
    tfds.enable_progress_bar()


def check(config: ConfigDict) -> None:
  """The settings that every data set shares."""
  if config.size < 1:
    raise UserError(f"data.size must be at least 1, not {config['size']}.")
  if config.channels not in (1, 3):
    raise UserError(f"data.channels must be 1 or 3, not {config['channels']}.")
  if config.on_bad_image not in ("fail", "skip"):
    raise UserError(
      f"data.on_bad_image must be 'fail' or 'skip', not {config['on_bad_image']!r}."
    )
