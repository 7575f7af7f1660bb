"""BigGAN (Brock et al. 2019, arXiv:1809.11096).

The default is its CIFAR-10 model: ResNets with spectral norm in both, classes by
conditional batch norm and projection, four updates of the critic for one of the
generator, Adam at 2e-4 with betas 0 and 0.999, batches of 50, which one device
takes: FID 14.73 (appendix C, as others cite it). Differences: no orthogonal
regularisation, which the paper needs for truncation; the critic's table of classes has
no spectral norm.

Variants:
  :imagenet128    96 channels, noise for every block, attention at 64x64, batches of
                  2048: FID 8.7 (table 1; from memory). Differences: blocks as SNGAN's
                  in both networks; no batch statistics gathered anew for samples.
  :tiny           seconds; what tests use.
"""

from ml_collections import ConfigDict

from configs import base
from configs.gan import dcgan

VARIANTS = ("imagenet128", "tiny")


def get_config(variant: str = "") -> ConfigDict:
  """The config of a variant."""
  c = dcgan.gan()
  c.gan.generator = c.gan.critic = "resnet"
  c.gan.loss, c.gan.spectral_norm, c.gan.critic_steps = "hinge", "both", 4
  c.gan.init, c.gan.widths, c.gan.extra = "orthogonal", (256, 256), 2
  c.model.widths, c.model.attention = (256,) * 4, ()
  c.text.encoder, c.text.classes, c.data.batch_size = "label", 10, 4 * 50
  c.optim.learning_rate, c.optim.b1 = 2e-4, 0.0
  c.optim.ema_decay, c.train.steps = 0.9999, 125_000
  match variant:
    case "":
      pass
    case "imagenet128":
      c.data.name, c.data.size, c.data.eval_split = "imagenet2012", 128, "validation"
      c.text.classes, c.data.batch_size = 1000, 2 * 2048
      c.gan.chunks, c.gan.latent_dim, c.gan.critic_steps = True, 120, 2
      c.model.widths = (96, 192, 384, 768, 1536, 1536)
      c.gan.widths, c.gan.extra = (96, 192, 384, 768, 1536), 1
      c.model.attention = (64,)
      c.optim.learning_rate, c.gan.learning_rate = 5e-5, 2e-4
    case "tiny":
      dcgan.shared(c)
      base.openmoji32(c)
      base.tiny(c)
      c.gan.critic_steps, c.gan.chunks, c.gan.latent_dim = 2, True, 12
    case _:
      raise base.unknown_variant(variant, VARIANTS)
  return c
