"""DCGAN (Radford et al. 2016, arXiv:1511.06434).

The default is the paper's model of 64x64 bedrooms on CIFAR-10's 32x32 pictures: 100
numbers of noise, batch norm in both networks, Adam at 2e-4 with beta_1 0.5, batches of
128. The paper scores no samples. Differences: normal noise, not uniform; one doubling
fewer, without its 1024 channels; an average of the weights draws.

Variants:
  :fashion_mnist  class to 32x32 grey pictures, in minutes on two CPU cores.
  :openmoji32     captions to 32x32 OpenMoji, likewise.
  :tiny           seconds; what tests use.
"""

from collections.abc import Callable

from ml_collections import ConfigDict

from configs import base

VARIANTS = ("fashion_mnist", "openmoji32", "tiny")


def get_config(variant: str = "") -> ConfigDict:
  """The config of a variant."""
  c = gan()
  c.gan.latent_dim, c.gan.widths, c.model.widths = 100, (128, 256, 512), (128, 256, 512)
  c.data.batch_size = 128
  c.optim.learning_rate, c.optim.b1 = 2e-4, 0.5
  on_cpu(c, variant, VARIANTS, small)
  return c


def small(c: ConfigDict) -> None:
  """Networks for CPUs."""
  c.model.widths = c.gan.widths = (32, 64, 128)


def gan() -> ConfigDict:
  """What all GANs share."""
  c = base.get_config()
  c.family, c.gan, c.noise = "gan.gan", base.gan(), base.noise()
  c.data.name, c.text.encoder, c.text.drop = "cifar10", "none", 0.0
  c.optim.warmup_steps, c.optim.b2, c.optim.grad_clip = 0, 0.999, 0.0
  c.optim.ema, c.optim.ema_decay = "constant", 0.999
  c.train.steps = 100_000
  c.sample.guidance_scale = 1.0
  c.eval.num_images = 0
  return c


def on_cpu(
  c: ConfigDict,
  variant: str,
  known: tuple[str, ...],
  own: Callable[[ConfigDict], None],
) -> None:
  """The variants that all GANs have; `own` are one's small networks.

  Raises:
    ValueError: the variant is not one of `known`.
  """
  base.on_cpu(c, variant, known, shared, own)


def shared(c: ConfigDict) -> None:
  """A short training, for CPUs."""
  c.data.size, c.data.batch_size = 32, 64
  # With gan.critic_steps above 1: CPUs loop slowly over strided convolutions.
  c.model.scan = False
  c.optim.ema, c.optim.ema_decay = "warmup", 0.995
  c.train.steps = 3000
  c.train.sample_every = c.train.checkpoint_every = c.train.eval_every = 500
  c.sample.num_images = 40
  c.eval.num_images = 2000
