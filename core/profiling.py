"""Where a training step's time goes: a trace for xprof, and a table of operations."""

import collections
import contextlib
import csv
import io
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

import jax
from jax.profiler import ProfileData, StepTraceAnnotation
from jaxtyping import Array, PyTree

from core import hlo
from core.errors import UserError
from core.log import say
from core.parallel import Step
from core.workdir import explained, write_atomic

SHOWN = 8  # kinds of operations that are printed
# What holds others, whose time would count twice.
HOLDERS = ("while", "call", "conditional")
# Their source may be a transposition that XLA made part of them.
PRODUCTS = {"dot": "dot_general", "convolution": "conv_general_dilated"}

Call = Callable[[PyTree, PyTree, Array], tuple[PyTree, PyTree]]


class Operation(NamedTuple):
  """One instruction of the step: all its runs in the traced steps, on all devices."""

  name: str
  opcode: str
  source: str  # its layer and primitive, of a fusion those of its last operation, or ''
  seconds: float
  runs: int

  @property
  def kind(self) -> str:
    """The primitive that it computes, or XLA's word where none is told."""
    told = self.source.rpartition("/")[2] or self.opcode
    return PRODUCTS.get(self.opcode, told)


def steps(text: str, mode: str = "train") -> range:
  """The steps of FIRST:LAST, both included; none for ''.

  Raises:
    UserError: it is not so written, or the mode is another than train.
  """
  if not text:
    return range(0)
  if mode != "train":
    raise UserError(f"--profile_steps is for --mode=train, not --mode={mode}.")
  found = re.fullmatch(r"([1-9][0-9]*):([1-9][0-9]*)", text)
  if not found or int(found[2]) < int(found[1]):
    raise UserError(
      f"--profile_steps={text!r} must be FIRST:LAST, numbers of steps such as 20:24."
    )
  return range(int(found[1]), int(found[2]) + 1)


def check(wanted: range, end: int) -> None:
  """Raises UserError if the training ends before the first of them."""
  if wanted and wanted[0] > end:
    raise UserError(
      f"--profile_steps begins with step {wanted[0]}, and the last is {end}"
      " (train.steps); of a system, give the --stage that is meant."
    )


def check_place(folder: Path) -> None:
  """Raises UserError if a trace cannot be written there."""
  if jax.process_index() == 0:
    with explained(folder):
      folder.mkdir(parents=True, exist_ok=True)
      tempfile.TemporaryFile(dir=folder).close()


@contextlib.contextmanager
def traced(
  step: Step,
  wanted: range,
  start: int,
  devices: int,
  folder: Path,
  off_the_clock: Callable[[], AbstractContextManager[None]],
) -> Iterator[Call]:
  """The step; its calls of the wanted steps are traced, by the first process.

  A trace that cannot be written is told and costs the training nothing.

  Args:
    step: what is called for each step.
    wanted: steps, from 1 on. Those that are done already are passed over.
    start: steps that are done before the first call.
    devices: of this process.
    folder: `plugins/profile/...` as xprof reads it and `operations.csv` go here.
    off_the_clock: around what is not training.
  """
  wanted = range(max(wanted.start, start + 1), wanted.stop)
  if not wanted or jax.process_index():
    if not wanted:
      say(f"--profile_steps: those steps are done, {start} are; nothing is traced")
    yield step
    return
  number, began, results = start, None, None

  def begin() -> None:
    nonlocal began
    try:
      jax.profiler.start_trace(folder, profiler_options=quiet())
      began = time.perf_counter()
    except RuntimeError as error:  # another trace is under way
      say(f"--profile_steps: nothing is traced ({error})")

  def finish(seconds: float) -> None:
    nonlocal began, results
    began = results = None
    count = number - wanted[0] + 1
    try:
      jax.profiler.stop_trace()
      found = operations(newest(folder), step.compiled.as_text() or "")
      write_atomic(folder / "operations.csv", table(found, count * devices))
    except Exception as error:  # whatever it is, the training is worth more
      say(f"--profile_steps: the trace could not be written to {folder} ({error})")
      return
    each = 1e3 * seconds / count
    say(
      f"steps {wanted[0]} to {number} traced, {each:.1f} ms each with what ran between"
    )
    say(told(found, count * devices, folder))

  def call(state: PyTree, batch: PyTree, rng: Array) -> tuple[PyTree, PyTree]:
    nonlocal number, results
    if number + 1 == wanted[0]:
      jax.block_until_ready(state)  # the step before may still run
      with off_the_clock():
        begin()
    with StepTraceAnnotation("train", step_num=number + 1):
      found = step(state, batch, rng)
    number += 1
    if began is not None:
      results = found[1]
      if number == wanted[-1]:
        jax.block_until_ready(results)
        seconds = time.perf_counter() - began
        with off_the_clock():
          finish(seconds)
    return found

  try:
    yield call
  except BaseException:
    if began is not None:
      with contextlib.suppress(OSError, RuntimeError):
        jax.profiler.stop_trace()
    raise
  if began is not None:  # stopped before the last of them
    jax.block_until_ready(results)
    finish(time.perf_counter() - began)


def quiet() -> jax.profiler.ProfileOptions:
  """Without Python's own calls, which would be most of the trace."""
  options = jax.profiler.ProfileOptions()
  options.python_tracer_level = 0
  return options


def newest(folder: Path) -> Path:
  """The last trace that was written there; raises OSError if there is none."""
  found = list(folder.glob("plugins/profile/*/*.xplane.pb"))
  if not found:
    raise FileNotFoundError("there is none")
  return max(found, key=lambda file: file.stat().st_mtime)


def operations(trace: Path, program: str) -> list[Operation]:
  """What the trace has of the program's instructions, the costliest first.

  Where events carry the names of their instruction and its program, as on CPUs; where
  they do not, the list is empty.

  Args:
    trace: an .xplane.pb.
    program: its text, as of `compiled.as_text()`.
  """
  computations = hlo.parse(program).computations.values()
  known = {name: found for part in computations for name, found in part.items()}
  named = re.match(r"HloModule ([^\s,]+)", program)
  spent: dict[str, list[float]] = collections.defaultdict(list)
  for plane in ProfileData.from_file(str(trace)).planes:
    for line in plane.lines:
      for event in line.events:
        if event.name.startswith("end: "):
          continue
        stats = dict(event.stats)
        name = stats.get("hlo_op")
        if name in known and named and stats.get("hlo_module") == named[1]:
          spent[name].append(event.duration_ns / 1e9)
  found = [
    Operation(name, known[name].opcode, source(known[name]), sum(each), len(each))
    for name, each in spent.items()
    if known[name].opcode not in HOLDERS
  ]
  return sorted(found, key=lambda o: -o.seconds)


def source(instruction: hlo.Instruction) -> str:
  """Its layer and primitive: 'jit(step)/.../conv_general_dilated', or ''."""
  named = re.search(r'op_name="([^"]*)"', instruction.rest)
  return named[1] if named else ""


def table(found: list[Operation], count: int) -> str:
  """Every operation as a line of CSV; `count` is of steps times devices."""
  text = io.StringIO()
  lines = csv.writer(text, lineterminator="\n")
  lines.writerow(("ms_a_step", "runs_a_step", "instruction", "opcode", "source"))
  for o in found:
    ms, runs = 1e3 * o.seconds / count, o.runs / count
    lines.writerow((f"{ms:.4f}", f"{runs:g}", o.name, o.opcode, o.source))
  return text.getvalue()


def told(found: list[Operation], count: int, folder: Path) -> str:
  """The kinds of operations that take the most, as lines; `count` as in `table`.

  Threads of one device work side by side, so their times may add up to more than the
  clock's.
  """
  kinds: collections.Counter[str] = collections.Counter()
  for o in found:
    kinds[o.kind] += o.seconds
  if not kinds:
    return f"the trace tells no operation of the step by its name; xprof {folder}"
  total = sum(kinds.values())
  lines = [
    f"what a device's operations took (xprof {folder}, or operations.csv there):"
  ]
  for name, seconds in kinds.most_common(SHOWN):
    each = 1e3 * seconds / count
    lines.append(f"{each:10.1f} ms a step {seconds / total:5.0%}  {name}")
  return "\n".join(lines)
