"""Mixture of Gaussians by EM: the blurry picture that all others must beat.

A mixture of factor analysers (Ghahramani & Hinton 1996) over whole pictures, as in
Richardson & Weiss 2018 (arXiv:1805.12462), fitted by stepwise EM (Cappé & Moulines
2009, arXiv:0712.4273). `mixture.rank=0` is a mixture of diagonal Gaussians. The default
is CIFAR-10 without classes; no published figure is reproduced.

The whole of every condition is learned from, so `text.drop` is of no use, and
`sample.guidance_scale` must be 1.

Variants:
  :fashion_mnist  class to 32x32 grey pictures, in minutes on two CPU cores.
  :openmoji32     captions in three languages, as hashed trigrams of bytes, to 32x32
                  drawings, likewise.
  :tiny           seconds; what tests use.
"""

from ml_collections import ConfigDict

from configs import base


def get_config(variant: str = "") -> ConfigDict:
  """The config of a variant."""
  c = base.get_config()
  c.family = "vae.mixture"
  c.mixture = base.mixture()
  c.mixture.components, c.mixture.rank = 200, 10
  c.data.name, c.data.batch_size = "cifar10", 1000
  c.text.encoder, c.text.drop = "none", 0.0
  c.train.steps = 2000
  c.train.sample_every = c.train.checkpoint_every = c.train.eval_every = 500
  c.sample.guidance_scale, c.sample.num_images = 1.0, 40

  match variant:
    case "":
      pass
    case "fashion_mnist":
      c.data.name, c.data.channels, c.data.batch_size = "fashion_mnist", 1, 512
      c.text.encoder, c.text.classes = "label", 10
      c.mixture.components, c.mixture.rank = 100, 8
      c.train.steps = 1000
    case "openmoji32":
      openmoji(c)
      c.data.languages, c.data.batch_size = ("en", "zh", "ja"), 512
      c.text.max_tokens = 48
      c.mixture.components, c.mixture.rank = 40, 3
      c.train.steps = 500
      c.sample.prompts = (
        "red heart",
        "blue circle",
        "grinning face",
        "flag: japan",
        "红心",
        "青い丸",
      )
    case "tiny":
      openmoji(c)
      base.tiny(c)
      c.mixture.components, c.mixture.rank = 4, 1
    case _:
      raise base.unknown_variant(variant, ("fashion_mnist", "openmoji32", "tiny"))
  return c


def openmoji(c: ConfigDict) -> None:
  """Captioned drawings."""
  c.data.name, c.data.size, c.text.encoder = "openmoji", 32, "bytes"
