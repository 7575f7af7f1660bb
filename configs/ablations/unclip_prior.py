"""unCLIP's prior: by diffusion or autoregressive.

Ramesh et al. 2022 (arXiv:2204.06125), zero-shot COCO FID of the whole system: 10.63
with the autoregressive prior, 10.39 with the diffusion prior, which costs less too.
Here the priors alone are trained, on one dual encoder, and scored by the cosine between
what they draw and the picture's own vector; so the paper's ordering stands here, and
its numbers do not.

Variants: see `configs/ablations/__init__.py`.
"""

from ml_collections import ConfigDict

from configs import ablations
from configs.pipelines import dalle2

SYSTEMS = {"mini": "quickstart", "tiny": "tiny"}


def get_config(variant: str = "") -> ConfigDict:
  """The table at the scale of a variant."""
  ablations.check(variant)
  size = SYSTEMS.get(variant, "")
  stages = dalle2.get_config(size).stages.to_dict()
  others = dalle2.get_config(f"{size}_ar".strip("_")).stages.to_dict()
  c = ConfigDict(stages["prior"])
  c.eval.metrics = ("cosine",)
  c.train.eval_every = c.train.sample_every = 0
  here, there = ablations.leaves(c), ablations.leaves(ConfigDict(others["prior"]))
  same = ("eval.metrics", "train.eval_every", "train.sample_every")
  changed = {k: v for k, v in there.items() if here.get(k, v) != v and k not in same}
  rows = {"autoregressive": changed, "diffusion": {}}
  source = "unCLIP (Ramesh et al. 2022), priors"
  orderings = (("cosine", "diffusion", "autoregressive"),)
  shared = {name: ConfigDict(others[name]) for name in ("clip", "components")}
  return ablations.table(c, rows, source, orderings=orderings, shared=shared)
