"""RealNVP (Dinh et al. 2017, arXiv:1605.08803).

The default is the paper's CIFAR-10 model: two scales, residual networks of 8 blocks
with 64 hidden channels, logits of the pixels, Adam at 1e-3, batches of 64, mirrored
pictures: 3.49 bits a dimension (table 1). Differences: group norms in the networks and
actnorm between the couplings, where the paper has batch norms; no weight norm and no
penalty on its scales; the number of steps, which the paper does not tell.

Variants:
  :imagenet32     four scales, 4 blocks, 32 hidden channels: 4.28 bits a dimension
                  (secondary source).
  :fashion_mnist  class to 32x32 grey pictures, in minutes on two CPU cores.
  :openmoji32     captions to 32x32 OpenMoji, likewise.
  :tiny           seconds; what tests use.
"""

from ml_collections import ConfigDict

from configs.flows import glow

VARIANTS = ("imagenet32", "fashion_mnist", "openmoji32", "tiny")


def get_config(variant: str = "") -> ConfigDict:
  """The config of a variant."""
  c = glow.flow("flows.realnvp")
  c.data.name, c.data.batch_size, c.data.flip = "cifar10", 64, True
  c.text.encoder = "none"
  c.flow.levels, c.flow.steps = 2, 3
  c.model.dim, c.model.blocks = 64, 8
  c.optim.grad_clip = 100.0
  match variant:
    case "imagenet32":
      c.data.name, c.data.eval_split = "downsampled_imagenet/32x32", "validation"
      c.data.flip = False
      c.flow.levels, c.model.dim, c.model.blocks = 4, 32, 4
    case _:
      glow.on_cpu(c, variant, VARIANTS, small)
  return c


def small(c: ConfigDict) -> None:
  """Networks for CPUs."""
  c.data.flip = False
  c.flow.levels, c.flow.steps = 3, 3
  c.model.dim, c.model.blocks = 12, 1
