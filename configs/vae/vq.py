"""VQ-VAE (van den Oord et al. 2017, arXiv:1711.00937): pictures as a map of codes.

The network and losses of configs/vae/kl.py, as VQGAN without its critic (Esser et al.
2021, arXiv:2012.09841); Rombach et al. 2022, table 8, VQ at f = 8 with 16,384 codes of
4 numbers: reconstruction FID 1.14 on ImageNet, after training on OpenImages. The codes
follow averages (appendix A.1), start from k-means and are drawn anew when unused.

Variants:
  :openmoji32     32x32 OpenMoji to 8x8 of 256 codes: twelve minutes on one CPU core.
  :fashion_mnist  32x32 Fashion-MNIST to 8x8 of 256 codes: two to three minutes.
  :tiny           seconds; what tests use.
"""

from ml_collections import ConfigDict

from configs import base
from configs.vae import kl


def get_config(variant: str = "") -> ConfigDict:
  """The config of a variant."""
  c = kl.autoencoder(variant)
  c.vae.bottleneck, c.vae.codes, c.vae.latent_channels = "vq", 16384, 4
  if variant in ("openmoji32", "fashion_mnist"):
    c.vae.codes, c.vae.latent_channels = 256, 8
  if variant == "tiny":
    base.tiny(c)
  return c
