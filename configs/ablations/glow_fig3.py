"""Glow, figure 3: what mixes the channels, for additive and affine couplings.

Kingma & Dhariwal 2018 (arXiv:1807.03039), CIFAR-10: the invertible 1x1 convolution
needs fewer bits than a fixed shuffle, and that fewer than reversing, with either
coupling. The figure has curves and no numbers.

Variants: see `configs/ablations/__init__.py`.
"""

from ml_collections import ConfigDict

from configs import ablations
from configs.flows import glow

MIXING = ("reverse", "shuffle", "conv_1x1")
COUPLING = ("additive", "affine")
ROWS = {
  f"{coupling}_{mixing}": {"flow.coupling": coupling, "flow.mixing": mixing}
  for coupling in COUPLING
  for mixing in MIXING
}
ORDERINGS = tuple(
  ("bpd", f"{coupling}_{better}", f"{coupling}_{worse}")
  for coupling in COUPLING
  for worse, better in zip(MIXING, MIXING[1:], strict=False)
)


def get_config(variant: str = "") -> ConfigDict:
  """The table at the scale of a variant."""
  ablations.check(variant)
  names = {"mini": "fashion_mnist", "tiny": "tiny"}
  c = glow.get_config(names.get(variant, ""))
  if variant == "mini":
    c.data.size, c.flow.levels = 16, 2
    ablations.short(c, steps=1000)
  c.eval.metrics = ("bpd",)
  source = "Glow (Kingma & Dhariwal 2018), figure 3"
  return ablations.table(c, ROWS, source, orderings=ORDERINGS)
