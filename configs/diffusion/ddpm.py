"""DDPM: Ho et al. 2020, "Denoising Diffusion Probabilistic Models".

The default is the paper's CIFAR-10 setting (appendix B): linear betas, 1000 ancestral
steps with the variance beta_t, eps prediction, L_simple, U-Net with attention at 16x16,
Adam at 2e-4, EMA 0.9999, batch 128, 800,000 steps. Table 2: FID 3.17. One difference:
the U-Net is conditioned on logsnr instead of t. Other rows of table 2: L and a mean
prediction, `diffusion.loss='vlb'` and `diffusion.prediction='x'`.

Variants:
  :openmoji32     text to image on OpenMoji in three languages, with a small DiT in
                  place of the U-Net: an hour or two on two CPU cores, enough for
                  drawings with dozens of variants, not for those with one picture.
  :fashion_mnist  class to image, 32x32 grey, with a small U-Net.
  :tiny           seconds; what tests use.
"""

from ml_collections import ConfigDict

from configs import base


def get_config(variant: str = "") -> ConfigDict:
  """The config of a variant."""
  c = base.get_config()
  c.family = "diffusion.ddpm"
  c.noise, c.diffusion = base.noise(), base.diffusion()
  c.noise.schedule, c.noise.timesteps = "linear", 1000

  c.data.name = "cifar10"
  c.data.flip = True
  c.text.encoder = "none"
  c.model.net = "unet"
  c.model.widths, c.model.blocks, c.model.attention = (128, 256, 256, 256), 2, (16,)
  c.model.head_dim, c.model.modulation = 256, "shift"
  c.model.dropout = 0.1
  c.optim.learning_rate, c.optim.warmup_steps = 2e-4, 5000
  c.optim.ema, c.optim.ema_decay = "constant", 0.9999
  c.train.steps = 800_000
  c.sample.sampler, c.sample.steps, c.sample.guidance_scale = "ddpm", 1000, 1.0
  c.sample.variance = c.diffusion.variance = "large"

  match variant:
    case "":
      pass
    case "openmoji32":
      openmoji32(c)
    case "fashion_mnist":
      c.data.name, c.data.channels, c.data.flip = "fashion_mnist", 1, True
      c.text.encoder, c.text.classes = "label", 10
      c.model.widths, c.model.head_dim, c.model.dropout = (32, 64, 64), 64, 0.0
      c.optim.warmup_steps, c.optim.ema_decay = 500, 0.999
      c.train.steps = 10_000
    case "tiny":
      openmoji(c)
      c.text.encoder = "bytes"
      base.tiny(c)
    case _:
      raise base.unknown_variant(variant, ("openmoji32", "fashion_mnist", "tiny"))
  return c


def openmoji(c: ConfigDict) -> None:
  """32x32 OpenMoji in place of other pictures; every `:tiny` starts from it."""
  c.data.name, c.data.size, c.data.flip = "openmoji", 32, False


def openmoji32(c: ConfigDict) -> None:
  """Text to 32x32 OpenMoji: a small DiT, v-prediction (Salimans & Ho 2022)."""
  openmoji(c)
  c.data.languages = ("en", "zh", "ja")
  c.data.batch_size = 64
  c.text.encoder, c.text.max_tokens = "bytes", 48
  c.noise.schedule, c.noise.timesteps = "cosine", 0
  c.diffusion.prediction = c.diffusion.loss = "v"
  c.model.net, c.model.dropout = "dit", 0.0
  c.model.dim, c.model.depth, c.model.heads, c.model.patch = 256, 6, 4, 8
  c.optim.learning_rate, c.optim.warmup_steps, c.optim.schedule = 1e-3, 200, "cosine"
  c.optim.ema, c.optim.ema_decay = "warmup", 0.999
  c.train.steps = 6000
  c.train.sample_every = c.train.checkpoint_every = c.train.eval_every = 500
  c.sample.sampler, c.sample.steps, c.sample.guidance_scale = "ddim", 50, 3.0
  c.sample.variance = c.diffusion.variance = "small"
  c.sample.num_images = 32
  c.sample.prompts = (
    "red heart",
    "blue circle",
    "grinning face",
    "red apple",
    "pizza",
    "cat face",
    "太阳",
    "三日月",
  )
