"""VDM: Kingma et al. 2021, "Variational Diffusion Models".

Likelihood training: the continuous-time bound in bits a dimension, a learned monotone
schedule, low-discrepancy times, Fourier features of the input, a U-Net that keeps full
resolution. The default is CIFAR-10 without augmentation (table 1): 2.64 bits a
dimension after 10 million steps; evaluate with `--mode=eval`. Two differences: their
network predicts eps - x_t rather than eps, and they choose the inside of the schedule
for least variance, where here the bound's own gradient moves it, of mean zero.

Variants:
  :augmented  mirrored, with a network twice as wide: 2.49 with all their augmentation.
  :tiny       seconds; what tests use.
"""

from ml_collections import ConfigDict

from configs import base
from configs.diffusion import ddpm


def get_config(variant: str = "") -> ConfigDict:
  """The config of a variant."""
  c = ddpm.get_config()
  c.data.flip = False
  c.noise.schedule, c.noise.timesteps, c.noise.low_discrepancy = "learned", 0, True
  c.diffusion.loss = "vlb"
  c.model.widths, c.model.blocks, c.model.attention = (128,), 32, ()
  c.model.head_dim, c.model.fourier = 128, (7, 8)
  c.optim.warmup_steps, c.optim.b2, c.optim.weight_decay = 100, 0.99, 0.01
  c.train.steps = 10_000_000
  c.sample.variance, c.sample.steps = "small", 1000
  c.eval.metrics = c.eval.train_metrics = (
    "bpd",
    "bpd_prior",
    "bpd_diffusion",
    "bpd_reconstruction",
  )
  c.eval.num_images, c.eval.bound_logsnr = 0, 20.0
  match variant:
    case "":
      pass
    case "augmented":
      c.data.flip = True
      c.model.widths, c.model.attention, c.model.head_dim = (256,), (32,), 256
      c.model.dropout = 0.05
    case "tiny":
      ddpm.openmoji(c)
      base.tiny(c)
    case _:
      raise base.unknown_variant(variant, ("augmented", "tiny"))
  return c
