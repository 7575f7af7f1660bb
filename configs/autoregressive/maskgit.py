"""MaskGIT (Chang et al. 2022, arXiv:2202.04200), class to ImageNet-256.

Over the 16x16 codes of a VQGAN (configs/gan/vqgan.py) in runs/vqgan, of a transformer
of 24 layers of 768 and 8 heads, with label smoothing and dropout 0.1: FID 6.18 in eight
steps (table 1), after 300 epochs of batches of 256. Adam at 1e-4 with beta2 0.96, and
the noise of 4.5 in what is kept, are the authors' code's, which has 16 heads, a weight
decay of 0.045, 5,000 steps of warm-up and at least half of the tokens hidden in
training. Here rotary positions beside the learned ones, RMSNorm and SwiGLU; guidance
comes after the paper.

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
  c = decoder.over_tokens("autoregressive.maskgit")
  c.autoregressive = base.autoregressive()
  c.model.dim, c.model.depth, c.model.heads = 768, 24, 8
  c.optim.b2, c.optim.weight_decay = 0.96, 0.0
  c.sample.steps, c.sample.guidance_scale, c.sample.edit = 8, 1.0, "inpaint"
  if variant:
    decoder.on_cpu(c, variant, VARIANTS)
    c.sample.guidance_scale = 2.0
  if variant in ("fashion_mnist", "openmoji32"):
    c.train.steps = 1500
  return c
