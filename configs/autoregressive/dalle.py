"""DALL-E 1 (Ramesh et al. 2021, arXiv:2102.12092): text and picture as one stream.

The default is the paper's shape, 64 layers of 62 heads of 64, of 12 billion parameters,
over the 32x32 tokens of a dVAE (configs/vae/dvae.py) in runs/dvae, on a folder of
pictures with captions, in 430,000 steps of 1,024 pictures. (From memory: AdamW at
4.5e-4, beta2 0.96, weight decay 0.045, 5,000 steps of warm-up; gradients clipped at 4,
and the rate halved when the loss no longer fell, which is not done here.) Text is 256
bytes, there tokens of byte pairs.

Variants:
  :openmoji32  captions and the 8x8 codes of configs/vae/vq.py:openmoji32, in
               runs/vq_openmoji, by a small network.
  :tiny        seconds; what tests use, over pixels.
"""

from ml_collections import ConfigDict

from configs import base
from configs.autoregressive import decoder

VARIANTS = ("openmoji32", "tiny")


def get_config(variant: str = "") -> ConfigDict:
  """The config of a variant."""
  c = decoder.over_tokens("autoregressive.dalle")
  c.autoregressive = base.autoregressive()
  c.data.name, c.data.codec, c.data.batch_size = "folder", "runs/dvae", 1024
  c.text.encoder, c.text.max_tokens, c.text.drop = "bytes", 256, 0.0
  c.text.classes = 0
  c.model.dim, c.model.depth, c.model.heads, c.model.dropout = 62 * 64, 64, 62, 0.0
  c.model.remat = True
  c.optim.learning_rate, c.optim.b2, c.optim.weight_decay = 4.5e-4, 0.96, 0.045
  c.optim.warmup_steps = 5000
  c.train.steps = 430_000
  c.sample.guidance_scale = 1.0
  if variant:
    decoder.on_cpu(c, variant, VARIANTS)
    c.model.remat, c.text.drop, c.sample.guidance_scale = False, 0.1, 2.0
  return c
