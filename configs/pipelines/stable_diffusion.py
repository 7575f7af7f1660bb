"""Stable Diffusion (Rombach et al. 2022, arXiv:2112.10752).

An autoencoder makes latents of pictures, and a diffusion draws them from text. The
default is version 1.5 from scratch: configs/vae/kl.py and
configs/diffusion/stable_diffusion.py, a U-Net of 860 million parameters over the
64x64x4 latents of 512x512 pictures, which reads texts by MiniLM in place of CLIP
ViT-L/14; for another set `stages.generator.text.frozen` to its directory. :sd3 is
Stable Diffusion 3's MM-DiT of 2 billion with rectified flow (Esser et al. 2024,
arXiv:2403.03206) over 16 channels of latents at 1024x1024, with a transformer over
bytes for its text.

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
  :quickstart, :quickstart_flow, :quickstart_maskgit  the three, of the pictures of
                  configs/quickstart.py alone, for minutes.
  :tiny           seconds; what tests use.
"""

from ml_collections import ConfigDict

from configs import base, quickstart, shapes
from configs.autoregressive import maskgit
from configs.diffusion import ddpm, dit, stable_diffusion
from configs.flows import glow
from configs.vae import kl, vq

SIZES = ("openmoji32", "quickstart")
VARIANTS = (
  "v1",
  "sd3",
  *(f"{size}{kind}" for size in SIZES for kind in ("", "_flow", "_maskgit")),
  "tiny",
)


def get_config(variant: str = "") -> ConfigDict:
  """The config of a variant."""
  size, _, kind = variant.partition("_")
  simple = size == "quickstart"
  match variant:
    case "":
      codec, generator = from_scratch()
    case "sd3":
      codec, generator = third()
    case "v1":
      codec, generator = kl.get_config(), stable_diffusion.get_config("v1")
      codec.vae.weights, codec.vae.latent_scale = "stable-diffusion-v1-5/vae", 0.18215
      codec.vae.perceptual_weight, codec.train.steps = 0.0, 0
      for c in (codec, generator):
        c.data.name, c.data.size, c.data.batch_size = "folder", 512, 1
        c.data.flip, c.data.train_split, c.data.eval_split = False, "all", "all"
    case "tiny":
      codec, generator = kl.get_config("tiny"), dit.get_config("tiny")
      generator.model.patch, generator.sample.threshold = 1, "none"
    case _ if variant in VARIANTS:
      codec, generator = openmoji32(kind)
      if simple:
        codec.model.widths = (32, 32, 64)
        codec.train.steps = 1000
        generator.data.match = quickstart.SIMPLE
        generator.train.steps = 1000
    case _:
      raise base.unknown_variant(variant, VARIANTS)
  generator.data.codec = "@codec"
  apart = ("match",) if simple else ()
  return base.system(("generator",), apart, codec=codec, generator=generator)


def openmoji32(kind: str) -> tuple[ConfigDict, ConfigDict]:
  """The autoencoder and the generator of 32x32 OpenMoji."""
  if kind == "maskgit":
    return vq.get_config("openmoji32"), maskgit.get_config("openmoji32")
  codec = kl.get_config("openmoji32_c8")
  if kind != "flow":
    return codec, dit.get_config("openmoji32")
  generator = glow.get_config("latents")
  base.openmoji32(generator)
  generator.text.classes, generator.data.channels = 0, 3
  return codec, generator


def from_scratch() -> tuple[ConfigDict, ConfigDict]:
  """The autoencoder and the U-Net of version 1.5."""
  codec, generator = kl.get_config(), stable_diffusion.get_config()
  codec.data.name, codec.data.size, codec.data.flip = "folder", 512, False
  codec.vae.latent_scale = 0.18215
  return codec, generator


def third() -> tuple[ConfigDict, ConfigDict]:
  """The autoencoder and the MM-DiT of version 3."""
  codec, generator = kl.get_config(), ddpm.get_config()
  for c in (codec, generator):
    c.data.name, c.data.size, c.data.flip = "folder", 1024, False
  codec.vae.latent_channels = 16
  shapes.stable_diffusion_3(generator)
  generator.data.batch_size, generator.text.max_tokens = 2048, 77
  generator.text.encoder, generator.text.drop = "bytes", 0.1
  generator.text.dim, generator.text.depth, generator.text.heads = 768, 12, 12
  generator.noise.schedule, generator.noise.timesteps = "rectified_flow", 0
  generator.noise.density, generator.noise.shift = "logit_normal", 3.0
  generator.diffusion.prediction = generator.diffusion.loss = "velocity"
  generator.optim.learning_rate, generator.optim.warmup_steps = 1e-4, 10_000
  generator.train.steps, generator.sample.threshold = 500_000, "none"
  generator.sample.sampler, generator.sample.steps = "euler", 28
  generator.sample.guidance_scale = 7.0
  return codec, generator
