"""Classifier-free guidance, table 1: guidance weight by share of dropped conditions.

Ho & Salimans 2022 (arXiv:2207.12598), ImageNet-64, FID with 10% dropped: w = 0 has
1.80, 0.1: 1.55, 1: 12.6, 4: 26.22, where the Inception Score is 260. The table has
numbers for every row; the others could not be read again and do not stand here.
`sample.guidance_scale` is w + 1. Guidance raises the Inception Score. Rows of one share
have one training. :mini has four of the fourteen weights.

Variants: see `configs/ablations/__init__.py`.
"""

from ml_collections import ConfigDict

from configs import ablations
from configs.diffusion import cfg

TENTHS = {f"w0{i}": i / 10 for i in range(1, 10)}
WEIGHTS = {"w0": 0.0} | TENTHS | {"w1": 1.0, "w2": 2.0, "w3": 3.0, "w4": 4.0}
FEW = ("w0", "w01", "w1", "w4")
DROPS = {"p01": 0.1, "p02": 0.2, "p05": 0.5}
FID = {"p01_w0": 1.80, "p01_w01": 1.55, "p01_w1": 12.6, "p01_w4": 26.22}
IS = {"p01_w4": 260.0}
ORDERINGS = (("is", "p01_w1", "p01_w0"), ("is", "p01_w4", "p01_w0"))


def rows(weights: tuple[str, ...]) -> ablations.Rows:
  """Of these weights, for every share."""
  return {
    f"{p}_{w}": {"text.drop": drop, "sample.guidance_scale": 1 + WEIGHTS[w]}
    for p, drop in DROPS.items()
    for w in weights
  }


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
  found = rows(FEW if variant in ("mini", "tiny") else tuple(WEIGHTS))
  return ablations.table(c, found, source, {"fd": FID, "is": IS}, ORDERINGS)
