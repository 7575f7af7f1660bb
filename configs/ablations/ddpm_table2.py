"""DDPM, table 2: what the network predicts, its variance, and the loss.

Ho et al. 2020 (arXiv:2006.11239), FID on CIFAR-10: to predict the mean, L with a
learned variance 23.69, fixed 13.22; to predict eps, L 13.51, L_simple 3.17. Here a mean
is told by a prediction of the clean picture, L is weighted as the bound, and a learned
variance lies between the posterior's and beta_t, as in iDDPM; theirs is any diagonal.

Variants: see `configs/ablations/__init__.py`.
"""

from ml_collections import ConfigDict

from configs import ablations
from configs.diffusion import ddpm

LEARNED = {"diffusion.learn_variance": True, "sample.variance": "learned"}
MEAN = {"diffusion.prediction": "x", "diffusion.loss": "vlb"}
ROWS = {
  "mean_bound_learned": MEAN | LEARNED,
  "mean_bound": MEAN,
  "eps_bound": {"diffusion.loss": "vlb"},
  "eps_simple": {},
}
FID = {
  "mean_bound_learned": 23.69,
  "mean_bound": 13.22,
  "eps_bound": 13.51,
  "eps_simple": 3.17,
}


def get_config(variant: str = "") -> ConfigDict:
  """The table at the scale of a variant."""
  ablations.check(variant)
  c = ddpm.get_config()
  ablations.scaled(c, variant, steps=1500)
  if variant == "mini":
    c.text.encoder, c.sample.steps = "none", 100
  return ablations.table(c, ROWS, "DDPM (Ho et al. 2020), table 2", {"fd": FID})
