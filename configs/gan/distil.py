"""Adversarial diffusion distillation (Sauer et al. 2023, arXiv:2311.17042).

A trained diffusion becomes one of four noise levels, which draws in one to four steps
(`sample.steps`): hinge losses, R1, the teacher's term with weight 2.5 and c(t) = alpha.
The default distils configs/diffusion/rectified_flow.py, trained in runs/rectified_flow;
the paper has Stable Diffusion, in batches of 128, and scores nothing that is here.
Differences: a critic of pixels from scratch, not heads on the features of DINOv2, and
the distance is a mean, not a sum.

Variants:
  :fashion_mnist  of configs/diffusion/rectified_flow.py:fashion_mnist, likewise: about
                  an hour on a CPU core.
  :openmoji32     of configs/diffusion/ddpm.py:openmoji32, in runs/ddpm.
  :tiny           seconds, of random weights; what tests use.
"""

from ml_collections import ConfigDict

from configs import base
from configs.diffusion import ddpm, rectified_flow

VARIANTS = ("fashion_mnist", "openmoji32", "tiny")


def get_config(variant: str = "") -> ConfigDict:
  """The config of a variant."""
  match variant:
    case "" | "fashion_mnist" | "tiny":
      c = rectified_flow.get_config(variant)
      distilled(c, "runs/rectified_flow")
    case "openmoji32":
      c = ddpm.get_config(variant)
      distilled(c, "runs/ddpm")
      c.gan.mismatch = 0.5
    case _:
      raise base.unknown_variant(variant, VARIANTS)
  if variant:
    small(c)
  if variant == "tiny":
    base.tiny(c)
    c.distil.teacher = ""
  return c


def distilled(c: ConfigDict, teacher: str) -> None:
  """Makes a diffusion's config that of its student."""
  c.gan, c.distil = base.gan(), base.distil()
  c.family, c.gan.family = "gan.distil", c.family
  c.distil.teacher = teacher
  c.gan.critic, c.gan.loss, c.gan.widths = "stylegan2", "hinge", (128, 256, 512, 512)
  # The critic's weights are scaled in use, so that it learns at about StyleGAN2's rate.
  c.gan.r1, c.gan.penalty_every, c.gan.learning_rate = 0.05, 15, 2e-3
  c.text.drop, c.model.dropout = 0.0, 0.0
  c.optim.learning_rate, c.optim.schedule, c.optim.warmup_steps = 1e-5, "constant", 0
  c.optim.b1, c.optim.b2, c.optim.grad_clip = 0.0, 0.99, 0.0
  c.train.steps = 20_000
  c.sample.steps, c.sample.guidance_scale = 4, 1.0


def small(c: ConfigDict) -> None:
  """A critic, and a short training, for CPUs."""
  c.gan.widths, c.gan.mapping_layers = (16, 32, 64, 64), 2
  c.gan.r1, c.gan.penalty_every = 0.5, 4
  c.optim.learning_rate, c.optim.ema, c.optim.ema_decay = 1e-4, "warmup", 0.995
  c.train.steps = 2000
