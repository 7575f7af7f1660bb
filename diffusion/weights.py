"""A diffusion that starts from published weights: Stable Diffusion's U-Net."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree
from ml_collections import ConfigDict

from core import noise
from core.errors import UserError
from core.family import Spec
from nets import build
from nets.pretrained import unet
from nets.pretrained.hugging_face import read_json
from nets.unet import UNet

# What scheduler_config.json calls our settings, and what diffusers takes where it is
# silent.
PREDICTIONS = {"epsilon": "eps", "v_prediction": "v", "sample": "x"}
DEFAULTS = {
  "prediction_type": "epsilon",
  "beta_schedule": "linear",
  "beta_start": 1e-4,
  "beta_end": 0.02,
  "num_train_timesteps": 1000,
  "rescale_betas_zero_snr": False,
}


def load(config: ConfigDict, spec: Spec) -> PyTree:
  """The parameters of the network that `diffusion.weights` holds.

  That is a directory `unet` in diffusers' layout (`nets/pretrained/unet.py`). If
  `scheduler/scheduler_config.json` is beside it, the noise it was trained with must be
  the config's.

  Raises:
    UserError: files are missing, damaged, or of another network or noise.
  """
  directory = Path(config.diffusion.weights).expanduser()
  net = build.make(config.model, spec.shape[-1] * (1 + config.diffusion.learn_variance))
  if not isinstance(net, UNet):
    raise UserError(
      f"diffusion.weights={directory} are for model.net='unet' without model.fourier."
    )
  scaling = noise.make(config.noise).scaling
  if scaling != "vp":
    raise UserError(
      f"diffusion.weights={directory} were trained with variance-preserving noise, not"
      f" noise.schedule={config.noise.schedule!r}: set it to 'scaled_linear'."
    )
  check_scheduler(config, directory.parent / "scheduler" / "scheduler_config.json")
  return unet.load(net, spec.shape, directory)


def check_scheduler(config: ConfigDict, file: Path) -> None:
  """Raises UserError if a scheduler's file tells of other noise; not without a file."""
  if not file.exists():
    return
  found = DEFAULTS | read_json(file)
  kind, name = found["prediction_type"], found["beta_schedule"]
  theirs = {
    "diffusion.prediction": PREDICTIONS.get(str(kind), kind),
    "noise.schedule": name,
    "model.clock": name,
    "noise.zero_terminal": found["rescale_betas_zero_snr"],
    f"noise.{name}.beta_start": found["beta_start"],
    f"noise.{name}.beta_end": found["beta_end"],
    f"noise.{name}.timesteps": found["num_train_timesteps"],
  }
  for field, wanted in theirs.items():
    own: Any = config
    for part in field.split("."):
      own = own.get(part) if own is not None else None
    if own != wanted:
      raise UserError(
        f"{file} says that the weights in diffusion.weights were trained with"
        f" {field}={wanted!r}, not {own!r}; set it so."
      )


def fitted(params: PyTree, weights: PyTree) -> PyTree:
  """`weights`, in place of the network's own `params`.

  Raises:
    UserError: their shapes differ: the network reads another text than it was trained
      with.
  """
  ours, theirs = unet.flat(params), unet.flat(weights)
  for path in sorted(ours | theirs):
    own, wanted = (
      tree[path].shape if path in tree else None for tree in (ours, theirs)
    )
    if own != wanted:
      raise UserError(
        f"what diffusion.weights gives has {path} of shape {wanted}, and with this"
        f" config's text encoder it would be {own}; give it the encoder that it was"
        " trained with."
      )
  return jax.tree.map(jnp.asarray, weights)
