"""Imagen, figure 4: the text encoder's size by the generator's.

Saharia et al. 2022 (arXiv:2205.11487): a larger text encoder helps, and more than a
larger U-Net. The figure has curves of CLIP score against FID and no numbers. Theirs are
T5's, frozen; in :mini the encoder is the transformer over bytes, which is trained with
the generator, on the pictures of configs/quickstart.py.

Variants: see `configs/ablations/__init__.py`; :paper reads runs/t5_small and
runs/t5_xxl, directories of google/t5-v1_1-small and -xxl from Hugging Face.
"""

from ml_collections import ConfigDict

from configs import ablations, quickstart
from configs.pipelines import imagen

SMALL, LARGE = "text_small", "text_large"
PAPER = {
  SMALL: {"text.frozen": ("runs/t5_small",)},
  LARGE: {"text.frozen": ("runs/t5_xxl",)},
  "unet_small": {"model.widths": (192, 384, 576, 768)},
  "unet_large": {},
}
MINI = {
  SMALL: {"text.dim": 32, "text.depth": 1, "text.heads": 2},
  LARGE: {"text.dim": 128, "text.depth": 3, "text.heads": 4},
  "unet_small": {"model.dim": 128, "model.depth": 3},
  "unet_large": {"model.dim": 256, "model.depth": 4},
}
TINY = {
  SMALL: {"text.depth": 1},
  LARGE: {"text.depth": 2},
  "unet_small": {},
  "unet_large": {"model.depth": 3},
}
ORDERINGS = (
  ("fd", "text_large_unet_small", "text_small_unet_small"),
  ("fd", "text_large_unet_large", "text_small_unet_large"),
  ("fd", "text_large_unet_small", "text_small_unet_large"),
)


def get_config(variant: str = "") -> ConfigDict:
  """The table at the scale of a variant."""
  ablations.check(variant)
  parts = {"mini": MINI, "tiny": TINY}.get(variant, PAPER)
  if variant == "tiny":
    c = quickstart.get_config("tiny")
  elif variant == "mini":
    c = quickstart.get_config()
    ablations.short(c, steps=800)
  else:
    c = ConfigDict(imagen.get_config().stages.small.to_dict())
    ablations.scaled(c, "paper", steps=0)
  c.eval.metrics = ("fd",) if variant != "tiny" else ("fd", "kid")
  if variant == "mini":
    c.eval.num_images = 200
  rows = {
    f"{text}_{net}": parts[text] | parts[net]
    for text in (SMALL, LARGE)
    for net in ("unet_small", "unet_large")
  }
  source = "Imagen (Saharia et al. 2022), figure 4"
  return ablations.table(c, rows, source, orderings=ORDERINGS)
