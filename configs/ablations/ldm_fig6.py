"""LDM's downsampling factor, figure 6: what a diffusion of each map learns.

Rombach et al. 2022 (arXiv:2112.10752), section 4.1: after as many updates, a diffusion
of pixels (f = 1) is far behind those of maps by f = 4 or 8. The figure has curves; this
ordering, from memory, stands here alone. The autoencoders are those of `ldm_factor.py`,
which scores what they keep of a picture. Each is trained once, and the diffusion of its
latents with every seed. That is configs/diffusion/dit.py, not their U-Net, in patches
that make 256 tokens of every map; in :mini 64, and 16 of the smallest map.

Variants: see `configs/ablations/__init__.py`.
"""

from ml_collections import ConfigDict

from configs import ablations
from configs.ablations import ldm_factor
from configs.diffusion import dit

PATCHES = {
  "paper": {"f1": 16, "f4": 4, "f8": 2, "f16": 1},
  "mini": {"f1": 4, "f4": 2, "f8": 1, "f16": 1},
  "tiny": {"f1": 2, "f4": 2, "f8": 1, "f16": 1},
}
ORDERINGS = (("fd", "f4", "f1"), ("fd", "f8", "f1"))


def get_config(variant: str = "") -> ConfigDict:
  """The table at the scale of a variant."""
  ablations.check(variant)
  c = ablations.own(dit, variant, steps=800)
  c.sample.guidance_scale, c.data.codec, c.sample.threshold = 1.0, "", "none"
  rows, shared = {}, {}
  for name, patch in PATCHES[variant or "paper"].items():
    codec = {"data.codec": f"@{name}"} if name != "f1" else {}
    rows[name] = {"model.patch": patch, **codec}
  rows["f1"]["sample.threshold"] = "static"
  for name, fields in ldm_factor.rows(variant).items():
    shared[name] = ldm_factor.codec(variant)
    shared[name].update_from_flattened_dict(fields)
  source = "Latent diffusion (Rombach et al. 2022), figure 6"
  return ablations.table(c, rows, source, orderings=ORDERINGS, shared=shared)
