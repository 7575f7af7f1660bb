"""Stable Diffusion (Rombach et al. 2022, arXiv:2112.10752).

An autoencoder makes latents of pictures, and a diffusion draws them from text.

Variants:
  :openmoji32  captions to 32x32 OpenMoji: the KL autoencoder and the diffusion of
               configs/diffusion/dit.py:openmoji32 over its 8x8x8 latents.
  :tiny        seconds; what tests use.
"""

from ml_collections import ConfigDict

from configs import base
from configs.diffusion import dit
from configs.vae import kl

VARIANTS = ("openmoji32", "tiny")


def get_config(variant: str = "openmoji32") -> ConfigDict:
  """The config of a variant."""
  match variant:
    case "openmoji32":
      codec, generator = kl.get_config("openmoji32_c8"), dit.get_config("openmoji32")
    case "tiny":
      codec, generator = kl.get_config("tiny"), dit.get_config("tiny")
      generator.model.patch, generator.sample.threshold = 1, "none"
    case _:
      raise base.unknown_variant(variant, VARIANTS)
  generator.data.codec = "@codec"
  return base.system(("generator",), codec=codec, generator=generator)
