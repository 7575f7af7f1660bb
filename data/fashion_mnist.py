"""Fashion-MNIST (Xiao et al. 2017, arXiv:1708.07747), from idx files or TFDS."""

import gzip
import zlib
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from ml_collections import ConfigDict
from PIL import Image

from core.errors import UserError
from data import dataset, images, tfds_sets
from data.dataset import Dataset, Example

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
NAMES = (
  "t-shirt",
  "trouser",
  "pullover",
  "dress",
  "coat",
  "sandal",
  "shirt",
  "sneaker",
  "bag",
  "ankle boot",
)
# split: (idx file, its slice). The last 5,000 training pictures are held out.
SPLITS = {
  "train": ("train", slice(None, -5000)),
  "validation": ("train", slice(-5000, None)),
  "test": ("t10k", slice(None)),
}


def load(config: ConfigDict, split: str) -> Dataset:
  """28x28 grey pictures with labels 0 to 9 and the class names as captions.

  `config.path` is a directory of the four idx .gz files; without it, Debian's
  package dataset-fashion-mnist is used if installed, else TFDS. For a
  `config.size` of 29 to 32 the pictures get a black border; below 28 they are
  scaled down.

  Raises:
    UserError: an unknown split or size, missing or damaged files.
  """
  size, channels = config.size, config.channels
  if split not in SPLITS:
    raise UserError(
      f"fashion_mnist has no split {split!r}: choose among {', '.join(SPLITS)}."
    )
  if size > 32:
    raise UserError(
      f"fashion_mnist is 28x28 pixels, smaller than data.size {size}: set "
      "data.size to 28, or to 32 for a black border."
    )
  if config.path or DEBIAN.is_dir():
    pictures, labels = idx(Path(config.path or DEBIAN).expanduser(), split)
  else:
    pictures, labels = from_tfds(config, split)
  test = dataset.matches(config.match)
  kept = np.isin(labels, [i for i, n in enumerate(NAMES) if test({"en": (n,)})])
  pictures, labels = pictures[kept], labels[kept].tolist()
  if not labels:
    raise dataset.nothing_matches("fashion_mnist", split, config.match)
  captions = [{"en": (name,)} for name in NAMES]

  def read(i: int) -> Example:
    image = Image.fromarray(pictures[i])
    if size > 28:
      padded = Image.new("L", (size, size))
      padded.paste(image, ((size - 28) // 2, (size - 28) // 2))
      image = padded
    pixels = images.fit(image, size, channels, "fashion_mnist", Image.Resampling.BOX)
    return Example(pixels, captions[labels[i]], labels[i])

  return Dataset(
    "fashion_mnist",
    len(labels),
    read,
    shape=(size, size, channels),
    captions=lambda i: captions[labels[i]],
    classes=NAMES,
    languages=("en",),
  )


def idx(
  folder: Path, split: str
) -> tuple[UInt8[np.ndarray, "n 28 28"], UInt8[np.ndarray, " n"]]:
  """Pictures and labels of one split from the idx .gz files in `folder`."""
  stem, part = SPLITS[split]
  arrays = []
  for name, magic, offset in (
    (f"{stem}-images-idx3-ubyte.gz", 2051, 16),
    (f"{stem}-labels-idx1-ubyte.gz", 2049, 8),
  ):
    try:
      data = gzip.decompress((folder / name).read_bytes())
    except FileNotFoundError:
      raise UserError(
        f"{folder / name} does not exist: set data.path to the directory of "
        "Fashion-MNIST's four idx .gz files."
      ) from None
    except (OSError, EOFError, zlib.error) as error:
      raise UserError(f"{folder / name} cannot be read ({error}).") from error
    count = int.from_bytes(data[4:8], "big")
    pixels = 784 if magic == 2051 else 1
    if int.from_bytes(data[:4], "big") != magic or len(data) != offset + count * pixels:
      raise UserError(
        f"{folder / name} is not a whole Fashion-MNIST idx file: get it again."
      )
    arrays.append(np.frombuffer(data, np.uint8, offset=offset))
  return arrays[0].reshape(-1, 28, 28)[part], arrays[1][part]


def from_tfds(
  config: ConfigDict, split: str
) -> tuple[UInt8[np.ndarray, "n 28 28"], UInt8[np.ndarray, " n"]]:
  """The same through TensorFlow Datasets, which downloads them."""
  tfds_sets.prepare(tfds_sets.find("fashion_mnist", config.dir))
  builder = tfds_sets.find("fashion_mnist", config.dir)
  stem, part = SPLITS[split]
  source = tfds_sets.open_builder(
    builder, "test" if stem == "t10k" else stem, size=28, channels=1
  )
  chosen = [source[i] for i in range(len(source))[part]]
  return (
    np.stack([example.image[..., 0] for example in chosen]),
    np.array([example.label for example in chosen], np.uint8),
  )
