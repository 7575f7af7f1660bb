"""Glow (Kingma & Dhariwal 2018, arXiv:1807.03039).

The default is the paper's CIFAR-10 model: three levels of 32 steps, affine couplings of
512 hidden channels, Adam at 1e-3: 3.35 bits a dimension (table 2; RealNVP 3.49). Figure
3 compares `flow.mixing` conv_1x1, shuffle and reverse, for `flow.coupling` additive and
affine: the convolution is best with either. Differences: batches of 64 on one device,
hidden layers without actnorm, and a coupling's factor of at least 0.3.
`flow.dequantization=variational` is that of Flow++ (Ho et al. 2019).

Variants:
  :imagenet64     four levels of 48 steps, 3.81 bits a dimension.
  :fashion_mnist  class to 32x32 grey pictures, in minutes on two CPU cores.
  :openmoji32     captions to 32x32 OpenMoji, likewise.
  :latents        class to the 8x8x4 latents of configs/vae/kl.py:fashion_mnist in
                  runs/kl.
  :tiny           seconds; what tests use.
"""

from collections.abc import Callable

from ml_collections import ConfigDict

from configs import base

VARIANTS = ("imagenet64", "fashion_mnist", "openmoji32", "latents", "tiny")


def get_config(variant: str = "") -> ConfigDict:
  """The config of a variant."""
  c = flow("flows.glow")
  c.data.name, c.data.batch_size, c.text.encoder = "cifar10", 64, "none"
  c.model.dim = 512
  match variant:
    case "imagenet64":
      c.data.name, c.data.size = "downsampled_imagenet/64x64", 64
      c.data.eval_split, c.data.batch_size = "validation", 128
      c.flow.levels, c.flow.steps = 4, 48
    case "latents":
      small(c)
      base.fashion_mnist(c)
      c.data.codec, c.flow.levels, c.flow.steps = "runs/kl", 2, 12
      c.sample.threshold = "none"
    case _:
      on_cpu(c, variant, VARIANTS)
  return c


def flow(family: str) -> ConfigDict:
  """What all flows share."""
  c = base.get_config()
  c.family = family
  c.flow = base.flow()
  c.model.remat = True
  c.optim.learning_rate, c.optim.warmup_steps = 1e-3, 1000
  c.optim.ema, c.optim.ema_decay = "constant", 0.999
  c.train.steps = 500_000
  c.sample.guidance_scale, c.sample.edit = 1.0, "interpolate"
  c.eval.num_images = 0
  return c


def on_cpu(
  c: ConfigDict,
  variant: str,
  known: tuple[str, ...],
  own: Callable[[ConfigDict], None] = lambda c: None,
) -> None:
  """The variants that all flows have; `own` are a flow's small networks.

  Raises:
    ValueError: the variant is not one of `known`.
  """
  base.on_cpu(c, variant, known, small, own)


def small(c: ConfigDict) -> None:
  """A small flow and a short training, for CPUs."""
  c.data.size, c.data.batch_size, c.data.eval_split = 32, 32, "test"
  c.flow.levels, c.flow.steps, c.model.dim = 3, 8, 64
  # A CPU takes gradients of convolutions slowly inside a loop.
  c.model.remat = c.model.scan = False
  c.optim.learning_rate, c.optim.warmup_steps, c.optim.schedule = 2e-3, 100, "cosine"
  c.optim.ema, c.optim.ema_decay = "warmup", 0.995
  c.train.steps = 1000
  c.train.sample_every = c.train.checkpoint_every = c.train.eval_every = 500
  c.sample.num_images, c.sample.temperature = 40, 0.8
  c.eval.num_images = 2000
