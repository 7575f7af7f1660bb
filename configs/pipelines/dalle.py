"""DALL-E 1 (Ramesh et al. 2021, arXiv:2102.12092).

An autoencoder makes tokens of pictures, a decoder continues text by them, and a dual
encoder chooses among what it draws: `--config.sample.rerank=512` is the paper's number.
The default is the paper's shape: the dVAE, 12 billion parameters over its 32x32 tokens,
and CLIP.

Variants:
  :openmoji32       captions to 32x32 OpenMoji: the VQ autoencoder's 8x8 codes, and the
                    stream of configs/autoregressive/dalle.py.
  :openmoji32_fsq, :openmoji32_dvae  the same over the codes of those.
  :quickstart       the first, of the pictures of configs/quickstart.py alone.
  :tiny             seconds; what tests use.
"""

from ml_collections import ConfigDict

from configs import base, quickstart
from configs.autoregressive import dalle
from configs.text import clip
from configs.vae import dvae, fsq, vq

CODECS = {"": vq, "fsq": fsq, "dvae": dvae}
VARIANTS = ("openmoji32", "openmoji32_fsq", "openmoji32_dvae", "quickstart", "tiny")


def get_config(variant: str = "") -> ConfigDict:
  """The config of a variant."""
  if variant not in ("", *VARIANTS):
    raise base.unknown_variant(variant, VARIANTS)
  simple = variant == "quickstart"
  size, _, kind = ("openmoji32" if simple else variant).partition("_")
  codec = dvae.get_config() if not variant else CODECS[kind].get_config(size)
  dual, generator = clip.get_config(size), dalle.get_config(size)
  if not variant:
    codec.data.name, codec.data.size = "folder", generator.data.size
    codec.data.flip, dual.data.channels = False, 3
  if simple:
    dual.train.steps = 900
    generator.data.match, generator.train.steps = quickstart.SIMPLE, 1000
  generator.data.codec, generator.data.latents = "@codec", "tokens"
  generator.eval.clip = "@clip"
  return base.system(
    ("generator",),
    ("match",) if simple else (),
    codec=codec,
    clip=dual,
    generator=generator,
  )
