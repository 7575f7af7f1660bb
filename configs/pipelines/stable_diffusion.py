"""Stable Diffusion (Rombach et al. 2022, arXiv:2112.10752).

An autoencoder makes latents of pictures, and a diffusion draws them from text. The
default is version 1.5 in the shapes of its published weights: a U-Net of 860 million
parameters over the 64x64x4 latents of 512x512 pictures, 1,000 steps of scaled linear
betas, eps prediction, AdamW at 1e-4, batch 2048 (from memory). Text is read by a
transformer over bytes as wide as CLIP ViT-L/14, which the published one is; for that
set `stages.generator.text.encoder=frozen` and `text.frozen` to its directory. :sd3 is
Stable Diffusion 3's MM-DiT of 2 billion with rectified flow (Esser et al. 2024,
arXiv:2403.03206) over 16 channels of latents at 1024x1024.

Variants:
  :v1             the published weights of version 1.5, from the folder
                  stable-diffusion-v1-5 as diffusers writes it; nothing is trained, and
                  `data.path` is a folder of one picture or more. Other places are given
                  in `stages.codec.vae.weights`, `stages.generator.diffusion.weights`
                  and `stages.generator.text.frozen`.
  :sd3            the MM-DiT.
  :openmoji32     captions to 32x32 OpenMoji: the KL autoencoder and the diffusion of
                  configs/diffusion/dit.py:openmoji32 over its 8x8x8 latents.
  :openmoji32_flow, :openmoji32_maskgit  another generator in the same slot: Glow over
                  those latents, MaskGIT over the codes of a VQ autoencoder.
  :tiny           seconds; what tests use.
"""

from ml_collections import ConfigDict

from configs import base, shapes
from configs.autoregressive import maskgit
from configs.diffusion import ddpm, dit, stable_diffusion
from configs.flows import glow
from configs.vae import kl, vq

VARIANTS = ("v1", "sd3", "openmoji32", "openmoji32_flow", "openmoji32_maskgit", "tiny")


def get_config(variant: str = "") -> ConfigDict:
  """The config of a variant."""
  match variant:
    case "" | "sd3":
      codec, generator = published(three=variant == "sd3")
    case "v1":
      codec, generator = kl.get_config(), stable_diffusion.get_config("v1")
      codec.vae.weights, codec.vae.latent_scale = "stable-diffusion-v1-5/vae", 0.18215
      codec.vae.perceptual_weight, codec.train.steps = 0.0, 0
      for c in (codec, generator):
        c.data.name, c.data.size, c.data.batch_size = "folder", 512, 1
        c.data.flip, c.data.train_split, c.data.eval_split = False, "all", "all"
    case "openmoji32":
      codec, generator = kl.get_config("openmoji32_c8"), dit.get_config("openmoji32")
    case "openmoji32_flow":
      codec, generator = kl.get_config("openmoji32_c8"), glow.get_config("latents")
      base.openmoji32(generator)
      generator.text.classes, generator.data.channels = 0, 3
    case "openmoji32_maskgit":
      codec, generator = vq.get_config("openmoji32"), maskgit.get_config("openmoji32")
    case "tiny":
      codec, generator = kl.get_config("tiny"), dit.get_config("tiny")
      generator.model.patch, generator.sample.threshold = 1, "none"
    case _:
      raise base.unknown_variant(variant, VARIANTS)
  generator.data.codec = "@codec"
  return base.system(("generator",), codec=codec, generator=generator)


def published(three: bool) -> tuple[ConfigDict, ConfigDict]:
  """The autoencoder and the generator of versions 1.5 and 3."""
  codec, generator = kl.get_config(), ddpm.get_config()
  for c in (codec, generator):
    c.data.name, c.data.size, c.data.flip = "folder", 1024 if three else 512, False
  generator.data.batch_size, generator.text.max_tokens = 2048, 77
  generator.text.encoder, generator.text.drop = "bytes", 0.1
  generator.text.dim, generator.text.depth, generator.text.heads = 768, 12, 12
  generator.optim.learning_rate, generator.optim.warmup_steps = 1e-4, 10_000
  generator.train.steps, generator.sample.threshold = 595_000, "none"
  generator.sample.guidance_scale = 7.5
  if three:
    codec.vae.latent_channels = 16
    shapes.stable_diffusion_3(generator)
    generator.noise.schedule, generator.noise.timesteps = "rectified_flow", 0
    generator.noise.density, generator.noise.shift = "logit_normal", 3.0
    generator.diffusion.prediction = generator.diffusion.loss = "velocity"
    generator.sample.sampler, generator.sample.steps = "euler", 28
    generator.sample.guidance_scale = 7.0
  else:
    shapes.stable_diffusion(generator)
    generator.noise.schedule, generator.noise.timesteps = "scaled_linear", 1000
    generator.sample.sampler, generator.sample.steps = "ddim", 50
  return codec, generator
