"""What a program takes of a chip, and the least time that its figures allow."""

import math
import re
import time
from typing import Any, NamedTuple

import jax
from jaxtyping import PyTree

from core import hlo, parallel, traffic
from core.chips import Chip
from core.family import State
from core.flops import Count
from core.parallel import Parallel

SIZES = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class Program(NamedTuple):
  """A program before XLA, and what is known of it from shapes alone.

  counted: operations of all devices, from its jaxpr.
  needed: the same without what is computed twice to save memory.
  resident: bytes a device that lie in memory meanwhile, the arguments among them.
  """

  lowered: jax.stages.Lowered
  counted: Count
  needed: Count
  resident: float


def measure(program: Program, run: Parallel, chip: Chip) -> dict[str, Any]:
  """Compiles a program and tells what each device does of it.

  Keys: `fits`; `memory`, `flops`, `traffic` in bytes and operations a device;
  `collectives`; `seconds`, the least that each resource allows; `bound`, the largest of
  those; `utilisation`, the share of the chip's peak at that bound. Where the program is
  too large for the chip there are no more than the first three, as far as known.
  """
  devices, start = run.mesh.size, time.perf_counter()
  flops = {
    "needed": program.needed.flops / devices,
    "counted": program.counted.flops / devices,
    "exact": program.needed.exact and program.counted.exact,
  }
  try:
    compiled = program.lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    peak = needed_memory(str(error), program.resident)
    memory = {"peak": peak, "limit": chip.memory, "resident": program.resident}
    return {
      "fits": False,
      "memory": memory,
      "flops": flops,
      "compile_seconds": time.perf_counter() - start,
    }
  stats = compiled.memory_analysis()
  # What lies there and is no argument, such as the optimizer's state while drawing.
  idle = max(0.0, program.resident - stats.argument_size_in_bytes)
  memory = {
    "peak": parallel.peak(stats) + idle + stats.generated_code_size_in_bytes,
    "limit": chip.memory,
    "resident": program.resident,
    "temporary": stats.temp_size_in_bytes,
    "code": stats.generated_code_size_in_bytes,
  }
  found = hlo.parse(compiled.as_text())
  done = hlo.flops(found)
  flops |= {"compiled": done.flops, "exact": flops["exact"] and done.exact}
  if analysis := compiled.cost_analysis():
    flops["xla_loops_once"] = analysis.get("flops", 0.0)
  collectives = hlo.collectives(found)
  moved, sent = traffic.moved(found), sum(each.sent for each in collectives)
  seconds = {
    "compute": done.flops / chip.flops,
    "memory": moved / chip.bandwidth,
    "communication": sent / chip.links,
  }
  bound = max(seconds.values())
  return {
    "fits": memory["peak"] <= chip.memory,
    "memory": memory,
    "flops": flops,
    "traffic": {"memory": moved, "sent": sent},
    "collectives": [each._asdict() | {"sent": each.sent} for each in collectives],
    "seconds": seconds,
    "bound": bound,
    "bound_by": max(seconds, key=lambda name: seconds[name]),
    "utilisation": flops["needed"] / chip.flops / bound if bound else 0.0,
    "communication_share": seconds["communication"] / bound if bound else 0.0,
    "compile_seconds": time.perf_counter() - start,
  }


def needed_memory(message: str, resident: float | int) -> float | int:
  """The bytes that XLA says a program would need; 0 where it does not say."""
  size = r"([\d.]+)([KMGT]?)"
  if used := re.search(rf"Used {size} of", message):
    return float(used[1]) * SIZES[used[2]]
  if temporary := re.search(rf"HLO temporaries \({size}\)", message):
    return float(temporary[1]) * SIZES[temporary[2]] + resident
  return 0.0


def per_device(run: Parallel, tree: PyTree) -> float:
  """Bytes that a device keeps of a state's part."""
  shards = jax.tree.leaves(run.shardings(tree))
  total = 0.0
  for leaf, sharding in zip(jax.tree.leaves(tree), shards, strict=True):
    total += leaf.dtype.itemsize * math.prod(sharding.shard_shape(leaf.shape))
  return total


def of_state(run: Parallel, state: State) -> dict[str, float]:
  """Bytes that a device keeps of each part of a training state."""
  return {
    "parameters": per_device(run, state.params),
    "optimizer": per_device(run, state.opt),
    "averages": per_device(run, state.ema),
    "extra": per_device(run, (state.step, state.extra)),
  }
