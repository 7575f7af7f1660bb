"""Min-SNR: how the error counts at each noise level.

Hang et al. 2023 (arXiv:2303.09556): weights of min(SNR, 5) on the clean picture's error
are learned from faster than a constant one, SNR's (the error of eps) and others. Their
ordering alone stands here; the caps 1 and 20 show how much depends on the 5.

Variants: see `configs/ablations/__init__.py`.
"""

from ml_collections import ConfigDict

from configs import ablations
from configs.diffusion import dit

ROWS = {
  "constant": {"diffusion.loss": "x"},
  "snr": {},
  "min_snr_1": {"diffusion.weight_cap": 1.0},
  "min_snr_5": {"diffusion.weight_cap": 5.0},
  "min_snr_20": {"diffusion.weight_cap": 20.0},
}
ORDERINGS = (("fd", "min_snr_5", "constant"), ("fd", "min_snr_5", "snr"))


def get_config(variant: str = "") -> ConfigDict:
  """The table at the scale of a variant."""
  ablations.check(variant)
  c = dit.get_config()
  c.diffusion.learn_variance, c.sample.variance = False, "small"
  c.diffusion.prediction, c.diffusion.loss = "x", "eps"
  c.sample.guidance_scale = 1.0
  if variant in ("mini", "tiny"):
    c.data.codec, c.sample.threshold = "", "static"
  ablations.scaled(c, variant, steps=1500)
  if variant == "mini":
    c.sample.sampler, c.sample.steps = "ddim", 50
  if variant == "tiny":
    c.noise.timesteps = 100
  source = "Min-SNR (Hang et al. 2023)"
  return ablations.table(c, ROWS, source, orderings=ORDERINGS)
