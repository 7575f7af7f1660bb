"""Devices of a machine that is not here, to compile for."""

import importlib.util
import os
from collections.abc import Sequence

import jax
from jax.experimental import topologies

from core import chips
from core.chips import Chip
from core.errors import UserError

# What can be rented of each TPU (cloud.google.com/tpu/docs/v5e, v6e), but single ones;
# and GPUs of one host.
TPUS = ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
GPUS = ("1", "2", "4", "8")
SHAPES = {"v5e": TPUS, "v6e": TPUS, "h100": GPUS}
# A GPU as XLA describes it (xla/tools/hlo_opt/gpu_specs/h100_sxm.txtpb).
H100 = """
gpu_device_info {
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: 233472
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: 84929347584
  shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 }
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 7 }
runtime_version { major: 13 minor: 0 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


def named(topology: str) -> tuple[Chip, Sequence[jax.Device]]:
  """The chip and the devices of a topology such as 'v5e:16x16' or 'h100:8'.

  Raises:
    UserError: there is none of that name, or its compiler is not installed.
  """
  chip, _, shape = topology.partition(":")
  found = chips.named(chip)
  if shape not in SHAPES[chip]:
    raise UserError(
      f"--topology={topology} is no topology of {chip}; those are"
      f" {', '.join(f'{chip}:{known}' for known in SHAPES[chip])}."
    )
  gpu = SHAPES[chip] is GPUS
  module, package = ("jax_cuda13_plugin", "cuda13") if gpu else ("libtpu", "tpu")
  if importlib.util.find_spec(module) is None:
    raise UserError(
      f"--topology={topology} needs a compiler that is not installed, though no such"
      f" machine: pip install {'jax-cuda13-plugin jax-cuda13-pjrt' if gpu else module}."
    )
  alone()
  try:
    return found, (gpus(shape) if gpu else tpus(topology))
  except Exception as error:
    raise UserError(
      f"--topology={topology}: the installed compiler does not go with JAX"
      f" {jax.__version__} ({str(error).splitlines()[0]}); pip install"
      f" 'jax[{package}]=={jax.__version__}'."
    ) from error


def tpus(topology: str) -> Sequence[jax.Device]:
  """The chips of a slice."""
  return topologies.get_topology_desc(topology, "tpu").devices


def gpus(count: str) -> Sequence[jax.Device]:
  """So many H100 of one host."""
  jax.devices()  # finds the plugin
  shape = f"1x1x{count}"
  described = {"topology": shape, "target_config": H100}
  return topologies.get_topology_desc(shape, "cuda", **described).devices


def alone() -> None:
  """Keeps compilers from looking for a device that is attached, and from its lock."""
  jax.config.update("jax_platforms", "cpu")
  for name, value in {
    "CUDA_VISIBLE_DEVICES": "-1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
  }.items():
    os.environ.setdefault(name, value)
