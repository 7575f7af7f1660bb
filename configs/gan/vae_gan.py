"""VAE-GAN (Larsen et al. 2016, arXiv:1512.09300): a VAE whose pictures are judged too.

The VAE of configs/vae/vae.py with DCGAN's critic, which sees reconstructions and draws
of the prior. The paper has faces and no score. Differences: pixels are told by a
Gaussian as without the critic, not by the critic's features; the critic's term reaches
the encoder too.

Variants:
  :fashion_mnist  class to 32x32 grey pictures, in minutes on two CPU cores.
  :openmoji32     captions to 32x32 OpenMoji, likewise.
  :tiny           seconds; what tests use.
"""

from ml_collections import ConfigDict

from configs import base
from configs.vae import vae


def get_config(variant: str = "") -> ConfigDict:
  """The config of a variant."""
  c = vae.get_config(variant)
  judged(c, variant)
  c.gan.weight = 0.05
  if variant == "tiny":
    base.tiny(c)
  return c


def judged(c: ConfigDict, variant: str) -> None:
  """Adds a critic to the config of a variant."""
  c.gan, c.noise = base.gan(), base.noise()
  c.gan.family, c.family = c.family, "gan.hybrid"
  c.gan.widths, c.gan.learning_rate = (32, 64, 128), 2e-4
  if variant:
    # As `dcgan.shared` has it.
    c.model.scan = False
