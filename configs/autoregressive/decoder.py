"""A Llama-like decoder over tokens, after LlamaGen (Sun et al. 2024, arXiv:2406.06525).

The default is the shape of its base model, of 111 million parameters, class to
ImageNet-256, over the codes of a VQGAN (configs/gan/vqgan.py) in runs/vqgan: twelve
layers of 768, AdamW at 1e-4 with beta2 0.95 and weight decay 0.05, 300 epochs of
batches of 256, FID 5.46 (the authors' README), with guidance 2. There the embeddings
have dropout too, and each picture is cut out in ten ways.

Variants:
  :fashion_mnist         class to 16x16 grey pixels, 256 numbers: the pictures are
                         scaled down, since at 32x32 a step has four times as many.
  :openmoji16            captions to 16x16x3 pixels, 768 numbers.
  :fashion_mnist_tokens  class to the 8x8 codes of configs/vae/vq.py:fashion_mnist, in
                         runs/vq: ten minutes on one busy CPU core.
  :openmoji32            captions to the 8x8 codes of configs/vae/vq.py:openmoji32, in
                         runs/vq_openmoji.
  :tiny                  seconds; what tests use, over pixels.
"""

from ml_collections import ConfigDict

from configs import base

VARIANTS = (
  "fashion_mnist",
  "openmoji16",
  "fashion_mnist_tokens",
  "openmoji32",
  "tiny",
)


def get_config(variant: str = "") -> ConfigDict:
  """The config of a variant."""
  c = over_tokens("autoregressive.decoder")
  match variant:
    case "":
      pass
    case "fashion_mnist":
      small(c)
      base.fashion_mnist(c)
      c.data.size, c.data.codec, c.data.latents = 16, "", "latents"
      c.data.batch_size, c.train.steps = 16, 600
    case "openmoji16":
      small(c)
      base.openmoji32(c)
      c.data.size, c.data.codec, c.data.latents = 16, "", "latents"
      c.data.batch_size, c.train.steps = 8, 250
    case _:
      on_cpu(c, variant, VARIANTS)
  return c


def over_tokens(family: str) -> ConfigDict:
  """What the models of tokens share."""
  c = base.get_config()
  c.family = family
  c.data.name, c.data.size, c.data.batch_size = "imagenet2012", 256, 256
  c.data.codec, c.data.latents = "runs/vqgan", "tokens"
  c.data.eval_split = "validation"
  c.text.encoder, c.text.classes, c.text.dim = "label", 1000, 768
  c.model.dim, c.model.depth, c.model.heads, c.model.dropout = 768, 12, 12, 0.1
  c.model.dtype = "bfloat16"
  c.optim.learning_rate, c.optim.b2, c.optim.weight_decay = 1e-4, 0.95, 0.05
  c.optim.warmup_steps = 0
  c.train.steps = 1_500_000
  c.sample.guidance_scale, c.sample.threshold = 2.0, "none"
  c.sample.edit = "complete"
  c.sample.strength = 0.5
  return c


def on_cpu(c: ConfigDict, variant: str, known: tuple[str, ...]) -> None:
  """The variants over a small codec's tokens, and tiny.

  Raises:
    ValueError: the variant is not one of `known`.
  """
  if variant not in known:
    raise base.unknown_variant(variant, known)
  match variant:
    case "fashion_mnist_tokens" | "fashion_mnist":
      small(c)
      base.fashion_mnist(c)
      c.data.codec = "runs/vq"
    case "openmoji32":
      small(c)
      base.openmoji32(c)
      c.data.codec = "runs/vq_openmoji"
    case "tiny":
      small(c)
      base.openmoji32(c)
      base.tiny(c)
      c.data.codec, c.data.latents = "", "latents"


def small(c: ConfigDict) -> None:
  """A small network and a short training, for CPUs."""
  c.data.size, c.data.batch_size, c.data.eval_split = 32, 64, "test"
  c.text.classes, c.text.dim = 0, 128
  c.model.dim, c.model.depth, c.model.heads, c.model.dropout = 128, 4, 4, 0.1
  c.model.dtype, c.model.scan = "float32", False
  c.optim.learning_rate, c.optim.warmup_steps, c.optim.schedule = 2e-3, 100, "cosine"
  c.optim.ema, c.optim.ema_decay = "warmup", 0.995
  c.train.steps = 2000
  c.train.sample_every = c.train.checkpoint_every = c.train.eval_every = 500
  c.sample.num_images = 40
