"""Neural spline flows (Durkan et al. 2019, arXiv:1906.04032).

The default is RQ-NSF (C) on ImageNet-64 of 8 bits: four levels of 7 steps, splines of
8 bins in [-3, 3], residual networks of 3 blocks with 96 hidden channels, Adam at 5e-4
with a cosine, batches of 256, 200,000 steps: 3.82 bits a dimension with 15.6 million
parameters (Glow 3.81 with 111 million). `flow.coupling=affine` is the paper's baseline,
3.91. These figures are from a secondary source. Differences: group norms in the
networks, where the paper has batch norms, and their first convolutions are 3x3, not
1x1.

Variants:
  :fashion_mnist  class to 32x32 grey pictures, in minutes on two CPU cores.
  :openmoji32     captions to 32x32 OpenMoji, likewise.
  :tiny           seconds; what tests use.
"""

from ml_collections import ConfigDict

from configs.flows import glow

VARIANTS = ("fashion_mnist", "openmoji32", "tiny")


def get_config(variant: str = "") -> ConfigDict:
  """The config of a variant."""
  c = glow.flow("flows.nsf")
  c.data.name, c.data.size = "downsampled_imagenet/64x64", 64
  c.data.eval_split, c.data.batch_size, c.text.encoder = "validation", 256, "none"
  c.flow.levels, c.flow.steps, c.flow.coupling = 4, 7, "spline"
  c.flow.bins, c.flow.bound = 8, 3.0
  c.model.dim, c.model.blocks = 96, 3
  c.optim.learning_rate, c.optim.warmup_steps, c.optim.schedule = 5e-4, 0, "cosine"
  c.optim.grad_clip = 0.0
  c.train.steps = 200_000
  glow.on_cpu(c, variant, VARIANTS, small)
  return c


def small(c: ConfigDict) -> None:
  """Networks for CPUs."""
  c.flow.levels, c.flow.steps = 3, 6
  c.model.dim, c.model.blocks = 32, 1
  c.optim.grad_clip = 1.0
