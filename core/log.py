"""What a run says: metrics.jsonl, TensorBoard and a progress bar."""

import contextlib
import json
import math
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.progress import (
  BarColumn,
  MofNCompleteColumn,
  Progress,
  TextColumn,
  TimeRemainingColumn,
)
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.record_writer import RecordWriter

from core.family import Watch
from core.workdir import explained, write_atomic


def say(text: str) -> None:
  """One line on stderr, from the first process only."""
  if jax.process_index() == 0:
    print(text, file=sys.stderr, flush=True)


def finite(record: Mapping[str, Any]) -> dict[str, Any]:
  """A record for JSON, which has no NaN and no infinity: they become null."""
  return {
    k: None if isinstance(v, float) and not math.isfinite(v) else v
    for k, v in record.items()
  }


class Board:
  """TensorBoard's file of events, written at once.

  tensorboardX's own writer has a thread, which ends where the disk is full; the
  training would then wait for it without end.

  Args:
    folder: where TensorBoard looks.
    start: the step that a run resumes at; what other files have of later ones counts no
      more.
  """

  def __init__(self, folder: Path, start: int):
    folder.mkdir(exist_ok=True)
    # In the order of time, and never the name of another.
    name = f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}"
    self._file = RecordWriter(str(folder / name))
    self._add(0, file_version="brain.Event:2")
    self._add(start + 1, session_log=SessionLog(status=SessionLog.START))

  def write(self, step: int, values: Mapping[str, float]) -> None:
    """Scalars of a step."""
    scalars = [Summary.Value(tag=k, simple_value=v) for k, v in values.items()]
    self._add(step, summary=Summary(value=scalars))

  def close(self) -> None:
    """Closes the file; all is written."""
    self._file.close()

  def _add(self, step: int, **content: Any) -> None:
    event = Event(wall_time=time.time(), step=step, **content)
    self._file.write(event.SerializeToString())
    self._file.flush()


class Log:
  """Writes numbers by step; on processes other than the first, does nothing.

  Args:
    workdir: `metrics.jsonl` and TensorBoard's `tensorboard/` go here.
    start: the step the run resumes at; later lines, left by a killed process
      after its last checkpoint, are removed, since they will be written again.
    steps: the last step, for the bar.
  """

  def __init__(self, workdir: Path, start: int, steps: int):
    self._workdir = workdir
    self._active = jax.process_index() == 0
    self._steps = steps
    self._clock = (start, time.perf_counter())
    self._out: dict[str, int] = {}  # reports in a row that a metric was out of range
    if not self._active:
      return
    file = workdir / "metrics.jsonl"
    with explained(workdir):
      if file.exists():
        write_atomic(file, "".join(_complete_lines(file, start)))
      self._file = file.open("a", encoding="utf-8")
      self._board = Board(workdir / "tensorboard", start)
    console = Console(stderr=True)
    self._bar = Progress(
      TextColumn("training"),
      BarColumn(),
      MofNCompleteColumn(),
      TextColumn("{task.fields[note]}"),
      TimeRemainingColumn(),
      console=console,
      disable=not console.is_terminal,
    )
    self._task = self._bar.add_task("", total=steps, completed=start, note="")
    self._bar.start()

  def write(self, step: int, values: Mapping[str, float]) -> None:
    """One line of `metrics.jsonl`, and the same numbers for TensorBoard."""
    if not self._active or not values:
      return
    with explained(self._workdir):
      self._file.write(json.dumps({"step": step, **finite(values)}) + "\n")
      self._file.flush()
      self._board.write(step, values)

  def watch(
    self, step: int, values: Mapping[str, float], watched: Mapping[str, Watch]
  ) -> None:
    """Warns of a metric that three reports in a row have found out of its range."""
    for name, healthy in watched.items():
      value = values.get(name, math.nan)
      out = value < healthy.low or value > healthy.high
      self._out[name] = self._out.get(name, 0) + 1 if out else 0
      if self._out[name] == 3:
        say(f"step {step}: warning: {name} is {value:.3g}: {healthy.advice}")

  def progress(self, step: int, loss: float, batch_size: int) -> float:
    """Moves the bar (or prints a line, if there is no terminal); images/s."""
    then, began = self._clock
    now = time.perf_counter()
    self._clock = (step, now)
    speed = (step - then) * batch_size / max(now - began, 1e-9)
    if self._active:
      note = f"loss {loss:.4f}  {speed:,.0f} images/s"
      self._bar.update(self._task, completed=step, note=note)
      if self._bar.disable:
        left = (self._steps - step) * batch_size / max(speed, 1e-9)
        say(f"step {step}/{self._steps}  {note}  {left:,.0f} s left")
    return speed

  @contextlib.contextmanager
  def off_the_clock(self) -> Iterator[None]:
    """Leaves what happens inside out of the images/s."""
    began = time.perf_counter()
    yield
    step, then = self._clock
    self._clock = (step, then + time.perf_counter() - began)

  def close(self) -> None:
    """Stops the bar and closes the files."""
    if self._active:
      self._bar.stop()
      # What could not be written was said before; a full disk says it again here.
      for opened in (self._file, self._board):
        with contextlib.suppress(OSError, ValueError):
          opened.close()


def _complete_lines(file: Path, last: int) -> list[str]:
  kept = []
  for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
    try:
      step = json.loads(line)["step"]
      if step <= last:
        kept.append(line + "\n")
    # A line that a kill cut short, or that somebody else wrote.
    except (ValueError, KeyError, TypeError, IndexError):
      continue
  return kept
