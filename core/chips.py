"""What a chip can do: the roofline that a compiled program is held against."""

from typing import NamedTuple

from core.errors import unknown


class Chip(NamedTuple):
  """Figures of one chip.

  flops: a second, of matrix products in bfloat16. A TPU takes those of float32 so too
    unless `jax_default_matmul_precision` is raised; a GPU as TF32, half as fast.
  memory: bytes that a program may use.
  bandwidth: bytes a second to and from that memory.
  links: bytes a second that it can send to all its neighbours together, half of what
    the documentation calls its bidirectional bandwidth.
  source: where the figures are from.
  """

  flops: float
  memory: float
  bandwidth: float
  links: float
  source: str


# Of the 16 and 32 GB the compiler leaves these to a program: "Used ... of 15.75G hbm".
CHIPS = {
  "v5e": Chip(
    197e12, 15.75 * 2**30, 819e9, 200e9, "docs.cloud.google.com/tpu/docs/v5e"
  ),
  "v6e": Chip(
    918e12, 31.25 * 2**30, 1638e9, 400e9, "docs.cloud.google.com/tpu/docs/v6e"
  ),
  # SXM. JAX takes three quarters of a GPU's memory (XLA_PYTHON_CLIENT_MEM_FRACTION).
  "h100": Chip(
    989e12, 0.75 * 84_929_347_584, 3350e9, 450e9, "nvidia.com/en-us/data-center/h100"
  ),
}


def named(name: str) -> Chip:
  """The chip of a topology's name, such as 'v5e'.

  Raises:
    UserError: it is not in the table.
  """
  if name not in CHIPS:
    raise unknown("chip in --topology", name, CHIPS)
  return CHIPS[name]
