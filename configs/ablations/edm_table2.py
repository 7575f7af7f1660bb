"""EDM, table 2: from DDPM++ to EDM's training, one change after the other.

Karras et al. 2022 (arXiv:2206.00364), FID of unconditional CIFAR-10, VP, 35 network
evaluations: A, the baseline, 3.01; B, other hyperparameters, 2.51; C, capacity moved to
the high resolutions, 2.31; D, their preconditioning, 2.29; E, their loss weights and
noise levels, 2.05; F, their augmentation, 1.97. In :mini, B is the learning rate and
the average alone, C drops the lowest resolution, and none but F mirrors pictures.

Variants: see `configs/ablations/__init__.py`.
"""

from ml_collections import ConfigDict

from configs import ablations
from configs.diffusion import edm

FID = {"A": 3.01, "B": 2.51, "C": 2.31, "D": 2.29, "E": 2.05, "F": 1.97}
# Each is undone by the rows before the one that brings it in.
AUGMENTATION = {"diffusion.augment": 0.0}
MIRRORED = AUGMENTATION | {"data.flip": True}  # from memory
LOSS = {"diffusion.loss": "eps", "noise.schedule": "linear"}
PRECONDITIONING = {"diffusion.prediction": "eps"}
CAPACITY = {
  "model.widths": (128, 256, 256, 256),
  "model.stem": 0,
  "model.attention_up": "every",
}
HYPER = {
  "data.batch_size": 128,
  "optim.learning_rate": 2e-4,
  "optim.warmup_steps": 5000,
  "optim.grad_clip": 1.0,
  "optim.ema": "constant",
  "model.dropout": 0.1,
  "train.steps": 1_562_500,
}
MINI_CAPACITY = {"model.widths": (16, 32, 32, 32), "model.stem": 0}
MINI_HYPER = {"optim.learning_rate": 2e-4, "optim.ema_decay": 0.999}


def rows(*undone: ablations.Fields) -> ablations.Rows:
  """Each row as what it lacks of F: A all of `undone`, every next one a part less."""
  found = {}
  for i, name in enumerate(FID):
    found[name] = {k: v for part in undone[i:] for k, v in part.items()}
  return found


def get_config(variant: str = "") -> ConfigDict:
  """The table at the scale of a variant."""
  ablations.check(variant)
  c = edm.get_config()
  ablations.scaled(c, variant, steps=1200)
  hyper, capacity, last = HYPER, CAPACITY, MIRRORED
  if variant == "mini":
    c.text.encoder, c.data.batch_size = "none", 32
    c.model.net, c.model.widths, c.model.stem = "unet", (32, 32, 32), 32
    c.model.blocks, c.model.attention, c.model.head_dim = 1, (), 32
    c.sample.threshold = "static"
  if variant == "tiny":
    c.sample.threshold = "static"
  if variant in ("mini", "tiny"):
    hyper, capacity, last = MINI_HYPER, MINI_CAPACITY, AUGMENTATION
  source = "EDM (Karras et al. 2022), table 2"
  found = rows(hyper, capacity, PRECONDITIONING, LOSS, last)
  return ablations.table(c, found, source, {"fd": FID})
