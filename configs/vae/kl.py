"""The KL autoencoder of Stable Diffusion (Rombach et al. 2022, arXiv:2112.10752).

Pictures of 256x256 to 32x32x4 latents (f = 8) and back, 83.7 million parameters, as in
the paper's section 3.1 and appendix G: L1 + LPIPS, KL weight 1e-6, Adam at 4.5e-6 times
the batch. Table 8 has a reconstruction FID of 0.90 on ImageNet, after training on
OpenImages with a critic (configs/gan/vqgan.py:kl).

Stable Diffusion's own weights are read with
`--config.vae.weights=diffusion_pytorch_model.safetensors --config.train.steps=0`.

Variants:
  :openmoji32     32x32 OpenMoji to 8x8x4: twelve minutes on one CPU core.
  :openmoji32_c8  to 8x8x8, wider and three times as long.
  :fashion_mnist  32x32 Fashion-MNIST to 8x8x4: two to three minutes on one CPU core.
  :tiny           seconds; what tests use.
"""

from ml_collections import ConfigDict

from configs import base

VARIANTS = ("openmoji32", "fashion_mnist", "tiny")


def get_config(variant: str = "") -> ConfigDict:
  """The config of a variant."""
  if variant != "openmoji32_c8":
    return autoencoder(variant, (*VARIANTS, "openmoji32_c8"))
  c = autoencoder("openmoji32")
  c.vae.latent_channels, c.model.widths = 8, (32, 64, 64)
  c.train.steps = 3000
  return c


def autoencoder(variant: str, known: tuple[str, ...] = VARIANTS) -> ConfigDict:
  """What all autoencoders share."""
  c = base.get_config()
  c.family = "vae.autoencoder"
  c.vae = base.vae()
  c.vae.beta, c.vae.perceptual_weight = 1e-6, 1.0
  c.text.encoder = "none"
  c.data.name, c.data.size, c.data.batch_size = "imagenet2012", 256, 96
  c.data.eval_split, c.data.flip = "validation", True
  c.model.widths, c.model.blocks = (128, 256, 512, 512), 2
  c.model.attention, c.model.head_dim = (), 512
  c.optim.learning_rate, c.optim.b1, c.optim.b2 = 4.5e-6 * 96, 0.5, 0.9
  c.optim.warmup_steps, c.optim.ema_decay = 0, 0.999
  c.train.steps = 250_000
  c.sample.edit = "reconstruct"
  match variant:
    case "":
      pass
    case "openmoji32":
      openmoji(c)
    case "fashion_mnist":
      fashion_mnist(c)
    case "tiny":
      openmoji(c)
      base.tiny(c)
    case _:
      raise base.unknown_variant(variant, known)
  return c


def openmoji(c: ConfigDict) -> None:
  """32x32 OpenMoji, f = 4, at a size that two CPU cores train in minutes."""
  c.data.name, c.data.size, c.data.channels = "openmoji", 32, 3
  c.data.eval_split, c.data.flip, c.data.batch_size = "test", False, 32
  small(c)


def fashion_mnist(c: ConfigDict) -> None:
  """32x32 Fashion-MNIST, f = 4, likewise, in fewer steps."""
  c.data.name, c.data.size, c.data.channels = "fashion_mnist", 32, 1
  c.data.eval_split, c.data.flip, c.data.batch_size = "test", False, 32
  small(c)
  c.train.steps = 400


def small(c: ConfigDict) -> None:
  """What both share."""
  c.model.widths, c.model.blocks, c.model.head_dim = (32, 32, 64), 1, 64
  c.vae.perceptual_weight = 0.0
  c.optim.learning_rate, c.optim.b1, c.optim.b2 = 1e-3, 0.9, 0.999
  c.optim.warmup_steps, c.optim.schedule = 100, "cosine"
  c.optim.ema, c.optim.ema_decay = "constant", 0.99
  c.train.steps = 1000
  c.train.sample_every = c.train.checkpoint_every = c.train.eval_every = 500
  c.sample.num_images = 64
