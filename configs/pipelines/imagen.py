"""Imagen (Saharia et al. 2022, arXiv:2205.11487): a small picture, and a cascade.

Variants:
  :openmoji32  captions to 32x32 OpenMoji: a diffusion of 16x16 pictures, and one that
               enlarges them, with noise conditioning augmentation.
  :tiny        seconds, from 4x4 to 8x8; what tests use.
"""

from ml_collections import ConfigDict

from configs import base
from configs.diffusion import ddpm, super_resolution

VARIANTS = ("openmoji32", "tiny")


def get_config(variant: str = "openmoji32") -> ConfigDict:
  """The config of a variant."""
  match variant:
    case "openmoji32":
      small = ddpm.get_config("openmoji32")
      small.data.size, small.model.patch, small.train.steps = 16, 4, 3000
      large = super_resolution.get_config("openmoji32")
      large.data.low_size = 16
    case "tiny":
      small, large = ddpm.get_config("tiny"), super_resolution.get_config("tiny")
      small.data.size, small.model.patch, small.model.attention = 4, 2, ()
    case _:
      raise base.unknown_variant(variant, VARIANTS)
  return base.system(("small", "large"), small=small, large=large)
