"""VDM's parts: Fourier features, the learned schedule, even times.

Kingma et al. 2021 (arXiv:2107.00630), CIFAR-10: 2.64 bits a dimension with all parts.
Fourier features of the input lower the bits; the bound in continuous time does not
depend on the schedule between its ends, which even times and a learned one only make
less noisy, so these rows are not ordered. The bound of `cosine`, which has no end of
its own, ends at the learned schedule's log-SNR.

Variants: see `configs/ablations/__init__.py`.
"""

from ml_collections import ConfigDict

from configs import ablations
from configs.diffusion import vdm

ROWS = {
  "all": {},
  "no_fourier": {"model.fourier": ()},
  "cosine": {"noise.schedule": "cosine", "eval.bound_logsnr": 13.3},
  "independent_times": {"noise.low_discrepancy": False},
}


def get_config(variant: str = "") -> ConfigDict:
  """The table at the scale of a variant."""
  ablations.check(variant)
  c = vdm.get_config()
  ablations.scaled(c, variant, steps=1000)
  if variant == "mini":
    c.text.encoder, c.model.net, c.data.batch_size = "none", "unet", 32
    c.model.widths, c.model.blocks, c.model.head_dim = (32,), 2, 32
    c.model.dropout, c.sample.steps = 0.0, 50
  c.eval.metrics = c.eval.train_metrics = ("bpd",)
  source = "VDM (Kingma et al. 2021), its parts"
  orderings = (("bpd", "all", "no_fourier"),)
  return ablations.table(c, ROWS, source, {"bpd": {"all": 2.64}}, orderings)
