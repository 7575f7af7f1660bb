"""Finite scalar quantization (Mentzer et al. 2023, arXiv:2309.15505).

As configs/vae/vq.py without a codebook: each of four channels takes 8, 5, 5 or 5
levels, together 1,000 codes, which the paper recommends for about 2^10.

Variants:
  :openmoji32     32x32 OpenMoji to 8x8 of 240 codes: twelve minutes on one CPU core.
  :fashion_mnist  32x32 Fashion-MNIST to 8x8 of 240 codes: two to three minutes.
  :tiny           seconds; what tests use.
"""

from ml_collections import ConfigDict

from configs.vae import kl


def get_config(variant: str = "") -> ConfigDict:
  """The config of a variant."""
  c = kl.autoencoder(variant)
  c.vae.bottleneck, c.vae.levels = "fsq", (8, 5, 5, 5)
  if variant in ("openmoji32", "fashion_mnist", "tiny"):
    # Without evenness a short training leaves three codes in ten unused.
    c.vae.levels, c.vae.evenness = (8, 6, 5), 0.01
  return c
