"""--mode=compile: what a config takes of a machine that is not here, in words."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from core import topology
from core.chips import Chip
from core.errors import UserError
from core.log import say
from core.workdir import explained, write_atomic
from pipelines import compiled, fitting

Figures = dict[str, Any]
GIB = 2**30


def report(config: ConfigDict, workdir: str | None, name: str, stage: str) -> None:
  """Compiles the step and the sampler of each part, and says what each device needs.

  With a workdir all figures are also in its `compile.json`.

  Raises:
    UserError: no such topology or stage, or what does not fit together.
  """
  if not name:
    raise UserError("--mode=compile needs --topology, such as --topology=v5e:16x16.")
  chip, devices = topology.named(name)
  found = {}
  with compiled.parts(config, stage) as parts:
    for part, own in parts.items():
      say(f"{f'stage {part}, ' if part else ''}{own.family} on {name}; compiling")
      found[part or own.family] = of_part(own, devices, chip)
  if workdir:
    path = Path(workdir)
    with explained(path):
      path.mkdir(parents=True, exist_ok=True)
    figures = {"topology": name, "chip": chip._asdict(), "jax": jax.__version__}
    write_atomic(
      path / "compile.json", json.dumps(figures | {"parts": found}, indent=2) + "\n"
    )


def of_part(config: ConfigDict, devices: Sequence[jax.Device], chip: Chip) -> Figures:
  """The figures of one part, printed as they are found."""
  run = compiled.run_on(config, devices)
  step = compiled.step(config, run, chip)
  found = {
    "backend": run.backend,
    "mesh": dict(run.mesh.shape),
    "batch_size": config.data.batch_size,
    "step": step,
  }
  print("\n".join(of_step(step, config, run.backend, len(devices), chip)))
  if not step["fits"]:
    attempt = lambda own: compiled.step(own, compiled.run_on(own, devices), chip)  # noqa: E731
    found["tried"] = fitting.tried(config, run.parts, step, attempt)
    print("\n".join(of_tried(found["tried"], chip)))
  elif compiled.draws(config, compiled.made(config)):
    found["sample"] = compiled.draw(config, run, chip)
    print("\n".join(of_sample(found["sample"], config)))
  return found


def of_step(
  step: Figures, config: ConfigDict, backend: str, devices: int, chip: Chip
) -> list[str]:
  """The lines about a training step."""
  m = step["memory"]
  lines = [
    f"training step, {backend} on {devices} devices, fsdp {config.parallel.fsdp},"
    f" tensor {config.parallel.tensor}, batch {config.data.batch_size} in"
    f" {config.optim.microbatches} part(s), each device:",
    f"  parameters   {size(m['parameters'])} ({step['parameters']:,} in all)",
    f"  optimizer    {size(m['optimizer'])}",
    f"  averages     {size(m['averages'])}",
    f"  batch, other {size(m['batch'] + m['extra'])}",
  ]
  if "temporary" in m:
    lines.append(f"  activations  {size(m['temporary'])} (temporary)")
  return [*lines, *of_program(step, chip)]


def of_sample(found: Figures, config: ConfigDict) -> list[str]:
  """The lines about drawing."""
  head = (
    f"drawing {found['pictures']} pictures, {config.sample.steps} steps, each device:"
  )
  return [head, *of_program(found, None)]


def of_program(found: Figures, chip: Chip | None) -> list[str]:
  """What all programs have: memory, operations, traffic and the roofline."""
  m, f = found["memory"], found["flops"]
  fits = "fits" if found["fits"] else "does not fit"
  lines = [f"  peak         {size(m['peak'])} of {size(m['limit'])}: {fits}"]
  more = "" if f["exact"] else ", at least: a loop's length is only known to its data"
  counts = f"{f['counted']:.4g} counted ({f['needed']:.4g} without recomputing){more}"
  if "compiled" not in f:
    return [*lines, f"  FLOPs        {counts}"]
  seconds, sent = found["seconds"], found["traffic"]["sent"]
  lines += [
    f"  FLOPs        {f['compiled']:.4g} compiled, {counts}",
    f"  moved        {size(found['traffic']['memory'])} to and from memory",
    f"  sent         {size(sent)} in {len(found['collectives'])} collectives",
  ]
  lines += [
    f"    {c['kind']}: {size(c['bytes'])} over {c['devices']} devices, x{c['times']}"
    for c in found["collectives"][:8]
  ]
  if len(found["collectives"]) > 8:
    rest = sum(c["sent"] for c in found["collectives"][8:])
    lines.append(f"    and {len(found['collectives']) - 8} smaller: {size(rest)} sent")
  parts = ", ".join(f"{name} {1e3 * s:.3g} ms" for name, s in seconds.items())
  lines.append(
    f"  time         {1e3 * found['bound']:.3g} ms at least, by {found['bound_by']}"
    f" ({parts}); utilisation {found['utilisation']:.1%} at most"
  )
  if chip:
    lines.append(f"  chip         {chip.flops / 1e12:.0f} TFLOP/s, {chip.source}")
  return lines


def of_tried(tried: Sequence[Figures], chip: Chip) -> list[str]:
  """The lines about what would make it fit."""
  lines = ["what would fit, each compiled:"]
  for each in tried:
    change = " ".join(f"--config.{k}={v}" for k, v in each["change"].items())
    end = "does not fit"
    if each["fits"]:
      end = f"fits, {1e3 * each['bound']:.3g} ms a step at least"
    lines.append(f"  {change}: {size(each['peak'])}, {end}")
  if not any(each["fits"] for each in tried):
    lines.append(
      f"  nothing tried fits {size(chip.memory)}: take more devices, or a smaller"
      " data.batch_size"
    )
  return lines


def size(n: float | int) -> str:
  """Bytes, in the unit that suits."""
  for unit, by in (("GiB", GIB), ("MiB", 2**20), ("KiB", 2**10)):
    if n >= by:
      return f"{n / by:.2f} {unit}"
  return f"{n:.0f} B"
