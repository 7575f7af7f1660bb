"""DALL-E 1 (Ramesh et al. 2021, arXiv:2102.12092).

An autoencoder makes tokens of pictures, and a decoder continues text by them.

Variants:
  :openmoji32  captions to 32x32 OpenMoji: the VQ autoencoder's 8x8 codes, and the
               stream of configs/autoregressive/dalle.py.
  :tiny        seconds; what tests use.
"""

from ml_collections import ConfigDict

from configs import base
from configs.autoregressive import dalle
from configs.vae import vq

VARIANTS = ("openmoji32", "tiny")


def get_config(variant: str = "openmoji32") -> ConfigDict:
  """The config of a variant."""
  if variant not in VARIANTS:
    raise base.unknown_variant(variant, VARIANTS)
  codec, generator = vq.get_config(variant), dalle.get_config(variant)
  generator.data.codec, generator.data.latents = "@codec", "tokens"
  return base.system(("generator",), codec=codec, generator=generator)
