"""Super-resolution diffusion: Saharia et al. 2022 (Imagen), appendix B.1 and F.1.

From 64x64 and a caption to 256x256: the small picture is enlarged and seen with the
noisy one; noise is added to it, and the network told how much (noise conditioning
augmentation). Efficient U-Net, cosine schedule, eps prediction, Adam at 1e-4 with
10,000 steps of warm-up, EMA 0.9999, batch 2048, 2.5 million steps; dynamic
thresholding. 464 million parameters, where Imagen's has about 600. No number is
reported for this part by itself; Imagen's whole cascade has a COCO FID of 7.27. Set
`data.path` to pictures with captions.

Variants:
  :openmoji32  OpenMoji from 8x8 to 32x32, with a small DiT and rectified flow: half an
               hour on two CPU cores.
  :tiny        seconds; what tests use.
"""

from ml_collections import ConfigDict

from configs import base
from configs.diffusion import ddpm


def get_config(variant: str = "") -> ConfigDict:
  """The config of a variant."""
  c = ddpm.get_config()
  c.data.name, c.data.size, c.data.low_size = "folder", 256, 64
  c.data.batch_size = 2048
  c.text.encoder = "bytes"
  c.noise.schedule, c.noise.timesteps = "cosine", 0
  c.model.net, c.model.dropout = "efficient_unet", 0.0
  c.model.widths, c.model.blocks = (128, 256, 512, 1024), (2, 4, 8, 8)
  c.model.attention_levels = c.model.text_levels = (3,)
  c.model.head_dim = 128
  c.optim.learning_rate, c.optim.warmup_steps = 1e-4, 10_000
  c.train.steps = 2_500_000
  c.sample.steps, c.sample.variance, c.sample.guidance_scale = 256, "small", 8.0
  c.sample.threshold = "dynamic"
  match variant:
    case "":
      pass
    case "openmoji32":
      ddpm.openmoji(c)
      c.data.low_size, c.data.batch_size = 8, 64
      c.noise.schedule, c.noise.density = "rectified_flow", "logit_normal"
      c.diffusion.prediction = c.diffusion.loss = "velocity"
      c.model.net = "dit"
      c.model.dim, c.model.depth, c.model.heads, c.model.patch = 128, 6, 2, 4
      c.optim.learning_rate, c.optim.warmup_steps, c.optim.schedule = (
        1e-3,
        100,
        "cosine",
      )
      c.optim.ema, c.optim.ema_decay = "warmup", 0.998
      c.train.steps = 2000
      c.train.sample_every = c.train.checkpoint_every = c.train.eval_every = 500
      c.sample.sampler, c.sample.steps, c.sample.guidance_scale = "heun", 20, 1.5
      c.sample.threshold = "static"
    case "tiny":
      ddpm.openmoji(c)
      base.tiny(c)
      c.data.low_size = 4
    case _:
      raise base.unknown_variant(variant, ("openmoji32", "tiny"))
  return c
