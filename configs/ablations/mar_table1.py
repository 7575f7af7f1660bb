"""MAR, table 1: tokens with cross-entropy against latents with a diffusion's loss.

Li et al. 2024 (arXiv:2406.11838), FID on ImageNet-256 without guidance: one token after
the other 19.58, bidirectional attention and a random order 8.75, the same with the
diffusion loss 3.43. Those two draw one token at a time; several at a time have 8.79 and
3.50, which are from memory. Rows `..._one` draw in as many steps as there are tokens:
by the cosine schedule a step has one, two or none. Row by row with the diffusion loss
19.23; causal attention in a random order 16.22, with the diffusion loss 13.07: these
three have rotary positions along the order, the others of the picture. In :tiny there
is no codec.

Variants: see `configs/ablations/__init__.py`; :paper reads runs/vqgan and
runs/stable_diffusion_autoencoder.
"""

from ml_collections import ConfigDict

from configs import ablations, base
from configs.autoregressive import mar
from configs.vae import kl, vq

FID = {
  "ar_tokens": 19.58,
  "ar_diffusion": 19.23,
  "random_tokens": 16.22,
  "random_diffusion": 13.07,
  "masked_tokens_one": 8.75,
  "masked_tokens": 8.79,
  "masked_diffusion_one": 3.43,
  "masked_diffusion": 3.50,
}
LENGTH = {"mini": 64, "tiny": 16}  # vectors of a picture; of the paper 256


def get_config(variant: str = "") -> ConfigDict:
  """The table at the scale of a variant."""
  ablations.check(variant)
  c = ablations.own(mar, variant, steps=800)
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
  rows["random_tokens"] = rows["masked_tokens"] | {
    "family": "autoregressive.permuted",
    "autoregressive.order": "random",
  }
  one = {"sample.steps": LENGTH.get(variant, 256)}
  rows["ar_diffusion"] = one | {"autoregressive.order": "raster"}
  rows["random_diffusion"] = one | {"autoregressive.order": "random"}
  for name in ("masked_tokens", "masked_diffusion"):
    rows[f"{name}_one"] = rows[name] | one
  rows = {name: rows[name] for name in FID}
  source = "MAR (Li et al. 2024), table 1, 8.79 and 3.50 from memory"
  return ablations.table(c, rows, source, {"fd": FID}, shared=shared)
