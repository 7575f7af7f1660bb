"""iDDPM: Nichol & Dhariwal 2021, "Improved Denoising Diffusion Probabilistic Models".

L_hybrid with a learned variance, cosine schedule with offset 0.008, 4000 steps. The
default is CIFAR-10 (appendix A): U-Net of 3 blocks a resolution, dropout 0.3, Adam at
1e-4, batch 128, 500,000 steps. The paper reports an FID of 2.90 after more training,
and with L_vlb alone (`diffusion.loss='vlb'`) 2.94 bits a dimension, there with times
sampled by importance, which is not here.

Variants:
  :imagenet64  ImageNet-64 without classes, 1.5 million steps: 3.53 bits a dimension.
  :adm64       ADM (Dhariwal & Nichol 2021) on ImageNet-64, with classes: 296 million
               parameters, 250 steps.
  :tiny        seconds; what tests use.
"""

from ml_collections import ConfigDict

from configs import base
from configs.diffusion import ddpm


def get_config(variant: str = "") -> ConfigDict:
  """The config of a variant."""
  c = ddpm.get_config()
  c.noise.schedule, c.noise.cosine.offset, c.noise.timesteps = "cosine", 0.008, 4000
  c.diffusion.learn_variance = True
  c.model.blocks, c.model.attention, c.model.head_dim = 3, (16, 8), 64
  c.model.dropout, c.model.modulation = 0.3, "scale_shift"
  c.data.flip = False
  c.optim.learning_rate, c.optim.warmup_steps, c.optim.grad_clip = 1e-4, 0, 0.0
  c.train.steps = 500_000
  c.sample.sampler, c.sample.variance, c.sample.steps = "ddpm", "learned", 4000
  c.eval.metrics = ("loss", "bpd", "bpd_prior", "bpd_diffusion", "bpd_reconstruction")

  match variant:
    case "":
      pass
    case "imagenet64":
      imagenet64(c)
      # Heads of 128 channels, where theirs are four at every width.
      c.model.widths, c.model.head_dim = (128, 256, 384, 512), 128
      c.model.dropout = 0.0
      c.train.steps = 1_500_000
    case "adm64":
      imagenet64(c)
      c.data.flip = True
      c.text.encoder, c.text.classes, c.text.dim, c.text.drop = "label", 1000, 768, 0.0
      c.data.batch_size = 2048
      c.noise.timesteps = 1000
      c.model.widths, c.model.head_dim = (192, 384, 576, 768), 64
      c.model.attention, c.model.resample = (32, 16, 8), "block"
      c.model.dropout = 0.1
      c.optim.learning_rate, c.optim.weight_decay = 3e-4, 0.0
      c.train.steps = 540_000
      c.sample.steps = 250
    case "tiny":
      ddpm.openmoji(c)
      base.tiny(c)
      c.noise.timesteps = 100
    case _:
      raise base.unknown_variant(variant, ("imagenet64", "adm64", "tiny"))
  return c


def imagenet64(c: ConfigDict) -> None:
  """ImageNet shrunk to 64x64 pixels."""
  c.data.name, c.data.size = "imagenet_resized/64x64", 64
  c.data.eval_split = "validation"
