"""Whether the sizes that a convolutional network is given fit together."""

from core.errors import UserError, counted


def per_level(
  blocks: int | tuple[int, ...], widths: tuple[int, ...]
) -> tuple[int, ...]:
  """The number of blocks of each resolution; one number is that of all.

  Raises UserError if there are not as many as `widths`.
  """
  counts = (blocks,) * len(widths) if isinstance(blocks, int) else blocks
  if len(counts) != len(widths):
    raise UserError(
      f"The U-Net's blocks {counts} and widths {widths} must be as many; give `blocks`"
      " one number for each of `widths`, or one for all."
    )
  return counts


def check_size(height: int, width: int, times: int, widths: tuple[int, ...]) -> None:
  """Raises UserError if an image cannot be halved so many times."""
  unit = 2**times
  if height % unit or width % unit:
    sizes = [
      "x".join(str(max(1, size // unit + up) * unit) for size in (height, width))
      for up in (0, 1)
    ]
    fit = " or ".join(dict.fromkeys(sizes))  # below one unit both are the same
    raise UserError(
      f"An image of {height}x{width} cannot be halved {counted(times)}, as the widths"
      f" {widths} ask; use {fit}, or fewer widths."
    )


def check_heads(widths: list[int], head_dim: int, heads: int = 0) -> None:
  """Raises UserError if a width does not divide into attention heads.

  Their number is `heads` at every width if `head_dim` is 0.
  """
  if not head_dim and not heads and widths:
    raise UserError(
      f"`head_dim` must divide the network's width {widths[0]}, not be 0."
    )
  if not head_dim:
    if bad := [c for c in widths if c % heads]:
      raise UserError(
        f"The network's width {bad[0]} does not divide into {heads} attention heads;"
        " change `widths` or `heads`, or give `head_dim`."
      )
    return
  if bad := [c for c in widths if c % head_dim]:
    raise UserError(
      f"The network's width {bad[0]} does not divide into attention heads of"
      f" {head_dim}; change `widths` or `head_dim`."
    )


def check_groups(widths: tuple[int, ...], groups: int) -> None:
  """Raises UserError if a width does not divide into the groups of a norm."""
  if bad := [c for c in widths if groups and c % groups]:
    raise UserError(
      f"The network's width {bad[0]} does not divide into {groups} groups; change"
      " `widths` or `groups`."
    )
