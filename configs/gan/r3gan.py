"""R3GAN (Huang et al. 2024, arXiv:2501.05441).

The default is its CIFAR-10 model (config E, with classes) at a fixed rate: a
relativistic loss with R1 and R2, residual blocks without norms, pictures mirrored as
in its code's command: FID 1.96. Differences: the paper's learning rate,
beta_2, penalties and EMA change over training by a cosine; here they stay, the
penalties as they are at its start (0.05, which fall to 0.005), the others as they are
at its end. Its probability of augmentation rises to 0.55; here it
adapts, so that the share of pairs told apart, less that of the others, is 0.55.

Variants:
  :fashion_mnist  class to 32x32 grey pictures, in minutes on two CPU cores.
  :openmoji32     captions to 32x32 OpenMoji, likewise.
  :tiny           seconds; what tests use.
"""

from ml_collections import ConfigDict

from configs.gan import dcgan

VARIANTS = ("fashion_mnist", "openmoji32", "tiny")


def get_config(variant: str = "") -> ConfigDict:
  """The config of a variant."""
  c = dcgan.gan()
  c.gan.generator = c.gan.critic = "r3gan"
  c.gan.loss, c.gan.latent_dim = "relativistic", 64
  c.gan.widths = c.model.widths = (768,) * 4
  c.gan.r1 = c.gan.r2 = 0.05
  c.gan.augment, c.gan.augment_target = "ada", 0.55
  c.data.batch_size, c.text.encoder, c.text.classes = 512, "label", 10
  c.data.flip = not variant
  c.optim.learning_rate, c.optim.b1, c.optim.b2 = 5e-5, 0.0, 0.99
  c.optim.ema, c.optim.ema_halflife = "halflife", 5_000_000
  c.train.steps = 390_000
  dcgan.on_cpu(c, variant, VARIANTS, small)
  return c


def small(c: ConfigDict) -> None:
  """Networks for CPUs, and a stronger penalty, as for larger pictures."""
  c.gan.widths = c.model.widths = (32, 64, 96, 96)
  c.model.blocks = 1
  c.gan.r1 = c.gan.r2 = 0.5
  c.gan.augment = "none"
  c.optim.learning_rate = 2e-4
