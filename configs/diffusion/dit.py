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
  :sit         SiT-XL/2.
  :openmoji32  captions to the 8x8x8 latents of configs/vae/kl.py:openmoji32_c8, in
               runs/kl, by a small SiT.
  :tiny        seconds; what tests use, in pixels.
"""

from ml_collections import ConfigDict

from configs import base
from configs.diffusion import ddpm


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
    case "openmoji32":
      openmoji32(c)
    case "tiny":
      ddpm.openmoji(c)
      c.text.encoder, c.data.codec = "bytes", ""
      base.tiny(c)
      c.noise.timesteps = 100
      c.sample.threshold = "static"
    case _:
      raise base.unknown_variant(variant, ("sit", "openmoji32", "tiny"))
  return c


def openmoji32(c: ConfigDict) -> None:
  """A small SiT with logit-normal times on the latents of a small autoencoder."""
  ddpm.openmoji32(c)
  c.data.codec, c.data.eval_split = "runs/kl", "test"
  c.text.classes, c.text.dim = 0, 128
  c.noise.schedule, c.noise.density = "rectified_flow", "logit_normal"
  c.diffusion.prediction = c.diffusion.loss = "velocity"
  c.diffusion.learn_variance = False
  c.model.remat = False
  c.model.dim, c.model.depth, c.model.heads, c.model.patch = 128, 6, 2, 1
  c.optim.grad_clip = 1.0
  c.train.steps = 2000
  c.sample.sampler, c.sample.grid, c.sample.steps = "heun", "time", 20
  c.sample.guidance_scale = 2.0
