"""Stable Diffusion's U-Net over latents: Rombach et al. 2022 (arXiv:2112.10752).

The default is the network of version 1.5, 860 million parameters, to be trained from
scratch on `data.path`, a folder of pictures with captions: 512x512 pixels, as the
64x64x4 latents of its autoencoder (configs/vae/kl.py with `vae.latent_scale` 0.18215);
betas whose roots are linear, eps prediction, AdamW at 1e-4, batch 2048, one caption in
ten dropped. Texts are read by the MiniLM that comes with the installation, where theirs
is CLIP ViT-L/14. No number is reported for this network; the paper's own text-to-image
model has an FID of 12.63 on COCO (table 2, LDM-KL-8-G).

Variants:
  :v1      its published weights, from the folder stable-diffusion-v1-5 as diffusers
           writes it, with its text encoder; draws as diffusers' DDIM does.
  :v2      version 2.1 of 512x512 pixels, from stable-diffusion-2-1-base.
  :v2_768  version 2.1 of 768x768 pixels and v prediction, from stable-diffusion-2-1.
  :tiny    seconds; what tests use, in pixels.

With published weights `train.steps` is 0: training then only keeps them in a workdir.
Another folder F is `--config.diffusion.weights=F/unet` with
`--config.text.frozen="('F/text_encoder',)"`.
"""

from ml_collections import ConfigDict

from configs import base, shapes
from configs.diffusion import ddpm

VARIANTS = ("v1", "v2", "v2_768", "tiny")


def get_config(variant: str = "") -> ConfigDict:
  """The config of a variant."""
  c = ddpm.get_config()
  shapes.stable_diffusion(c)
  c.data.name, c.data.size, c.data.batch_size = "folder", 512, 2048
  c.data.codec, c.data.flip = "runs/stable_diffusion_autoencoder", False
  c.noise.schedule, c.noise.timesteps = "scaled_linear", 1000
  c.text.encoder, c.text.max_tokens, c.text.dim = "frozen", 77, 768
  c.text.drop = 0.1
  c.model.remat = True
  c.optim.learning_rate, c.optim.warmup_steps = 1e-4, 10_000
  c.optim.weight_decay, c.optim.grad_clip = 0.01, 0.0
  c.train.steps = 600_000
  c.sample.sampler, c.sample.grid, c.sample.steps = "ddim", "leading", 50
  c.sample.variance = c.diffusion.variance = "small"
  c.sample.guidance_scale, c.sample.threshold = 7.5, "none"
  c.sample.num_images, c.sample.per_prompt = 4, 1
  match variant:
    case "":
      pass
    case "v1":
      published(c, "stable-diffusion-v1-5", 1)
    case "v2":
      published(c, "stable-diffusion-2-1-base", 2)
    case "v2_768":
      published(c, "stable-diffusion-2-1", 2, 768)
    case "tiny":
      ddpm.openmoji(c)
      c.text.encoder, c.data.codec = "bytes", ""
      base.tiny(c)
      c.model.head_dim, c.model.heads, c.model.groups = 0, 2, 4
      c.model.remat, c.sample.grid, c.sample.threshold = False, "time", "static"
    case _:
      raise base.unknown_variant(variant, VARIANTS)
  return c


def published(c: ConfigDict, folder: str, version: int, size: int = 512) -> None:
  """The weights in a folder as diffusers writes it; no training."""
  shapes.stable_diffusion(c, version, size // 8)
  c.data.size, c.data.batch_size = size, 1
  c.diffusion.weights = f"{folder}/unet"
  c.text.frozen, c.text.frozen_output = (f"{folder}/text_encoder",), ("seq",)
  c.text.frozen_as_is = True
  if size == 768:
    c.diffusion.prediction = c.diffusion.loss = "v"
  c.train.steps, c.optim.warmup_steps = 0, 0
