"""Devices of a machine that is not here, to compile for."""

import importlib.util
import os
import re
from collections.abc import Sequence

import jax
from jax.experimental import topologies

from core import chips
from core.chips import Chip
from core.errors import UserError

# What can be rented of each chip (cloud.google.com/tpu/docs/v5e, v6e), but single ones.
SHAPES = ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")


def named(topology: str) -> tuple[Chip, Sequence[jax.Device]]:
  """The chip and the devices of a topology such as 'v5e:16x16'.

  Raises:
    UserError: there is none of that name, or libtpu is not installed.
  """
  if re.match(r"(?i)(gpu|cuda|rocm|a100|h100|h200|b200)", topology):
    raise UserError(
      f"--topology={topology}: XLA compiles for a GPU only where there is one; training"
      " says there what a step needs, so give a TPU's topology here."
    )
  chip, _, shape = topology.partition(":")
  if shape not in SHAPES:
    raise UserError(
      f"--topology={topology} is no topology; give one such as v5e:16x16, of"
      f" {', '.join(chips.CHIPS)} and {', '.join(SHAPES)}."
    )
  found = chips.named(chip)
  if importlib.util.find_spec("libtpu") is None:
    raise UserError(
      "--mode=compile needs the TPU compiler, which is not installed; no TPU is needed:"
      " pip install libtpu."
    )
  alone()
  try:
    devices = topologies.get_topology_desc(topology, "tpu").devices
  except Exception as error:
    raise UserError(
      f"--topology={topology}: the installed libtpu does not go with this JAX"
      f" {jax.__version__} ({str(error).splitlines()[0]}); pip install 'jax[tpu]'."
    ) from error
  return found, devices


def alone() -> None:
  """Keeps JAX and libtpu from looking for a TPU that is attached, and from its lock."""
  jax.config.update("jax_platforms", "cpu")
  for name, value in {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
  }.items():
    os.environ.setdefault(name, value)
