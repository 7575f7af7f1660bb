"""Imagen (Saharia et al. 2022, arXiv:2205.11487): a small picture, and a cascade.

A diffusion draws a small picture from text, and others enlarge it, each trained on
pictures with noise of a known level (noise conditioning augmentation); thresholds are
dynamic. The default is the paper's 64 -> 256 -> 1024 at its size: a U-Net of 2 billion
and two Efficient U-Nets, batch 2048, 2.5 million steps each. The paper reads text by a
frozen T5-XXL: set `text.encoder=frozen` and `text.frozen` to its directory in all three
stages. (The transformer over bytes that is in its place, as wide, has 0.15 billion
parameters in the first stage and 2.4 in each of the others.) The paper's last stage
learns from crops of 256x256, this one from whole pictures. COCO FID 7.27.

Variants:
  :openmoji32  captions to 32x32 OpenMoji: a diffusion of 16x16 pictures, and one that
               enlarges them.
  :quickstart  the same of the pictures and the network of configs/quickstart.py.
  :tiny        seconds, from 4x4 to 8x8; what tests use.
"""

from ml_collections import ConfigDict

from configs import base, quickstart, shapes
from configs.diffusion import ddpm, super_resolution

VARIANTS = ("openmoji32", "quickstart", "tiny")


def get_config(variant: str = "") -> ConfigDict:
  """The config of a variant."""
  match variant:
    case "":
      return published()
    case "openmoji32":
      small = ddpm.get_config("openmoji32")
      small.data.size, small.model.patch, small.train.steps = 16, 4, 3000
      large = enlarging()
    case "quickstart":
      small, large = quickstart.get_config(), enlarging()
      small.data.size, small.model.patch = 16, 4
      large.data.match, large.train.steps = quickstart.SIMPLE, 1000
    case "tiny":
      small, large = ddpm.get_config("tiny"), super_resolution.get_config("tiny")
      small.data.size, small.model.patch, small.model.attention = 4, 2, ()
    case _:
      raise base.unknown_variant(variant, VARIANTS)
  return base.system(("small", "large"), small=small, large=large)


def enlarging() -> ConfigDict:
  """From 16x16 to 32x32 OpenMoji."""
  c = super_resolution.get_config("openmoji32")
  base.openmoji32(c)
  c.data.low_size = 16
  return c


def published() -> ConfigDict:
  """The cascade of the paper, with a transformer over bytes in T5's place."""
  stages = {}
  for name, shape, size in (
    ("small", shapes.imagen, 64),
    ("large", shapes.imagen_upsampler, 256),
    ("largest", shapes.imagen_upsampler, 1024),
  ):
    c = super_resolution.get_config()
    c.data.low_size, c.text.max_tokens, c.text.depth, c.text.heads = 0, 128, 12, 16
    if size == 64:
      shape(c)
    else:
      shape(c, size)
    stages[name] = c
  return base.system(tuple(stages), **stages)
