"""StyleGAN2 (Karras et al. 2020, arXiv:1912.04958) with adaptive augmentation.

The default is the CIFAR-10 model of Karras et al. 2020 (arXiv:2006.06676, "ADA +
tuning") without classes: 512 channels at every resolution, no mixed styles, no path
lengths, R1 of 0.01, Adam at 2.5e-3 with betas 0 and 0.99, batches of 64: FID 2.92
(figure 11). Differences: bilinear transformations, see `gan/augment.py`; a residual
critic, which sees how much four pictures differ: the paper's has no shortcuts here, and
sees 32; a lazy penalty is part of an update, the paper's one of its own, with Adam's
numbers adjusted.

Variants:
  :ffhq1024       config F: R1 of 10 at every 16th update, path lengths, mixed styles,
                  no augmentation: FID 2.84 (table 1) on a folder of FFHQ.
  :fashion_mnist  class to 32x32 grey pictures, in minutes on two CPU cores.
  :openmoji32     captions to 32x32 OpenMoji, likewise.
  :tiny           seconds; what tests use.
"""

from ml_collections import ConfigDict

from configs import base
from configs.gan import dcgan

VARIANTS = ("ffhq1024", "fashion_mnist", "openmoji32", "tiny")


def get_config(variant: str = "") -> ConfigDict:
  """The config of a variant."""
  c = dcgan.gan()
  c.gan.generator = c.gan.critic = "stylegan2"
  c.gan.latent_dim, c.gan.mapping_layers, c.gan.mixing = 512, 2, 0.0
  c.gan.widths = c.model.widths = (512,) * 4
  c.gan.r1, c.gan.penalty_every, c.gan.augment = 0.01, 16, "ada"
  c.data.batch_size, c.train.steps = 64, 1_560_000
  c.optim.learning_rate, c.optim.b1, c.optim.b2 = 2.5e-3, 0.0, 0.99
  c.optim.ema, c.optim.ema_halflife = "halflife", 500_000
  match variant:
    case "ffhq1024":
      c.data.name, c.data.size, c.data.batch_size = "folder", 1024, 32
      c.gan.widths = c.model.widths = (32, 64, 128, 256, *(512,) * 5)
      c.gan.mapping_layers, c.gan.mixing, c.gan.augment = 8, 0.9, "none"
      c.gan.r1, c.gan.path_length, c.gan.path_every = 10.0, 2.0, 4
      c.optim.learning_rate, c.optim.ema_halflife = 2e-3, 10_000
      c.train.steps = 781_250
    case "tiny":
      dcgan.shared(c)
      base.openmoji32(c)
      base.tiny(c)
      c.gan.path_length, c.gan.path_every, c.gan.penalty_every = 2.0, 2, 2
      c.gan.mixing = 0.9
    case _:
      dcgan.on_cpu(c, variant, VARIANTS, small)
  return c


def small(c: ConfigDict) -> None:
  """Networks for CPUs."""
  c.gan.widths = c.model.widths = (16, 32, 64, 64)
  c.gan.latent_dim = c.gan.style_dim = 64
  c.gan.r1, c.gan.penalty_every = 1.0, 4
