"""iDDPM, table 2: steps, noise schedule and loss, and so the learned variance.

Nichol & Dhariwal 2021 (arXiv:2102.09672), CIFAR-10, bits a dimension and FID after
500,000 updates. All but the first row have 4,000 diffusion steps; with more than 1,000
the linear schedule's betas are as much smaller, as in their code. Of the numbers, 2.94
was read; the others are from memory. L_vlb's times are sampled by importance there.

Variants: see `configs/ablations/__init__.py`.
"""

from ml_collections import ConfigDict

from configs import ablations
from configs.diffusion import iddpm

BITS = {
  "linear_simple_quarter": 3.73,
  "linear_simple": 3.37,
  "linear_hybrid": 3.26,
  "cosine_simple": 3.26,
  "cosine_hybrid": 3.17,
  "cosine_bound": 2.94,
}
FID = {
  "linear_simple_quarter": 3.29,
  "linear_simple": 2.90,
  "linear_hybrid": 3.07,
  "cosine_simple": 3.05,
  "cosine_hybrid": 3.19,
  "cosine_bound": 11.47,
}
FIXED = {
  "diffusion.learn_variance": False,
  "diffusion.variance": "large",
  "sample.variance": "large",
}


def rows(timesteps: int, steps: int) -> ablations.Rows:
  """The table's, of so many diffusion steps, drawn in `steps`."""
  fewer = timesteps // 4
  coarse = {"noise.schedule": "linear"}
  few = {"noise.timesteps": fewer, "sample.steps": min(steps, fewer)}
  linear = coarse | {f"noise.linear.{k}": v for k, v in betas(timesteps).items()}
  return {
    "linear_simple_quarter": coarse | few | FIXED,
    "linear_simple": linear | FIXED,
    "linear_hybrid": linear,
    "cosine_simple": FIXED,
    "cosine_hybrid": {},
    "cosine_bound": {"diffusion.loss": "vlb"},
  }


def betas(timesteps: int) -> ablations.Fields:
  """Of 1,000 steps, or of more that are as much smaller."""
  count = max(1000, timesteps)
  return {"timesteps": count, "beta_start": 0.1 / count, "beta_end": 20.0 / count}


def get_config(variant: str = "") -> ConfigDict:
  """The table at the scale of a variant."""
  ablations.check(variant)
  c = iddpm.get_config()
  ablations.scaled(c, variant, steps=1500)
  if variant == "mini":
    c.text.encoder, c.sample.steps, c.eval.bound_times = "none", 100, 20
  if variant == "tiny":
    c.noise.timesteps, c.sample.steps = 100, 4
  c.eval.metrics = ("bpd", "fd")
  source = "iDDPM (Nichol & Dhariwal 2021), table 2, all but 2.94 from memory"
  found = rows(c.noise.timesteps, c.sample.steps)
  return ablations.table(c, found, source, {"bpd": BITS, "fd": FID})
