"""DALL-E 2, unCLIP (Ramesh et al. 2022, arXiv:2204.06125).

CLIP; a prior that draws the vector of a picture from text and the text's vector; and a
decoder, a diffusion of pictures that are like a vector. The prior is a diffusion of
vectors by a causal transformer, of two of which the nearer to the text is kept, or
autoregressive over their principal components in 1,024 cells each, and told in which of
equally likely cells the dot product of the two vectors lies (the paper does not say how
many it has). The default is the paper's: CLIP, a prior of 1 billion parameters, a
decoder of 3.5 billion at 64x64 and two upsamplers to 1024x1024 (appendix C; COCO FID
10.39, and 10.63 with the autoregressive prior, :ar). The paper's CLIP is a ViT-H/16 of
256x256 pixels; here it sees what the decoder draws, 64x64, and has the shape of
configs/text/clip.py.

`--stage=decoder --mode=sample --image=PICTURE` draws variations of a picture, without a
caption if none is given, and with `--image=OTHER` and
`--config.stages.decoder.sample.edit=interpolate` pictures of what lies between two.

Variants:
  :ar             the autoregressive prior.
  :openmoji32     captions to 32x32 OpenMoji, with the diffusion prior.
  :openmoji32_ar  the same with the autoregressive prior.
  :quickstart, :quickstart_ar  both, of the pictures of configs/quickstart.py alone.
  :tiny, :tiny_ar  seconds; what tests use.
"""

from ml_collections import ConfigDict

from configs import base, quickstart, shapes
from configs.autoregressive import decoder as autoregressive
from configs.diffusion import ddpm, super_resolution
from configs.text import clip

VARIANTS = (
  "ar",
  "openmoji32",
  "openmoji32_ar",
  "quickstart",
  "quickstart_ar",
  "tiny",
  "tiny_ar",
)


def get_config(variant: str = "") -> ConfigDict:
  """The config of a variant."""
  if variant not in ("", *VARIANTS):
    raise base.unknown_variant(variant, VARIANTS)
  size = variant.removesuffix("ar").removesuffix("_")
  simple = size == "quickstart"
  size = "openmoji32" if simple else size
  stages = {"clip": clip.get_config(size)}
  if variant.endswith("ar"):
    stages["components"] = components(size)
    stages["prior"] = tokens_prior(size)
  else:
    stages["prior"] = diffusion_prior(size)
  stages["decoder"] = decoder(size)
  if not size:
    stages["large"], stages["largest"] = upsampler(256), upsampler(1024)
    for c in stages.values():
      c.data.name, c.data.eval_split, c.data.flip = "folder", "test", False
    for name in set(stages) - {"large", "largest"}:
      stages[name].data.size = 64
  if simple:
    stages["decoder"] = decoder("quickstart")
    stages["clip"].train.steps, stages["prior"].train.steps = 900, 600
    stages["prior"].data.batch_size = 64
    for name in set(stages) - {"clip"}:
      stages[name].data.match = quickstart.SIMPLE
  drawing = ("prior", "decoder", "large", "largest")
  draw = tuple(n for n in drawing if n in stages)
  return base.system(draw, ("match",) if simple else (), **stages)


def diffusion_prior(size: str) -> ConfigDict:
  """A denoiser of vectors, trained on the error of the vector (section 2.2)."""
  c = ddpm.get_config(size)
  c.data.codec = "@clip"
  reads_vector(c)
  c.sample.candidates = 2
  c.noise.schedule, c.noise.timesteps = "cosine", 0
  c.diffusion.prediction = c.diffusion.loss = "x"
  c.model.net = "prior"
  c.sample.sampler, c.sample.threshold = "ddim", "none"
  c.sample.steps = 64
  if size == "openmoji32":
    c.model.dim, c.model.depth, c.model.heads, c.data.batch_size = 192, 4, 3, 256
    c.train.steps = 2000
  if not size:
    captioned(c)
    shapes.unclip_prior(c)
    c.noise.timesteps, c.model.dropout = 1000, 0.0
    c.data.batch_size, c.train.steps = 4096, 600_000
    c.optim.learning_rate, c.optim.weight_decay = 1.1e-4, 0.06
    c.optim.b2, c.optim.eps = 0.96, 1e-6
  return c


def reads_vector(c: ConfigDict) -> None:
  """Caption's vector too (section 2.2)."""
  c.text.embedding, c.text.embedding_of_caption = "@clip", True


def captioned(c: ConfigDict) -> None:
  """Text as the published networks read it, by bytes."""
  c.text.encoder, c.text.max_tokens, c.text.classes = "bytes", 256, 0
  c.text.dim, c.text.depth, c.text.heads = 2048, 24, 32


def components(size: str) -> ConfigDict:
  """The principal components of the vectors, of all pictures or a million of them."""
  c = base.get_config()
  c.family, c.pca = "vae.pca", base.pca()
  base.openmoji32(c)
  c.text.encoder, c.text.drop = "none", 0.0
  c.data.codec, c.data.batch_size, c.train.steps = "@clip", 4096, 250
  if size == "openmoji32":
    c.pca.components, c.pca.buckets = 64, 128
    c.data.batch_size, c.train.steps = 256, 14
  if size == "tiny":
    base.tiny(c)
  c.sample.threshold, c.sample.guidance_scale = "none", 1.0
  return c


def tokens_prior(size: str) -> ConfigDict:
  """A decoder of a token for each component, the first for what varies most."""
  c = autoregressive.get_config(size)
  c.data.codec, c.data.latents = "@components", "tokens"
  reads_vector(c)
  c.text.similarity_cells = 64
  if size == "openmoji32":
    c.text.similarity_cells, c.train.steps = 16, 1000
  if not size:
    captioned(c)
    shapes.unclip_ar_prior(c)
    c.data.batch_size, c.train.steps = 4096, 1_000_000
    c.optim.learning_rate, c.optim.weight_decay = 1.6e-4, 0.04
    c.optim.b2, c.optim.eps = 0.91, 1e-10
  return c


def decoder(size: str) -> ConfigDict:
  """A diffusion of pictures from a vector, and at times from the caption."""
  simple = size == "quickstart"
  c = quickstart.get_config() if simple else ddpm.get_config(size)
  c.text.embedding, c.text.embedding_drop, c.text.drop = "@clip", 0.1, 0.5
  if size == "openmoji32":
    c.train.steps = 3000
  if not size:
    c.noise.schedule, c.noise.timesteps = "cosine", 1000
    shapes.unclip_decoder(c)
    c.data.batch_size, c.train.steps, c.sample.steps = 2048, 800_000, 250
    c.optim.learning_rate = 1.2e-4
    c.sample.variance = "learned"
  return c


def upsampler(size: int) -> ConfigDict:
  """Without text or vector, drawn by DDIM (appendix C).

  From pictures with noise, where the paper's first one blurs them and its second
  degrades them in many ways; and it trains on quarters of the pictures.
  """
  c = super_resolution.get_config()
  shapes.unclip_upsampler(c, size)
  c.text.drop, c.sample.guidance_scale = 0.0, 1.0
  c.noise.timesteps, c.sample.sampler = 1000, "ddim"
  c.train.steps = 1_000_000
  if size == 256:
    c.data.batch_size, c.sample.steps = 1024, 27
    c.optim.learning_rate = 1.2e-4
  else:
    c.noise.schedule = "linear"
    c.data.batch_size, c.sample.steps = 512, 15
  return c
