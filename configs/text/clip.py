"""CLIP (Radford et al. 2021, arXiv:2103.00020): pictures and captions in one space.

ViT-B/32 as in the paper: 126,112,001 parameters, which are the 151,277,313 of OpenAI's
but for 257 bytes in the place of 49,408 byte pairs. Trained as in tables 18 and 19 of
the paper (from memory): batches of 32,768, 32 epochs of 400 million pairs, which gave
63.2% zero-shot on ImageNet. The data are yours: `data.name=folder` or `shards`.

SigLIP (Zhai et al. 2023, arXiv:2303.15343) is `--config.clip.loss=siglip
--config.clip.temperature=0.1`.

Variants:
  :openmoji32      32x32 OpenMoji with captions in three languages: ten minutes on one
                   CPU core. docs/studies/clip.md says how well it finds held-out ones.
  :lit_openmoji32  the same captions to frozen features of EfficientNet-Lite0, as LiT
                   (Zhai et al. 2022, arXiv:2111.07991).
  :tiny            seconds; what tests use.
"""

from ml_collections import ConfigDict

from configs import base

VARIANTS = ("openmoji32", "lit_openmoji32", "tiny")


def get_config(variant: str = "") -> ConfigDict:
  """The config of a variant."""
  c = base.get_config()
  c.family = "text.clip"
  c.clip = base.clip()
  c.data.name, c.data.size, c.data.batch_size = "folder", 224, 32768
  c.text.max_tokens, c.text.drop = 77, 0.0
  c.text.dim, c.text.depth, c.text.heads = 512, 12, 8
  c.model.dim, c.model.depth, c.model.heads, c.model.patch = 768, 12, 12, 32
  c.model.remat = True
  c.clip.crop = 0.9
  c.optim.learning_rate, c.optim.warmup_steps, c.optim.schedule = 5e-4, 2000, "cosine"
  c.optim.b2, c.optim.eps, c.optim.weight_decay = 0.98, 1e-6, 0.2
  c.train.steps = 390_625
  match variant:
    case "":
      pass
    case "openmoji32":
      openmoji32(c)
    case "lit_openmoji32":
      openmoji32(c)
      c.clip.image, c.clip.crop = "efficientnet_lite0", 1.0
      c.train.steps = 2000
      c.train.checkpoint_every = c.train.eval_every = 500
    case "tiny":
      openmoji32(c)
      base.tiny(c)
    case _:
      raise base.unknown_variant(variant, VARIANTS)
  return c


def openmoji32(c: ConfigDict) -> None:
  """Small towers, for 32x32 drawings."""
  base.openmoji32(c)
  c.data.size, c.data.batch_size = 32, 128
  c.text.dim, c.text.depth, c.text.heads = 96, 2, 4
  c.model.dim, c.model.depth, c.model.heads, c.model.patch = 128, 4, 4, 8
  c.model.remat = False
  c.clip.dim, c.clip.crop = 128, 0.8
  c.optim.learning_rate, c.optim.warmup_steps = 1e-3, 100
  c.train.steps = 1400
  c.train.checkpoint_every = c.train.eval_every = 350
