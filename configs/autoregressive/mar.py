"""MAR (Li et al. 2024, arXiv:2406.11838), class to latents of ImageNet-256.

The default is the size of MAR-B, twice twelve layers of 768 with a head of six blocks
of 1,024, in one stack, on the 32x32x4 latents of Stable Diffusion's autoencoder
(configs/vae/kl.py) by patches of 2: 64 steps, 100 of the head's for each vector. As in
the authors' code the head's noise is the cosine schedule's, guidance rises linearly to
2.9, dropout is 0.1, and AdamW has a rate of 8e-4 in batches of 2,048, beta2 0.95,
weight decay 0.02 and an EMA of 0.9999. There FID is 2.31 (its README) after 800 epochs,
in 256 steps, on latents of 16 channels at f = 16. Differences: gradients are clipped at
1, not 3, no warm-up, there 100 epochs, the head's weights decay too, its variance is
not learned, and the class is one item in front, not 64.

Variants:
  :fashion_mnist  class to the 8x8x4 latents of configs/vae/kl.py:fashion_mnist, in
                  runs/kl, by a small network.
  :openmoji32     captions to the 8x8x8 latents of configs/vae/kl.py:openmoji32_c8, in
                  runs/kl_c8.
  :tiny           seconds; what tests use, in pixels.
"""

from ml_collections import ConfigDict

from configs import base
from configs.autoregressive import decoder

VARIANTS = ("fashion_mnist", "openmoji32", "tiny")


def get_config(variant: str = "") -> ConfigDict:
  """The config of a variant."""
  c = decoder.over_tokens("autoregressive.mar")
  c.autoregressive, c.noise = base.autoregressive(), base.noise()
  c.autoregressive.head_depth = 6
  c.noise.schedule = "cosine"
  c.data.codec, c.data.latents = "runs/stable_diffusion_autoencoder", "latents"
  c.data.batch_size = 2048
  c.model.depth, c.model.patch, c.model.remat = 24, 2, True
  c.optim.learning_rate, c.optim.weight_decay = 8e-4, 0.02
  c.optim.ema, c.optim.ema_decay = "constant", 0.9999
  c.train.steps = 500_000
  c.sample.steps, c.sample.edit = 64, "inpaint"
  c.sample.guidance_scale, c.sample.guidance_schedule = 2.9, "linear"
  if variant:
    decoder.on_cpu(c, variant, VARIANTS)
    small(c, variant)
  return c


def small(c: ConfigDict, variant: str) -> None:
  """A small head; v in place of eps, whose first steps leave nothing of it in doubt."""
  c.model.remat, c.data.latents = False, "latents"
  c.sample.steps, c.sample.guidance_scale = 16, 2.0
  if variant == "tiny":
    c.sample.steps = 3
    return
  c.data.codec = {"fashion_mnist": "runs/kl", "openmoji32": "runs/kl_c8"}[variant]
  c.model.patch, c.autoregressive.prediction = 1, "v"
  c.autoregressive.head_dim, c.autoregressive.head_depth = 128, 3
  c.autoregressive.draws, c.data.batch_size, c.train.steps = 2, 32, 1200
  c.sample.head_steps = 50
