"""MAR, table 1: tokens with cross-entropy against latents with a diffusion's loss.

Li et al. 2024 (arXiv:2406.11838), FID on ImageNet-256 without guidance: one token after
the other 19.58, bidirectional attention and a random order 8.75, the same with the
diffusion loss 3.43. Their rows between these are not here. The masked rows here draw
several tokens at once, in `sample.steps`. In :tiny there is no codec.

Variants: see `configs/ablations/__init__.py`; :paper reads runs/vqgan and
runs/stable_diffusion_autoencoder.
"""

from ml_collections import ConfigDict

from configs import ablations, base
from configs.autoregressive import mar
from configs.vae import kl, vq

FID = {"ar_tokens": 19.58, "masked_tokens": 8.75, "masked_diffusion": 3.43}


def get_config(variant: str = "") -> ConfigDict:
  """The table at the scale of a variant."""
  ablations.check(variant)
  c = ablations.own(mar, variant, steps=1500)
  c.sample.guidance_scale, c.sample.guidance_schedule = 1.0, "constant"
  tokens, shared = {"data.codec": "runs/vqgan", "data.latents": "tokens"}, {}
  if variant == "mini":
    c.data.codec, tokens["data.codec"] = "@kl", "@vq"
    shared = {
      "kl": kl.get_config("fashion_mnist"),
      "vq": vq.get_config("fashion_mnist"),
    }
  if variant == "tiny":
    tokens = {}
  rows = {
    "ar_tokens": {"family": "autoregressive.decoder", "sample.edit": "complete"},
    "masked_tokens": {"family": "autoregressive.maskgit"},
  }
  # MaskGIT refuses what only MAR's head has a use for.
  for field, value in base.autoregressive().items():
    rows["masked_tokens"][f"autoregressive.{field}"] = value
  rows = {name: fields | tokens for name, fields in rows.items()}
  rows["masked_diffusion"] = {}
  source = "MAR (Li et al. 2024), table 1"
  return ablations.table(c, rows, source, {"fd": FID}, shared=shared)
