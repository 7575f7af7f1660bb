"""StyleGAN2's R1: the weight of the penalty on the critic's gradient.

Karras et al. 2020 (arXiv:2006.06676) choose it for each data set, 0.01 for CIFAR-10,
and print no table; so there is no ordering to reproduce. `gan.r1` of 0 is none.

Variants: see `configs/ablations/__init__.py`.
"""

from ml_collections import ConfigDict

from configs import ablations
from configs.gan import stylegan2

WEIGHTS = {"none": 0.0, "r001": 0.01, "r01": 0.1, "r1": 1.0, "r10": 10.0}
ROWS = {name: {"gan.r1": weight} for name, weight in WEIGHTS.items()}


def get_config(variant: str = "") -> ConfigDict:
  """The table at the scale of a variant."""
  ablations.check(variant)
  c = ablations.own(stylegan2, variant, steps=1000)
  if variant == "mini":
    c.data.size, c.gan.widths, c.model.widths = 16, (32, 64, 64), (32, 64, 64)
  return ablations.table(c, ROWS, "StyleGAN2 (Karras et al. 2020), weight of R1")
