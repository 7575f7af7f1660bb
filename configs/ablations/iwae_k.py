"""IWAE's k: how many weighted samples the bound on the likelihood takes.

Burda et al. 2016 (arXiv:1509.00519), theorem 1: with more of them it can only be
tighter. All rows have one training, as a VAE: what is scored is the bound, where their
table 1 trains with k as well.

Variants: see `configs/ablations/__init__.py`.
"""

from ml_collections import ConfigDict

from configs import ablations
from configs.vae import vae

ROWS = {f"k{k}": {"vae.iwae_samples": k} for k in (1, 5, 50)}
ORDERINGS = (("bpd_iwae", "k5", "k1"), ("bpd_iwae", "k50", "k5"))


def get_config(variant: str = "") -> ConfigDict:
  """The table at the scale of a variant."""
  ablations.check(variant)
  c = vae.get_config("tiny" if variant == "tiny" else "")
  if variant == "mini":
    ablations.short(c, steps=1000)
  c.train.eval_every = c.train.sample_every = 0
  c.eval.metrics = ("bpd", "bpd_iwae")
  source = "IWAE (Burda et al. 2016), theorem 1"
  return ablations.table(c, ROWS, source, orderings=ORDERINGS)
