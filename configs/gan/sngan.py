"""SNGAN (Miyato et al. 2018, arXiv:1802.05957).

The default is the paper's ResNet on CIFAR-10 without classes: spectral norm in the
critic, hinge loss, five updates of the critic for one of the generator, Adam at 2e-4
with betas 0 and 0.9, falling to 0 over 100,000 updates of the generator: FID 21.7 of
5,000 samples (table 2). Differences: an average of the weights draws; the generator is
updated by 64 pictures, the paper's by 128.

Variants:
  :wgan_gp        the same without spectral norm, with WGAN-GP's loss and penalty
                  (Gulrajani et al. 2017). That paper has no FID; others had 29.3 of it,
                  and 24.8 with two time scales (Heusel et al. 2017, table 1; from
                  memory).
  :fashion_mnist  class to 32x32 grey pictures, in minutes on two CPU cores.
  :openmoji32     captions to 32x32 OpenMoji, likewise.
  :tiny           seconds; what tests use.
"""

from ml_collections import ConfigDict

from configs import base
from configs.gan import dcgan

VARIANTS = ("wgan_gp", "fashion_mnist", "openmoji32", "tiny")


def get_config(variant: str = "") -> ConfigDict:
  """The config of a variant."""
  c = dcgan.gan()
  c.gan.generator = c.gan.critic = "resnet"
  c.gan.loss, c.gan.spectral_norm, c.gan.critic_steps = "hinge", "critic", 5
  c.gan.widths, c.gan.extra, c.model.widths = (128, 128), 2, (256,) * 4
  c.data.batch_size, c.model.attention = 5 * 64, ()
  c.optim.learning_rate, c.optim.schedule = 2e-4, "linear"
  c.optim.b1, c.optim.b2 = 0.0, 0.9
  match variant:
    case "wgan_gp":
      c.gan.loss, c.gan.spectral_norm = "wasserstein", "none"
      c.gan.gradient_penalty = 10.0
    case "tiny":
      dcgan.shared(c)
      base.openmoji32(c)
      base.tiny(c)
      c.gan.critic_steps, c.model.attention = 2, ()
    case _:
      dcgan.on_cpu(c, variant, VARIANTS, small)
  return c


def small(c: ConfigDict) -> None:
  """Networks for CPUs, and one update of the critic for one of the generator."""
  c.gan.widths, c.gan.extra, c.model.widths = (32, 64, 128), 0, (32, 64, 128, 128)
  c.gan.critic_steps = 1
  # In so few steps FD is 50; at the 1e-4 and 4e-4 of Zhang et al. 2019 it is 141.
  c.optim.learning_rate = 4e-4
