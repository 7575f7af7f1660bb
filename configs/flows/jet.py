"""Jet (Kolesnikov et al. 2024, arXiv:2412.15129).

The default is the published ImageNet-64 model of 32 couplings: patches of 4x4 pixels,
vision transformers of 2 blocks, 512 wide with 8 heads, Adam at 3e-4 with betas 0.9 and
0.95 and a cosine, batches of 1024, 200 epochs: 3.72 bits a dimension.

Variants:
  :large          64 couplings of 5 blocks: 3.66 bits a dimension.
  :fashion_mnist  class to 32x32 grey pictures, in minutes on two CPU cores.
  :openmoji32     captions to 32x32 OpenMoji, likewise.
  :tiny           seconds; what tests use.
"""

from ml_collections import ConfigDict

from configs.flows import glow

VARIANTS = ("large", "fashion_mnist", "openmoji32", "tiny")


def get_config(variant: str = "") -> ConfigDict:
  """The config of a variant."""
  c = glow.flow("flows.jet")
  c.data.name, c.data.size = "downsampled_imagenet/64x64", 64
  c.data.eval_split, c.data.batch_size, c.text.encoder = "validation", 1024, "none"
  c.flow.steps = 32
  c.model.dim, c.model.depth, c.model.heads, c.model.patch = 512, 2, 8, 4
  c.train.steps = 250_000
  c.optim.learning_rate, c.optim.schedule = 3e-4, "cosine"
  c.optim.warmup_steps, c.optim.b2 = 25_000, 0.95
  c.optim.weight_decay = 1e-5 / 3e-4  # theirs is not times the learning rate
  match variant:
    case "large":
      c.flow.steps, c.model.depth = 64, 5
    case _:
      glow.on_cpu(c, variant, VARIANTS, small)
  return c


def small(c: ConfigDict) -> None:
  """Networks for CPUs."""
  # A coupling makes a number at most twice as large and changes half of them; a
  # constant background, of one grey level, has to become some 440 times as large.
  c.flow.steps = 20
  c.model.dim, c.model.depth, c.model.heads, c.model.patch = 48, 1, 2, 4
  c.optim.learning_rate = 4e-3
