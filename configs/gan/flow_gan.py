"""Flow-GAN (Grover et al. 2018, arXiv:1705.08868): a flow whose draws are judged too.

Glow as in configs/flows/glow.py with DCGAN's critic: `gan.weight` is the paper's
1 / lambda, with likelihoods in bits a dimension. The paper has RealNVP and WGAN-GP's
loss; on CIFAR-10 4.21 bits and an Inception score of 3.90, without a critic 3.54 and
2.92, without the likelihood 8.53 and 5.76 (table 2; from memory).

Variants:
  :fashion_mnist  class to 32x32 grey pictures, in minutes on two CPU cores.
  :openmoji32     captions to 32x32 OpenMoji, likewise.
  :tiny           seconds; what tests use.
"""

from ml_collections import ConfigDict

from configs import base
from configs.flows import glow
from configs.gan import vae_gan

VARIANTS = ("fashion_mnist", "openmoji32", "tiny")


def get_config(variant: str = "") -> ConfigDict:
  """The config of a variant."""
  if variant not in ("", *VARIANTS):
    raise base.unknown_variant(variant, VARIANTS)
  c = glow.get_config(variant)
  vae_gan.judged(c, variant)
  c.gan.weight = 0.05
  if not variant:
    c.gan.widths = (128, 256, 512)
  elif variant != "tiny":
    # At 0.05 and Glow's own rate the loss is no number after 90 steps.
    c.gan.weight, c.optim.learning_rate = 0.01, 5e-4
  if variant == "tiny":
    base.tiny(c)
  return c
