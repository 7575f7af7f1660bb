"""RQ-VAE (Lee et al. 2022, arXiv:2203.01941): several codes a place, coarse to fine.

As configs/vae/vq.py with f = 32 and 4 codes a place from one codebook each of 16,384;
the paper shares one codebook among the depths and has a critic.

Variants:
  :openmoji32     32x32 OpenMoji to 8x8x4 of 64 codes: twelve minutes on one CPU core.
  :fashion_mnist  32x32 Fashion-MNIST to 8x8x4 of 64 codes: two to three minutes.
  :tiny           seconds; what tests use.
"""

from ml_collections import ConfigDict

from configs import base
from configs.vae import vq


def get_config(variant: str = "") -> ConfigDict:
  """The config of a variant."""
  c = vq.get_config(variant)
  c.vae.quantizers = 4
  match variant:
    case "":
      c.model.widths = (128, 128, 256, 256, 512, 512)
      c.model.attention = (8,)
      c.data.batch_size = 512  # k-means needs more vectors than codes
      c.optim.learning_rate = 4.5e-6 * 512
      c.vae.latent_channels = 256
    case "openmoji32" | "fashion_mnist":
      c.vae.codes = 64
    case "tiny":
      base.tiny(c)
      c.vae.quantizers = 2
  return c
