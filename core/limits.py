"""What numbers a config may hold: the ranges of the fields that experiments share."""

import math
from typing import NamedTuple

from ml_collections import ConfigDict

from core import ema
from core.errors import UserError


class Range(NamedTuple):
  """low <= number <= high, without the ends if `open_low` or `open_high`.

  Or `whole` numbers alone: of those in a tuple no type tells.
  """

  low: float | int = 1
  high: float | int = math.inf
  open_low: bool = False
  open_high: bool = False
  whole: bool = False

  def __contains__(self, number: float | int) -> bool:
    above = number > self.low if self.open_low else number >= self.low
    if self.whole and not isinstance(number, int):
      return False
    return above and (number < self.high if self.open_high else number <= self.high)

  def __str__(self) -> str:
    """Reads like 'above 0' or 'in [0, 1)'."""
    if self.high == math.inf:
      more = f"above {self.low}" if self.open_low else f"{self.low} or more"
      return f"a whole number, {more}" if self.whole else more
    left, right = "(" if self.open_low else "[", ")" if self.open_high else "]"
    return f"in {left}{self.low}, {self.high}{right}"


COUNT, NATURAL = Range(whole=True), Range(0)
INDEX, SEVERAL = Range(0, whole=True), Range(2, whole=True)
POSITIVE = Range(0, open_low=True)
SEED = Range(0, 2**63 - 1)
SHARE, DECAY = Range(0, 1), Range(0, 1, open_high=True)

RANGES = {
  "seed": SEED,
  "data.size": COUNT,
  "data.batch_size": COUNT,
  "data.low_size": NATURAL,
  "noise.timesteps": NATURAL,
  "noise.shift": POSITIVE,
  "diffusion.weight_cap": NATURAL,
  "diffusion.sigma_data": POSITIVE,
  "diffusion.vlb_weight": NATURAL,
  "diffusion.augment": SHARE,
  "vae.latent_channels": COUNT,
  "vae.latent_dim": NATURAL,
  "vae.components": COUNT,
  "vae.beta": NATURAL,
  "vae.warmup_steps": NATURAL,
  "vae.free_bits": NATURAL,
  "vae.iwae_samples": COUNT,
  "vae.groups": INDEX,
  "vae.perceptual_weight": NATURAL,
  "vae.latent_scale": NATURAL,
  "vae.codes": SEVERAL,
  "vae.quantizers": COUNT,
  "vae.commitment": NATURAL,
  "vae.evenness": NATURAL,
  "vae.codebook_decay": DECAY,
  "vae.revive_below": NATURAL,
  "vae.temperature_start": POSITIVE,
  "vae.temperature_end": POSITIVE,
  "vae.temperature_steps": NATURAL,
  "vae.levels": SEVERAL,
  "mixture.components": COUNT,
  "mixture.rank": NATURAL,
  "mixture.floor": POSITIVE,
  "mixture.power": SHARE,
  "mixture.smoothing": POSITIVE,
  "pca.components": COUNT,
  "pca.buckets": SEVERAL,
  "flow.levels": COUNT,
  "flow.steps": COUNT,
  "flow.bins": SEVERAL,
  "flow.bound": POSITIVE,
  "flow.dequantization_steps": COUNT,
  "flow.draws": COUNT,
  "flow.edge": Range(0, 0.5, open_low=True, open_high=True),
  "flow.ode_steps": COUNT,
  "flow.kinetic_weight": NATURAL,
  "flow.jacobian_weight": NATURAL,
  "clip.dim": COUNT,
  "clip.temperature": POSITIVE,
  "clip.crop": Range(0, 1, open_low=True),
  "autoregressive.components": COUNT,
  "autoregressive.text_weight": SHARE,
  "autoregressive.label_smoothing": DECAY,
  "autoregressive.head_dim": COUNT,
  "autoregressive.head_depth": COUNT,
  "autoregressive.draws": COUNT,
  "gan.latent_dim": COUNT,
  "gan.widths": COUNT,
  "gan.weight": NATURAL,
  "gan.start": NATURAL,
  "gan.critic_steps": COUNT,
  "gan.learning_rate": NATURAL,
  "gan.mismatch": DECAY,
  "gan.r1": NATURAL,
  "gan.r2": NATURAL,
  "gan.gradient_penalty": NATURAL,
  "gan.path_length": NATURAL,
  "gan.penalty_every": COUNT,
  "gan.path_every": COUNT,
  "gan.augment_target": SHARE,
  "gan.augment_kimg": POSITIVE,
  "gan.extra": NATURAL,
  "gan.style_dim": COUNT,
  "gan.mapping_layers": COUNT,
  "gan.mixing": SHARE,
  "distil.steps": COUNT,
  "distil.weight": NATURAL,
  "distil.guidance": NATURAL,
  "text.max_tokens": COUNT,
  "text.dim": COUNT,
  "text.depth": COUNT,
  "text.heads": COUNT,
  "text.classes": NATURAL,
  "text.drop": SHARE,
  "text.frozen_drop": SHARE,
  "text.embedding_drop": SHARE,
  "text.similarity_cells": NATURAL,
  "model.dropout": DECAY,
  "model.dim": COUNT,
  "model.depth": COUNT,
  "model.heads": COUNT,
  "model.patch": COUNT,
  "model.fourier": INDEX,
  "model.widths": COUNT,
  "model.blocks": COUNT,
  "model.head_dim": NATURAL,
  "model.stem": NATURAL,
  "model.transformer": NATURAL,
  "model.groups": NATURAL,
  "model.norm_eps": POSITIVE,
  "model.attention_width": COUNT,
  "model.embedding": NATURAL,
  "model.attention_levels": INDEX,
  "model.text_levels": INDEX,
  "optim.learning_rate": POSITIVE,
  "optim.warmup_steps": NATURAL,
  "optim.b1": DECAY,
  "optim.b2": DECAY,
  "optim.eps": POSITIVE,
  "optim.weight_decay": NATURAL,
  "optim.grad_clip": NATURAL,
  "optim.ema_decay": DECAY,
  "train.steps": NATURAL,
  "train.log_every": COUNT,
  "train.checkpoint_every": COUNT,
  "train.keep": COUNT,
  "train.keep_every": NATURAL,
  "train.sample_every": NATURAL,
  "train.eval_every": NATURAL,
  "train.snapshot_every": NATURAL,
  "train.max_skipped": COUNT,
  "sample.num_images": COUNT,
  "sample.per_prompt": COUNT,
  "sample.rerank": NATURAL,
  "sample.candidates": COUNT,
  "sample.seed": SEED,
  "sample.steps": COUNT,
  "sample.sigma_min": POSITIVE,
  "sample.sigma_max": POSITIVE,
  "sample.rho": POSITIVE,
  "sample.eta": SHARE,
  "sample.churn": NATURAL,
  "sample.churn_min": NATURAL,
  "sample.churn_max": NATURAL,
  "sample.churn_noise": NATURAL,
  "sample.corrector_steps": NATURAL,
  "sample.corrector_snr": POSITIVE,
  "sample.rtol": POSITIVE,
  "sample.atol": POSITIVE,
  "sample.guidance_scale": NATURAL,
  "sample.guidance_min": NATURAL,
  "sample.guidance_max": POSITIVE,
  "sample.guidance_rescale": SHARE,
  "sample.temperature": NATURAL,
  "sample.choice_temperature": NATURAL,
  "sample.head_steps": COUNT,
  "sample.top_k": NATURAL,
  "sample.top_p": SHARE,
  "sample.truncation": NATURAL,
  "sample.percentile": SHARE,
  "sample.augmentation": SHARE,
  "sample.strength": SHARE,
  "sample.frames": COUNT,
  "sample.ema_std": Range(0, ema.MAX_STD, open_high=True),
  "eval.num_images": NATURAL,
  "eval.batch_size": COUNT,
  "eval.bound_times": NATURAL,
  "eval.bound_logsnr": Range(-20, 20),
  "eval.ode_probes": NATURAL,
  "eval.ode_tolerance": POSITIVE,
  "parallel.fsdp": COUNT,
  "parallel.tensor": COUNT,
}


def check(config: ConfigDict) -> None:
  """Raises UserError for a number out of its range (NaN is in none).

  In a tuple each number counts.
  Fields that the config does not have are passed over: a family adds its own. Of a
  system each stage is checked, of a comparison each member and codec, of a table what
  its rows start from and need.
  """
  if "rows" in config:
    check(config.base)
  parts = {"stages": "stage", "members": "member", "codecs": "codec", "shared": "run"}
  for part, word in parts.items():
    for name, own in config.get(part, {}).items():
      try:
        check(own)
      except UserError as error:
        raise UserError(f"{word} {name}: {error}") from error
  if any(part in config for part in parts):
    return
  for field, allowed in RANGES.items():
    part, _, name = field.rpartition(".")
    holder = config.get(part) if part else config
    if holder is None or name not in holder:
      continue
    numbers = holder[name]
    for number in numbers if isinstance(numbers, tuple) else (numbers,):
      real = isinstance(number, int | float)
      if not real or number not in allowed:
        raise UserError(f"{field} must be {allowed}, not {number!r}.")
      if math.isinf(number):
        raise UserError(f"{field} must be {allowed} and finite, not {number!r}.")
  if not config.data.languages:
    raise UserError("data.languages must name at least one language, such as ('en',).")
  for field, example in (
    ("data.languages", "en"),
    ("sample.prompts", "red heart"),
    ("text.frozen", "minilm"),
    ("text.frozen_output", "both"),
  ):
    part, name = field.split(".")
    if not all(isinstance(text, str) for text in config[part].get(name, ())):
      raise UserError(f"{field} must be texts, such as ({example!r},).")
  stds, allowed = config.optim.ema_std, Range(0, ema.MAX_STD, True, True)
  if len(set(stds)) < 2 or len(set(stds)) < len(stds):
    raise UserError(
      "optim.ema_std must be two or more different lengths, such as (0.05, 0.1)."
    )
  if not all(isinstance(std, float) and std in allowed for std in stds):
    raise UserError(f"optim.ema_std must be lengths {allowed}, not {stds}.")
  if config.train.snapshot_every and config.optim.ema != "power":
    raise UserError(
      "train.snapshot_every needs optim.ema='power', not"
      f" {config.optim.ema!r}; set it to 0."
    )
  for part in ("model", "gan"):
    if part in config and not config[part].widths:
      raise UserError(f"{part}.widths must be numbers of channels, such as (64, 128).")
  for part in ("model", "text"):
    dim, heads = config[part].dim, config[part].heads
    if dim % heads:
      raise UserError(f"{part}.dim={dim} must be a multiple of {part}.heads={heads}.")
