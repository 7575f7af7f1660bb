"""Text to 32x32 emoji in ten minutes on two CPU cores.

Rectified flow (Liu et al. 2022) with a small DiT and a byte-level text encoder,
on some OpenMoji pictures with captions in English, Chinese and Japanese. Expect
recognisable pictures of the captions it was trained on, such as "red heart",
"红心" and "yellow circle", and nothing sensible for words it never saw.

Variants:
  :tiny  seconds; what tests use.
"""

from ml_collections import ConfigDict

from configs import base
from configs.diffusion import ddpm

# Captions of simple, colourful pictures: few enough to learn in minutes.
SIMPLE = (
  r"^(?!.*skin tone)(?!.*couple).*\b(hearts?|circle|square|face|moon|star|apple"
  r"|banana|lemon|pear|cherries|strawberry|tangerine|watermelon|pizza|sun|snowman"
  r"|tree|mushroom|fish|flower|tulip|cloud|rainbow|umbrella|ball|o’clock)\b"
)


def get_config(variant: str = "") -> ConfigDict:
  """The config of a variant."""
  c = ddpm.get_config("openmoji32")
  c.noise.schedule, c.noise.density = "rectified_flow", "logit_normal"
  c.diffusion.prediction = c.diffusion.loss = "velocity"
  c.data.match = SIMPLE
  c.data.batch_size = 64
  c.text.max_tokens = 32
  c.model.net = "dit"
  c.model.dim, c.model.depth, c.model.heads, c.model.patch = 256, 4, 4, 8
  c.optim.learning_rate, c.optim.warmup_steps, c.optim.schedule = 1e-3, 100, "cosine"
  c.optim.ema, c.optim.ema_decay = "warmup", 0.995
  c.train.steps = 1100
  c.train.sample_every = c.train.checkpoint_every = c.train.eval_every = 400
  c.sample.sampler, c.sample.steps, c.sample.guidance_scale = "ddim", 40, 3.0
  c.sample.prompts = ("red heart", "红心", "yellow circle", "黄色い丸")
  match variant:
    case "":
      c.model.scan = False  # a loop over layers costs a CPU a quarter of its speed
      return c
    case "tiny":
      return base.tiny(c)
  raise base.unknown_variant(variant, ("tiny",))
