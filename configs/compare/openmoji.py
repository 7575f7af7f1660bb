"""Every family on OpenMoji: captions in three languages to 32x32 drawings, one budget.

As configs/compare/fashion_mnist.py, with twice the budget and half as many pictures to
score, since the numbers of a colour picture are three times as many. With `eval.clip`,
the workdir of a trained configs/text/clip.py:lit_openmoji32, the table also says how
well what is drawn fits its caption, by language.

Variants:
  :tiny  that of configs/compare/fashion_mnist.py.
"""

from ml_collections import ConfigDict

from configs import base
from configs.compare import fashion_mnist

VARIANTS = ("tiny",)


def get_config(variant: str = "") -> ConfigDict:
  """The config of a variant."""
  if variant not in ("", *VARIANTS):
    raise base.unknown_variant(variant, VARIANTS)
  if variant == "tiny":
    return fashion_mnist.get_config("tiny")
  c = fashion_mnist.comparison("openmoji32")
  c.budget.amount, c.eval.num_images, c.curve.num_images = 240.0, 500, 100
  c.parameters = (200_000, 4_000_000)  # captions take more than classes
  return c
