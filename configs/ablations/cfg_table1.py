"""Classifier-free guidance, table 1: guidance weight by share of dropped conditions.

Ho & Salimans 2022 (arXiv:2207.12598), ImageNet-64, FID with 10% dropped: w = 0 has
1.80, 0.1: 1.55, 1: 12.6, 4: 26.22. `sample.guidance_scale` is w + 1. Guidance raises
the Inception Score. Rows of one share have one training.

Variants: see `configs/ablations/__init__.py`.
"""

from ml_collections import ConfigDict

from configs import ablations
from configs.diffusion import cfg

WEIGHTS = {"w0": 0.0, "w01": 0.1, "w1": 1.0, "w4": 4.0}
DROPS = {"p01": 0.1, "p02": 0.2, "p05": 0.5}
ROWS = {
  f"{p}_{w}": {"text.drop": drop, "sample.guidance_scale": 1 + weight}
  for p, drop in DROPS.items()
  for w, weight in WEIGHTS.items()
}
FID = {"p01_w0": 1.80, "p01_w01": 1.55, "p01_w1": 12.6, "p01_w4": 26.22}
ORDERINGS = (("is", "p01_w1", "p01_w0"), ("is", "p01_w4", "p01_w0"))


def get_config(variant: str = "") -> ConfigDict:
  """The table at the scale of a variant."""
  ablations.check(variant)
  c = cfg.get_config()
  ablations.scaled(c, variant, steps=1500)
  if variant == "mini":
    c.sample.steps = 50
  if variant in ("mini", "tiny"):
    c.eval.metrics = ("fd", "kid", "is")
  source = "Classifier-free guidance (Ho & Salimans 2022), table 1"
  return ablations.table(c, ROWS, source, {"fd": FID}, ORDERINGS)
