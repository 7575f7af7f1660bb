"""DCGAN (Radford et al. 2016, arXiv:1511.06434).

The default is the paper's model of 64x64 bedrooms on CIFAR-10's 32x32 pictures: 100
numbers of noise, batch norm in both networks, Adam at 2e-4 with beta_1 0.5, batches of
128. The paper has no score of its samples. Differences: an EMA draws.

Variants:
  :fashion_mnist  class to 32x32 grey pictures, in minutes on two CPU cores.
  :openmoji32     captions to 32x32 OpenMoji, likewise.
  :tiny           seconds; what tests use.
"""

from ml_collections import ConfigDict

from configs import base

VARIANTS = ("fashion_mnist", "openmoji32", "tiny")


def get_config(variant: str = "") -> ConfigDict:
  """The config of a variant."""
  c = gan()
  c.data.name, c.data.batch_size, c.text.encoder = "cifar10", 128, "none"
  c.gan.latent_dim, c.gan.widths, c.model.widths = 100, (128, 256, 512), (128, 256, 512)
  c.optim.learning_rate, c.optim.b1 = 2e-4, 0.5
  match variant:
    case "":
      pass
    case "fashion_mnist":
      fashion_mnist(c)
    case "openmoji32":
      openmoji32(c)
    case "tiny":
      openmoji32(c)
      base.tiny(c)
    case _:
      raise base.unknown_variant(variant, VARIANTS)
  return c


def gan() -> ConfigDict:
  """What all GANs share."""
  c = base.get_config()
  c.family, c.gan = "gan.gan", base.gan()
  c.text.drop = 0.0
  c.optim.warmup_steps, c.optim.b2, c.optim.grad_clip = 0, 0.999, 0.0
  c.optim.ema, c.optim.ema_decay = "constant", 0.999
  c.train.steps = 100_000
  c.sample.guidance_scale = 1.0
  c.eval.num_images = 0
  return c


def fashion_mnist(c: ConfigDict) -> None:
  """Class to 32x32 grey pictures."""
  small(c)
  c.data.name, c.data.channels = "fashion_mnist", 1
  c.text.encoder, c.text.classes = "label", 10


def openmoji32(c: ConfigDict) -> None:
  """Captions in three languages to 32x32 drawings."""
  small(c)
  c.data.name, c.data.languages = "openmoji", ("en", "zh", "ja")
  c.text.encoder, c.text.max_tokens = "bytes", 48
  c.gan.mismatch = 0.5
  c.sample.num_images = 32


def small(c: ConfigDict) -> None:
  """Small networks and a short training, for CPUs."""
  c.data.size, c.data.batch_size = 32, 64
  c.model.widths = c.gan.widths = (32, 64, 128)
  # A CPU takes gradients of convolutions slowly inside a loop.
  c.model.scan = False
  c.optim.ema, c.optim.ema_decay = "warmup", 0.995
  c.train.steps = 2000
  c.train.sample_every = c.train.checkpoint_every = c.train.eval_every = 500
  c.sample.num_images = 40
  c.eval.num_images = 2000
