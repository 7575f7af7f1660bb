"""EDM: Karras et al. 2022, "Elucidating the Design Space of Diffusion-Based Models".

The default is unconditional CIFAR-10 with the DDPM++ network (table 7 and appendix
F.2): preconditioning, lognormal noise, lambda weights, 200 million images in batches of
512, EMA half-life 500,000 images, augmentation with probability 0.12 in place of
mirrored pictures, 18 steps of Heun's method, 35 network evaluations. Table 2, VP: A
3.01, B 2.51, C 2.31, D 2.29, E 2.05, F, which is this, 1.97. E has
`diffusion.augment=0` and, from memory, `data.flip=True`. Differences: the labels of the
augmentation are added behind the layers that embed the noise, not before, and see
`diffusion/augmentation.py`.

The paper's ablations are one setting each: `diffusion.prediction`, `diffusion.loss`,
`noise.schedule`, `noise.edm.p_mean`, `sample.sampler`, `sample.grid`, `sample.lens`,
`sample.churn`.

Variants:
  :tiny  seconds; what tests use.
"""

from ml_collections import ConfigDict

from configs import base
from configs.diffusion import ddpm


def get_config(variant: str = "") -> ConfigDict:
  """The config of a variant."""
  c = ddpm.get_config()
  c.data.batch_size = 512
  c.noise.schedule, c.noise.timesteps = "edm", 0
  c.diffusion.prediction = c.diffusion.loss = "edm"
  c.diffusion.augment, c.data.flip = 0.12, False
  c.model.stem, c.model.widths, c.model.blocks = 128, (256, 256, 256), 4
  c.model.attention_up, c.model.head_dim = "last", 256
  c.model.skip_scale, c.model.resample, c.model.dropout = True, "block_1x1", 0.13
  c.optim.learning_rate, c.optim.warmup_steps, c.optim.grad_clip = 1e-3, 20_000, 0.0
  c.optim.ema, c.optim.ema_halflife = "halflife", 500_000.0
  c.train.steps = 390_625
  c.sample.sampler, c.sample.grid, c.sample.lens = "heun", "karras", "ve"
  c.sample.variance, c.sample.steps, c.sample.threshold = "small", 18, "none"
  match variant:
    case "":
      pass
    case "tiny":
      ddpm.openmoji(c)
      base.tiny(c)
      c.sample.threshold = "static"
    case _:
      raise base.unknown_variant(variant, ("tiny",))
  return c
