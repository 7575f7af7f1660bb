"""A causal transformer over tokens in random orders, class to ImageNet-256.

Of the size of configs/autoregressive/maskgit.py, over the codes of a VQGAN
(configs/gan/vqgan.py) in runs/vqgan. MAR (Li et al. 2024, arXiv:2406.11838), table 1,
has FID 16.22 of such a model without guidance, and 19.58 row by row
(`autoregressive.order='raster'`), at the size of MAR-L.

Variants:
  :fashion_mnist  class to the 8x8 codes of configs/vae/vq.py:fashion_mnist, in runs/vq,
                  by a small network.
  :openmoji32     captions to those of configs/vae/vq.py:openmoji32, in
                  runs/vq_openmoji.
  :tiny           seconds; what tests use, over pixels.
"""

from ml_collections import ConfigDict

from configs import base
from configs.autoregressive import decoder

VARIANTS = ("fashion_mnist", "openmoji32", "tiny")


def get_config(variant: str = "") -> ConfigDict:
  """The config of a variant."""
  c = decoder.over_tokens("autoregressive.permuted")
  c.autoregressive = base.autoregressive()
  c.autoregressive.order = "random"
  c.model.depth, c.model.heads = 24, 8
  c.sample.guidance_scale, c.sample.edit = 1.0, "inpaint"
  if variant:
    decoder.on_cpu(c, variant, VARIANTS)
    c.sample.guidance_scale = 2.0
  return c
