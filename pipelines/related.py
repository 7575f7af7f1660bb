"""The configs of runs that a config names beside its own: a guide, a teacher."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from core.errors import UserError
from core.workdir import flat, read_config
from pipelines import texts
from text import encoders

# What a generator models.
DATA = tuple(f"data.{k}" for k in ("size", "channels", "low_size", "codec", "latents"))
# What raw conditions look like.
RAW = tuple(
  f"text.{k}"
  for k in (
    *("encoder", "max_tokens", "classes"),
    *("embedding", "embedding_of_caption", "similarity_cells"),
  )
)
# The same of frozen encoders.
FROZEN = tuple(
  f"text.{k}" for k in ("frozen", "frozen_output", "frozen_dtype", "frozen_as_is")
)
# What a denoiser's output means.
OUTPUT = tuple(f"diffusion.{k}" for k in ("prediction", "sigma_data", "learn_variance"))
# Of networks, what matters to training alone.
TRAINING = (
  "model.dropout",
  "model.dtype",
  "model.remat",
  "model.scan",
  "noise.low_discrepancy",
  "text.drop",
  "text.frozen_drop",
)


def guide(config: ConfigDict) -> ConfigDict:
  """The config of the run in `sample.guide`, on the devices of this one.

  Raises:
    UserError: there is no run, it draws other data than this one, or the family has no
      use for a guide.
  """
  if config.family != "diffusion.ddpm":
    raise UserError(
      f"sample.guide is for diffusion.ddpm, and this is {config.family}: set it to ''."
    )
  fields = ("family", *DATA, *RAW, *(FROZEN if texts.used(config) else ()))
  why = "a guide draws the same data from the same conditions"
  return config_of(config, "sample.guide", fields, why)


def teacher(config: ConfigDict) -> ConfigDict:
  """The config of the run in `distil.teacher`, on the devices of this one.

  Raises:
    UserError: there is no run, its network, noise or data are others than this one's,
      or it has no null condition for `distil.guidance`.
  """
  student = ConfigDict(config.to_dict())
  student.family = config.gan.family
  parts = ("model.", "noise.", "text.")
  network = [k for k in fields_of(student) if k.startswith(parts) and k not in TRAINING]
  if not texts.used(student):
    network = [k for k in network if k not in FROZEN]
  fields = ("family", "data.name", *DATA, *OUTPUT, "diffusion.augment", *network)
  why = "a student has the network of its teacher, and its data"
  theirs = config_of(student, "distil.teacher", fields, why)
  if config.distil.guidance != 1 and not encoders.knows_null(theirs.text):
    raise UserError(
      f"distil.guidance={config.distil.guidance} needs a teacher that was trained"
      f" without its condition at times, and {config.distil.teacher} has text.drop=0;"
      " set distil.guidance to 1."
    )
  return theirs


def config_of(
  config: ConfigDict, setting: str, same: Sequence[str], why: str
) -> ConfigDict:
  """The config of the run whose workdir a setting names, on the devices of this one.

  Args:
    config: has the setting.
    setting: such as 'sample.guide'.
    same: fields that both must agree in.
    why: they must, for the message.

  Raises:
    UserError: there is no run, or a field differs.
  """
  ours = fields_of(config)
  if not (Path(ours[setting]) / "config.json").exists():
    raise UserError(
      f"no run in {setting}={ours[setting]}; give the --workdir of a trained one."
    )
  found = read_config(Path(ours[setting]))
  theirs = fields_of(found)
  for field in same:
    if ours.get(field) != theirs.get(field):
      raise UserError(
        f"the run in {setting}={ours[setting]} has {field}={theirs.get(field)!r}, this"
        f" one {ours.get(field)!r}; {why}."
      )
  found.parallel, found.sample.guide = config.parallel, ""
  found.sample.ema_std = 0.0  # its weights as they were tracked
  return found


def fields_of(config: ConfigDict) -> dict[str, Any]:
  """A config's fields by their dotted names, as its `config.json` has them."""
  return dict(flat(json.loads(config.to_json_best_effort())))
