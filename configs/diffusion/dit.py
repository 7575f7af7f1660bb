"""DiT and SiT: transformers on the latents of an autoencoder, ImageNet-256.

The default is DiT-XL/2 (Peebles & Xie 2022): linear betas, 1000 steps, eps prediction
with learned variance, 250 steps, AdamW at 1e-4, batch 256, 7 million steps, EMA 0.9999.
FID 2.27 with `sample.guidance_scale` 1.5, there of three of the four channels. :sit is
SiT-XL/2 (Ma et al. 2024): straight paths and velocity prediction, 2.06 by its SDE
sampler, a little higher by an ODE solver such as Heun's, which is the default here. 675
million parameters.

Both generate the 32x32x4 latents of Stable Diffusion's autoencoder: `data.codec` is the
workdir that configs/vae/kl.py makes of its weights. In pixels :sit trains with
`data.codec= model.patch=16 diffusion.prediction=x diffusion.loss=velocity
diffusion.weight_cap=400` as in JiT (Li & He 2025).

Variants:
  :sit            SiT-XL/2.
  :fashion_mnist  class to the 8x8x4 latents of configs/vae/kl.py:fashion_mnist, in
                  runs/kl, by a small SiT: 2,000 steps, thirteen minutes on a
                  busy CPU core. FD-EfficientNetLite0 of 2,000 samples: 87.
  :openmoji32     captions to the 8x8x8 latents of configs/vae/kl.py:openmoji32_c8, in
                  runs/kl_c8, likewise: about an hour.
  :tiny           seconds; what tests use, in pixels.
"""

from ml_collections import ConfigDict

from configs import base
from configs.diffusion import ddpm

VARIANTS = ("sit", "fashion_mnist", "openmoji32", "tiny")


def get_config(variant: str = "") -> ConfigDict:
  """The config of a variant."""
  c = ddpm.get_config()
  c.data.name, c.data.size, c.data.batch_size = "imagenet2012", 256, 256
  c.data.codec = "runs/stable_diffusion_autoencoder"
  c.data.eval_split, c.data.flip = "validation", False
  c.text.encoder, c.text.classes, c.text.dim, c.text.drop = "label", 1000, 1152, 0.1
  c.diffusion.learn_variance = True
  c.model.net, c.model.dropout = "dit", 0.0
  c.model.dim, c.model.depth, c.model.heads, c.model.patch = 1152, 28, 16, 2
  c.model.remat = True
  c.optim.learning_rate, c.optim.warmup_steps, c.optim.grad_clip = 1e-4, 0, 0.0
  c.train.steps = 7_000_000
  c.sample.sampler, c.sample.steps, c.sample.variance = "ddpm", 250, "learned"
  c.sample.guidance_scale, c.sample.threshold = 1.5, "none"
  match variant:
    case "":
      pass
    case "sit":
      c.noise.schedule, c.noise.timesteps = "rectified_flow", 0
      c.diffusion.prediction = c.diffusion.loss = "velocity"
      c.diffusion.learn_variance = False
      c.sample.sampler, c.sample.variance = "heun", "small"
      c.sample.steps = 125
    case "fashion_mnist":
      c.data.name, c.data.channels, c.data.batch_size = "fashion_mnist", 1, 64
      c.text.classes, c.sample.num_images = 10, 40
      small(c)
    case "openmoji32":
      ddpm.openmoji32(c)
      small(c)
      c.data.codec = "runs/kl_c8"
      c.text.classes, c.model.patch = 0, 1
    case "tiny":
      ddpm.openmoji(c)
      c.text.encoder, c.data.codec = "bytes", ""
      base.tiny(c)
      c.noise.timesteps = 100
      c.sample.threshold = "static"
    case _:
      raise base.unknown_variant(variant, VARIANTS)
  return c


def small(c: ConfigDict) -> None:
  """A small SiT with logit-normal times on the latents of a small autoencoder."""
  c.data.size, c.data.codec, c.data.eval_split = 32, "runs/kl", "test"
  c.text.dim = 128
  c.noise.schedule, c.noise.timesteps = "rectified_flow", 0
  c.noise.density = "logit_normal"
  c.diffusion.prediction = c.diffusion.loss = "velocity"
  c.diffusion.learn_variance = False
  c.model.remat = False
  c.model.dim, c.model.depth, c.model.heads, c.model.patch = 128, 6, 2, 2
  c.optim.learning_rate, c.optim.warmup_steps, c.optim.schedule = 1e-3, 200, "cosine"
  c.optim.ema, c.optim.ema_decay, c.optim.grad_clip = "warmup", 0.999, 1.0
  c.train.steps = 2000
  c.train.sample_every = c.train.checkpoint_every = c.train.eval_every = 500
  c.sample.sampler, c.sample.grid, c.sample.steps = "heun", "time", 20
  c.sample.guidance_scale, c.sample.variance = 2.0, "small"
