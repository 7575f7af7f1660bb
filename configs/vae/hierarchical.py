"""VDVAE: Child 2020, "Very Deep VAEs Generalize Autoregressive Models ...".

The default is the paper's CIFAR-10 model as published: width 384, 43 groups of 16
latents a place at 32, 16, 8, 4 and 1 pixels a side (22, 11, 6, 3 and 1), a mixture of
ten discretized logistics, AdamW at 2e-4 with both betas 0.9, batches of 32, EMA 0.9999,
a million steps. Expect 2.87 bits a dimension (bpd), the mean of four runs stopped
early; NVAE (Vahdat & Kautz 2020) has 2.91. Differences: log sigma is kept within 5, and
a step is skipped only if it is not finite, not also if its gradient is large.

Variants:
  :fashion_mnist  class to 32x32 grey pictures.
  :openmoji32     captions to 32x32 OpenMoji.
  :tiny           seconds; what tests use.
"""

from ml_collections import ConfigDict

from configs import base


def get_config(variant: str = "") -> ConfigDict:
  """The config of a variant."""
  c = base.get_config()
  c.family = "vae.hierarchical"
  c.vae = base.vae()
  c.vae.likelihood, c.vae.latent_channels = "logistic_mixture", 16
  c.vae.groups = (22, 11, 6, 3, 1)
  c.data.name, c.data.batch_size = "cifar10", 32
  c.text.encoder = "none"
  c.model.widths, c.model.blocks = (384,) * 5, (12, 7, 7, 4, 3)
  c.model.attention = ()
  c.optim.learning_rate, c.optim.warmup_steps, c.optim.weight_decay = 2e-4, 100, 0.01
  c.optim.b2, c.optim.grad_clip = 0.9, 200.0
  c.optim.ema, c.optim.ema_decay = "constant", 0.9999
  c.train.steps = 1_000_000
  c.sample.guidance_scale, c.sample.edit = 1.0, "reconstruct"
  c.eval.num_images = 0
  match variant:
    case "":
      pass
    case "fashion_mnist":
      small(c)
      c.data.name, c.data.channels = "fashion_mnist", 1
      c.text.encoder, c.text.classes = "label", 10
    case "openmoji32":
      openmoji32(c)
    case "tiny":
      openmoji32(c)
      base.tiny(c)
      c.vae.components, c.vae.warmup_steps, c.vae.iwae_samples = 2, 2, 2
      c.sample.frames = 3
    case _:
      raise base.unknown_variant(variant, ("fashion_mnist", "openmoji32", "tiny"))
  return c


def small(c: ConfigDict) -> None:
  """A small network and a short training, for CPUs."""
  c.vae.latent_channels, c.vae.groups = 8, (1, 1, 2, 2, 1)
  c.vae.components, c.vae.warmup_steps = 5, 200
  c.model.widths, c.model.blocks = (16, 32, 64, 64, 64), 1
  c.model.scan = False
  c.data.batch_size = 32
  c.optim.learning_rate, c.optim.schedule = 2e-3, "cosine"
  c.optim.b2, c.optim.grad_clip = 0.99, 1.0
  c.optim.ema, c.optim.ema_decay = "warmup", 0.995
  c.train.steps = 1000
  c.train.sample_every = c.train.checkpoint_every = c.train.eval_every = 500
  c.sample.num_images = 40
  c.eval.num_images = 2000


def openmoji32(c: ConfigDict) -> None:
  """Text to 32x32 OpenMoji in three languages."""
  small(c)
  c.data.name, c.data.languages = "openmoji", ("en", "zh", "ja")
  c.text.encoder, c.text.max_tokens = "bytes", 48
  c.sample.num_images = 32
