"""DALL-E 2, unCLIP (Ramesh et al. 2022, arXiv:2204.06125).

CLIP; a prior that draws the vector of a picture from text; and a decoder, a diffusion
of pictures that are like a vector. The prior is a diffusion of vectors by a causal
transformer, or autoregressive over their principal components in 1,024 cells each.

Variants:
  :openmoji32     captions to 32x32 OpenMoji, with the diffusion prior.
  :openmoji32_ar  the same with the autoregressive prior.
  :tiny, :tiny_ar seconds; what tests use.
"""

from ml_collections import ConfigDict

from configs import base
from configs.autoregressive import decoder as autoregressive
from configs.diffusion import ddpm
from configs.text import clip

VARIANTS = ("openmoji32", "openmoji32_ar", "tiny", "tiny_ar")


def get_config(variant: str = "openmoji32") -> ConfigDict:
  """The config of a variant."""
  if variant not in VARIANTS:
    raise base.unknown_variant(variant, VARIANTS)
  size = variant.removesuffix("_ar")
  stages = {"clip": clip.get_config(size)}
  if variant.endswith("_ar"):
    stages["components"] = components(size)
    stages["prior"] = tokens_prior(size)
  else:
    stages["prior"] = diffusion_prior(size)
  stages["decoder"] = decoder(size)
  return base.system(("prior", "decoder"), **stages)


def diffusion_prior(size: str) -> ConfigDict:
  """A denoiser of vectors, trained on the error of the vector (section 2.2)."""
  c = ddpm.get_config(size)
  c.data.codec = "@clip"
  c.noise.schedule, c.noise.timesteps = "cosine", 0
  c.diffusion.prediction = c.diffusion.loss = "x"
  c.model.net = "prior"
  c.sample.sampler, c.sample.threshold = "ddim", "none"
  if size == "openmoji32":
    c.model.dim, c.model.depth, c.model.heads, c.data.batch_size = 192, 4, 3, 256
    c.sample.steps, c.train.steps = 64, 2000
  return c


def components(size: str) -> ConfigDict:
  """The principal components of the vectors, found in one pass over the data."""
  c = base.get_config()
  c.family, c.pca = "vae.pca", base.pca()
  base.openmoji32(c)
  c.text.encoder, c.text.drop = "none", 0.0
  c.data.codec, c.data.batch_size, c.train.steps = "@clip", 256, 14
  c.pca.components, c.pca.buckets = 64, 128
  if size == "tiny":
    base.tiny(c)
  c.sample.threshold, c.sample.guidance_scale = "none", 1.0
  return c


def tokens_prior(size: str) -> ConfigDict:
  """A decoder of a token for each component, the first for what varies most."""
  c = autoregressive.get_config(size)
  c.data.codec, c.data.latents = "@components", "tokens"
  if size == "openmoji32":
    c.train.steps = 1000
  return c


def decoder(size: str) -> ConfigDict:
  """A diffusion of pictures from a vector, and at times from the caption."""
  c = ddpm.get_config(size)
  c.text.embedding, c.text.embedding_drop, c.text.drop = "@clip", 0.1, 0.5
  if size == "openmoji32":
    c.train.steps = 3000
  return c
