"""LDM's downsampling factor: what an autoencoder of each keeps of a picture.

Rombach et al. 2022 (arXiv:2112.10752), table 8, reconstruction FID of KL autoencoders:
f = 4 has 0.27, 8: 0.90, 16: 0.87, with more channels the smaller the map. In :mini
pictures have 32 pixels, and f is 2, 4 and 8 under the paper's names 4, 8 and 16. What a
diffusion learns of these maps is in `ldm_fig6.py`.

Variants: see `configs/ablations/__init__.py`.
"""

from ml_collections import ConfigDict

from configs import ablations
from configs.vae import kl

RFID = {"f4": 0.27, "f8": 0.90, "f16": 0.87}
CHANNELS = {"f4": 3, "f8": 4, "f16": 16}
PAPER = {
  "f4": (128, 256, 512),
  "f8": (128, 256, 512, 512),
  "f16": (128, 128, 256, 512, 512),
}
MINI = {"f4": (32, 64), "f8": (32, 32, 64), "f16": (32, 32, 32, 64)}
TINY = {"f4": (8,), "f8": (8, 16), "f16": (8, 8, 16)}


def get_config(variant: str = "") -> ConfigDict:
  """The table at the scale of a variant."""
  ablations.check(variant)
  c = codec(variant)
  c.eval.metrics = ("rfd", "psnr")
  source = "Latent diffusion (Rombach et al. 2022), table 8"
  return ablations.table(c, rows(variant), source, {"rfd": RFID})


def codec(variant: str) -> ConfigDict:
  """The autoencoder of whose networks the rows tell more."""
  c = kl.get_config({"mini": "fashion_mnist", "tiny": "tiny"}.get(variant, ""))
  if variant == "mini":
    ablations.short(c, steps=400)
  if variant not in ("mini", "tiny"):
    c.eval.features, c.eval.num_images = "inception", 0
  return c


def rows(variant: str) -> ablations.Rows:
  """The networks of each factor."""
  widths = {"mini": MINI, "tiny": TINY}.get(variant, PAPER)
  return {
    name: {"model.widths": widths[name], "vae.latent_channels": channels}
    | {"vae.groups": (1,) * len(widths[name])}
    for name, channels in CHANNELS.items()
  }
