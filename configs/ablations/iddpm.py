"""iDDPM: the noise schedule and the learned variance.

Nichol & Dhariwal 2021 (arXiv:2102.09672), section 3: a variance learned by L_hybrid has
fewer bits than L_simple's fixed one, with either schedule, and the cosine schedule
fewer bits than the linear one. Their orderings alone stand here.

Variants: see `configs/ablations/__init__.py`.
"""

from ml_collections import ConfigDict

from configs import ablations
from configs.diffusion import iddpm

FIXED = {
  "diffusion.learn_variance": False,
  "diffusion.variance": "large",
  "sample.variance": "large",
}
LINEAR = {"noise.schedule": "linear"}
ROWS = {
  "linear_simple": LINEAR | FIXED,
  "linear_hybrid": LINEAR,
  "cosine_simple": FIXED,
  "cosine_hybrid": {},
}
ORDERINGS = (
  ("bpd", "linear_hybrid", "linear_simple"),
  ("bpd", "cosine_hybrid", "cosine_simple"),
  ("bpd", "cosine_hybrid", "linear_hybrid"),
)


def get_config(variant: str = "") -> ConfigDict:
  """The table at the scale of a variant."""
  ablations.check(variant)
  c = iddpm.get_config()
  # 4,000 steps are the cosine schedule's; the linear one's betas are those of 1,000.
  c.noise.timesteps = c.sample.steps = 1000
  ablations.scaled(c, variant, steps=1500)
  if variant == "mini":
    c.text.encoder, c.sample.steps = "none", 100
  if variant == "tiny":
    c.noise.timesteps, c.sample.steps = 100, 4
  c.eval.metrics = ("bpd", "fd")
  source = "iDDPM (Nichol & Dhariwal 2021), section 3"
  return ablations.table(c, ROWS, source, orderings=ORDERINGS)
