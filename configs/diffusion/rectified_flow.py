"""Rectified flow: Liu et al. 2022, "Flow Straight and Fast"; flow matching.

Straight paths from data to noise, velocity prediction. The default is CIFAR-10 with the
DDPM++ network (appendix D.2): batch 128, Adam at 2e-4, EMA 0.999999, dropout 0.15.
Table 1, one rectified flow: FID 2.58 by RK45 with 127 network evaluations.

`diffusion.coupling='optimal'` pairs pictures and noise within a batch (Pooladian et al.
2023; Tong et al. 2024), `noise.density='logit_normal'` and `noise.shift` are Stable
Diffusion 3's (Esser et al. 2024).

Variants:
  :fashion_mnist  class to 32x32 grey Fashion-MNIST with a small DiT: an hour on two CPU
                  cores.
  :tiny           seconds; what tests use.
"""

from ml_collections import ConfigDict

from configs import base
from configs.diffusion import ddpm, edm


def get_config(variant: str = "") -> ConfigDict:
  """The config of a variant."""
  c = edm.get_config()
  c.data.batch_size = 128
  c.noise.schedule = "rectified_flow"
  c.diffusion.prediction = c.diffusion.loss = "velocity"
  c.diffusion.augment, c.data.flip = 0.0, True
  # DDPM++ before EDM spread its capacity.
  c.model.stem, c.model.widths = 0, (128, 256, 256, 256)
  c.model.dropout, c.optim.grad_clip = 0.15, 1.0
  c.optim.learning_rate, c.optim.warmup_steps = 2e-4, 5000
  c.optim.ema, c.optim.ema_decay = "constant", 0.999999
  c.train.steps = 800_000
  c.sample.sampler, c.sample.grid, c.sample.lens = "rk45", "logsnr", "own"
  match variant:
    case "":
      pass
    case "fashion_mnist":
      fashion_mnist(c)
    case "tiny":
      ddpm.openmoji(c)
      base.tiny(c)
      c.sample.threshold = "static"
    case _:
      raise base.unknown_variant(variant, ("fashion_mnist", "tiny"))
  return c


def fashion_mnist(c: ConfigDict) -> None:
  """A small DiT, logit-normal times."""
  c.data.name, c.data.channels, c.data.batch_size = "fashion_mnist", 1, 64
  c.text.encoder, c.text.classes = "label", 10
  c.noise.density = "logit_normal"
  c.model.net, c.model.dropout = "dit", 0.0
  c.model.dim, c.model.depth, c.model.heads, c.model.patch = 128, 6, 2, 4
  c.optim.learning_rate, c.optim.warmup_steps, c.optim.schedule = 1e-3, 200, "cosine"
  c.optim.ema, c.optim.ema_decay = "warmup", 0.999
  c.train.steps = 4000
  c.train.sample_every = c.train.checkpoint_every = c.train.eval_every = 500
  c.sample.sampler, c.sample.grid, c.sample.steps = "heun", "time", 20
  c.sample.guidance_scale, c.sample.threshold = 2.0, "static"
  c.sample.num_images = 40
