"""Settings that a family cannot take, each refused in one sentence."""

from collections.abc import Iterable

from ml_collections import ConfigDict

from core.errors import UserError, unknown


def refuse_guidance(config: ConfigDict) -> None:
  """Raises UserError for guidance, where p(x | y) itself is drawn from."""
  if config.sample.guidance_scale != 1:
    raise UserError(
      f"{config.family} draws of p(x | y) itself, without guidance: set"
      " sample.guidance_scale to 1."
    )


def refuse_small_pictures(config: ConfigDict) -> None:
  """Raises UserError for super-resolution, which the family does not do."""
  if config.data.low_size:
    raise UserError(f"{config.family} reads no small picture: set data.low_size to 0.")


def refuse_learned_noise(config: ConfigDict) -> None:
  """Raises UserError for a schedule that only a diffusion's own loss can train."""
  if config.noise.schedule == "learned":
    raise UserError(
      f"{config.family} cannot learn a schedule: set noise.schedule to another, such as"
      " cosine."
    )


def check_weight(config: ConfigDict) -> None:
  """Raises UserError if `gan.weight` leaves a generator without a loss."""
  if not config.gan.weight:
    raise UserError(
      f"gan.weight=0 leaves {config.family} nothing to learn from: set it above 0."
    )


def check_edit(config: ConfigDict, edits: Iterable[str]) -> None:
  """Raises UserError if `sample.edit` is not among them."""
  if config.sample.edit not in edits:
    raise unknown("sample.edit", config.sample.edit, edits)


def refuse(config: ConfigDict, part: str, **off: object) -> None:
  """Raises UserError if a field of a part is not `off`: it would be ignored."""
  for field, value in off.items():
    found = getattr(getattr(config, part), field)
    if found != value:
      raise UserError(
        f"{config.family} has no use for {part}.{field}={found!r}: set it to {value!r}."
      )
