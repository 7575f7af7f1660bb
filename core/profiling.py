"""Where a training step's time goes: a trace for xprof, and a table of operations."""

import collections
import contextlib
import csv
import itertools
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.profiler import ProfileData, StepTraceAnnotation

from core import hlo
from core.errors import UserError
from core.log import say
from core.parallel import Step
from core.workdir import explained

SHOWN = 8  # kinds of operations that are printed
# What holds others, whose time would count twice.
HOLDERS = ("while", "call", "conditional")
# Their source may be a transposition that XLA made part of them.
PRODUCTS = {"dot": "dot_general", "convolution": "conv_general_dilated"}


class Operation(NamedTuple):
  """One instruction of the step: all its runs in the traced steps."""

  name: str
  opcode: str
  source: str  # where the code makes it, or of a fusion its last operation
  seconds: float
  runs: int

  @property
  def kind(self) -> str:
    """The primitive that it computes, or XLA's word where none is told."""
    told = self.source.rpartition("/")[2] or self.opcode
    return PRODUCTS.get(self.opcode, told)


def steps(text: str) -> range:
  """The steps of FIRST:LAST, both included; none for ''.

  Raises:
    UserError: it is not so written.
  """
  if not text:
    return range(0)
  found = re.fullmatch(r"([1-9][0-9]*):([1-9][0-9]*)", text)
  if not found or int(found[2]) < int(found[1]):
    raise UserError(
      f"--profile_steps={text!r} must be FIRST:LAST, two steps of the training such as"
      " 20:24."
    )
  return range(int(found[1]), int(found[2]) + 1)


@contextlib.contextmanager
def traced(
  step: Step, wanted: range, start: int, end: int, folder: Path
) -> Iterator[Callable[..., Any]]:
  """The step; its calls of the wanted steps are traced, by the first process.

  Args:
    step: what is called for each step.
    wanted: steps, from 1 on.
    start: steps that are done before the first call.
    end: the last step.
    folder: `plugins/profile/...` as xprof reads it and `operations.csv` go here.

  Raises:
    UserError: none of the wanted steps is to come, or the folder cannot be written.
  """
  wanted = range(max(wanted.start, start + 1), min(wanted.stop, end + 1))
  if not wanted:
    raise UserError(
      f"--profile_steps names no step that is to come: {start} are done, and the last"
      f" is {end}."
    )
  numbers, open_, last = itertools.count(start + 1), [], []

  def finish(count: int) -> None:
    open_.clear()
    jax.block_until_ready(last)
    with explained(folder):
      jax.profiler.stop_trace()
      found = operations(newest(folder), step.compiled.as_text())
      write(found, count, folder / "operations.csv")
    say(told(found, count, folder))

  def run(*args: Any) -> Any:
    number = next(numbers)
    if number == wanted[0] and jax.process_index() == 0:
      jax.block_until_ready(args)  # the step before may still run
      with explained(folder):
        jax.profiler.start_trace(folder, profiler_options=quiet())
      open_.append(number)
    with StepTraceAnnotation("train", step_num=number):
      last[:] = [step(*args)]
    if open_ and number == wanted[-1]:
      finish(len(wanted))
    return last[0]

  try:
    yield run
  except BaseException:
    if open_:
      with contextlib.suppress(OSError, RuntimeError):
        jax.profiler.stop_trace()
    raise
  if open_:  # stopped before the last of them
    finish(next(numbers) - open_[0])


def quiet() -> jax.profiler.ProfileOptions:
  """Without Python's own calls, which would be most of the trace."""
  options = jax.profiler.ProfileOptions()
  options.python_tracer_level = 0
  return options


def newest(folder: Path) -> Path:
  """The last trace that was written there."""
  return max(folder.glob("plugins/profile/*/*.xplane.pb"), key=lambda p: p.parent.name)


def operations(trace: Path, program: str) -> list[Operation]:
  """What the trace has of the program's instructions, the costliest first.

  Times are summed over devices and threads, so they may be more than the clock's.
  """
  computations = hlo.parse(program).computations.values()
  known = {name: found for part in computations for name, found in part.items()}
  spent: Mapping[str, list[float]] = collections.defaultdict(list)
  for plane in ProfileData.from_file(str(trace)).planes:
    for line in plane.lines:
      # On a TPU an event is an instruction by its name, on a CPU others are among them.
      for event in line.events:
        name = event.name.removeprefix("%").partition(" ")[0]
        if name in known and line.name != "python":
          spent[name].append(event.duration_ns / 1e9)
  found = [
    Operation(name, known[name].opcode, source(known[name]), sum(each), len(each))
    for name, each in spent.items()
    if known[name].opcode not in HOLDERS
  ]
  return sorted(found, key=lambda o: -o.seconds)


def source(instruction: hlo.Instruction) -> str:
  """Where the code makes it: 'jit(step)/.../conv_general_dilated', or ''."""
  named = re.search(r'op_name="([^"]*)"', instruction.rest)
  return named[1] if named else ""


def write(found: list[Operation], count: int, file: Path) -> None:
  """Every operation as a line of CSV, of one step."""
  with file.open("w", newline="", encoding="utf-8") as opened:
    lines = csv.writer(opened)
    lines.writerow(("ms_a_step", "runs_a_step", "instruction", "opcode", "source"))
    for o in found:
      ms, runs = 1e3 * o.seconds / count, o.runs / count
      lines.writerow((f"{ms:.4f}", f"{runs:g}", o.name, o.opcode, o.source))


def told(found: list[Operation], count: int, folder: Path) -> str:
  """The kinds of operations that take the most, as lines."""
  kinds: Mapping[str, float] = collections.Counter()
  for o in found:
    kinds[o.kind] += o.seconds
  total = sum(kinds.values())
  lines = [f"{count} steps traced: xprof {folder}, or see operations.csv there"]
  for name, seconds in sorted(kinds.items(), key=lambda item: -item[1])[:SHOWN]:
    each = 1e3 * seconds / count
    lines.append(f"{each:10.1f} ms a step {seconds / total:5.0%}  {name}")
  return "\n".join(lines)
