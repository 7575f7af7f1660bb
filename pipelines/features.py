"""Pictures as a frozen net sees them, for a dual encoder that learns a map of them."""

import functools

from ml_collections import ConfigDict

from core import parallel
from core.errors import UserError, unknown
from core.family import Spec
from data.dataset import Dataset, Example
from eval import features as nets
from eval import images
from text.clip import TOWERS

RESIZE = "clean"


def net(config: ConfigDict) -> nets.FeatureNet | None:
  """The net of `clip.image`; None for a tower that is trained, and other families.

  Raises:
    UserError: an unknown net, missing weights, or latents for its input.
  """
  if config.family != "text.clip" or config.clip.image in TOWERS:
    return None
  name = config.clip.image
  if name not in nets.NETS:
    raise unknown("clip.image", name, (*TOWERS, *nets.NETS))
  if config.data.codec:
    raise UserError(f"clip.image={name!r} sees pixels: set data.codec to ''.")
  return _net(name)


@functools.lru_cache(1)  # training, its scores and its data all ask for it
def _net(name: str) -> nets.FeatureNet:
  return nets.load(name, RESIZE, field="clip.image")


def spec(config: ConfigDict) -> Spec | None:
  """What comes in the place of pixels: [1, 1, d] features; None where pixels do."""
  found = net(config)
  return found and Spec((1, 1, found.dim), pixels=False)


def dataset(config: ConfigDict, pixels: Dataset, split: str) -> Dataset | None:
  """The features of a data set with its captions; None where pixels are trained on.

  They are kept under a hash of the pictures and the weights: see `Extractor.cached`.

  Raises:
    UserError: as `net`.
  """
  found = net(config)
  if found is None:
    return None
  run = parallel.make(config.parallel)
  extract = nets.Extractor(found, run, RESIZE, config.eval.batch_size)
  values = extract.cached(images.of_dataset(pixels, split)).values[:, None, None]

  def read(i: int) -> Example:
    # Of the picture itself: another may stand in for one that cannot be read.
    return pixels[i]._replace(image=values[i])

  return Dataset(
    f"{pixels.name} ({found.name})",
    len(pixels),
    read,
    shape=values.shape[1:],
    captions=pixels.captions,
    classes=pixels.classes,
    languages=pixels.languages,
  )
