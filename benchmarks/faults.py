"""Breaks runs on purpose at random moments, restarts them, and counts what is lost.

    python benchmarks/faults.py --results=FILE [--times=20] [--seed=0] [FAULT ...]
    python benchmarks/faults.py --results=FILE --table

Each trial trains configs/quickstart.py:tiny on small pictures until a random step, then
a fault strikes; the same command is given again and runs to its end. Compared with a
run that was left alone: the loss of every step, each once, and the last evaluation.
Trials are added to FILE, a line of JSON each; what is there already is passed over, so
that it goes on where it was stopped. `full_disk` needs root, for a small file system of
its own.
"""

import argparse
import atexit
import json
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from PIL import Image

import main as command
from core import cli

ROOT = Path(__file__).resolve().parents[1]
STEPS, INTERVAL = 60, 10
LIMIT = 300  # seconds after which a process that should have ended hangs
SILENCE = 30  # seconds after which a process is missed, at the latest
TOLERANCE = 1e-5
# Programs that run for seconds: compiled for one device, fast rather than well.
QUICKLY = (
  "--xla_force_host_platform_device_count=1 --xla_backend_optimization_level=0"
  " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
)
Trial = dict[str, Any]


class Run:
  """The command as one process or several, forked from this one, which has imported it.

  Args:
    folder: holds the pictures; logs and the workdir are made in it.
    workdir: of the run.
    count: of processes, of one device each.
  """

  def __init__(self, folder: Path, workdir: Path, count: int = 1):
    self.workdir, self._logs, self.pids, self.codes = workdir, [], [], {}
    argv = [
      "main.py",
      f"--config={ROOT}/configs/quickstart.py:tiny",
      f"--workdir={workdir}",
      "--config.data.name=folder",
      f"--config.data.path={folder / 'pictures'}",
      "--config.data.languages=('en',)",
      "--config.data.match=",
      "--config.data.eval_split=train",
      "--config.optim.schedule=constant",
      "--config.sample.prompts=('colour 1',)",
      f"--config.train.steps={STEPS}",
      f"--config.train.checkpoint_every={INTERVAL}",
      "--config.train.sample_every=0",
      "--config.train.eval_every=0",
    ]
    with socket.socket() as free:
      free.bind(("localhost", 0))
      port = free.getsockname()[1]
    for i in range(count):
      env = {"XLA_FLAGS": QUICKLY}
      if count > 1:
        env |= {
          "TAOLU_COORDINATOR": f"localhost:{port}",
          "TAOLU_PROCESSES": str(count),
          "TAOLU_PROCESS": str(i),
          "TAOLU_JOIN_SECONDS": str(SILENCE),
          "TAOLU_HEARTBEAT_SECONDS": str(SILENCE),
        }
      self._logs.append(folder / f"{workdir.name}.{i}.log")
      self._logs[-1].write_text("", encoding="utf-8")
      self.pids.append(forked(argv, env, self._logs[-1]))

  def log(self, i: int) -> str:
    """What process i has printed."""
    return self._logs[i].read_text(encoding="utf-8", errors="replace")

  def running(self) -> list[int]:
    """The numbers of the processes that have not ended."""
    for i, pid in enumerate(self.pids):
      if i not in self.codes:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
          self.codes[i] = os.waitstatus_to_exitcode(status)
    return [i for i in range(len(self.pids)) if i not in self.codes]

  def ended(self, seconds: float = LIMIT) -> bool:
    """Waits for all processes; False, and they are killed, if they hang."""
    until = time.monotonic() + seconds
    while left := self.running():
      if time.monotonic() > until:
        for i in left:
          os.kill(self.pids[i], signal.SIGKILL)
          os.waitpid(self.pids[i], 0)
        return False
      time.sleep(0.05)
    return True

  def reach(self, step: int) -> None:
    """Returns when `step` has been logged, or a process has ended."""
    while len(self.running()) == len(self.pids) and last_step(self.workdir) < step:
      time.sleep(0.02)


def forked(argv: list[str], env: dict[str, str], log: Path) -> int:
  """The id of a new process that does what `main.py` does with such a command line."""
  if pid := os.fork():
    return pid
  code = 1
  try:
    out = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(out, 1)
    os.dup2(out, 2)
    os.environ.update(env)
    sys.argv = argv
    cli.leave(cli.status(command.main))
  except SystemExit as leaving:
    code = leaving.code or 0
    atexit._run_exitfuncs()
  except BaseException:
    traceback.print_exc()
  finally:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def rows(workdir: Path) -> list[dict[str, Any]]:
  """The complete lines of a run's metrics."""
  found = []
  file = workdir / "metrics.jsonl"
  if file.exists():
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
      try:
        found.append(json.loads(line))
      except ValueError:
        continue
  return found


def last_step(workdir: Path) -> int:
  """The last step that was logged; 0 before any."""
  return max((row["step"] for row in rows(workdir)), default=0)


def checkpoints(workdir: Path) -> list[int]:
  """The steps of the complete checkpoints."""
  found = (workdir / "checkpoints").glob("*")
  return sorted(int(place.name) for place in found if place.name.isdecimal())


def same(workdir: Path, other: Path) -> bool:
  """Whether two runs have logged the same steps and losses, and the same score."""
  curves = []
  for place in (workdir, other):
    found = rows(place)
    curves.append([(r["step"], r["loss"]) for r in found if "loss" in r])
    curves[-1] += [(r["step"], r["eval/loss"]) for r in found if "eval/loss" in r]
  if [step for step, _ in curves[0]] != [step for step, _ in curves[1]]:
    return False
  return np.allclose(*curves, rtol=0, atol=TOLERANCE)


def kill(run: Run, draw: random.Random) -> None:
  """kill -9 of one process, whichever."""
  send(run, draw.randrange(len(run.pids)), signal.SIGKILL)


def preempt(run: Run, draw: random.Random) -> None:
  """SIGTERM, as before a machine is taken away."""
  send(run, 0, signal.SIGTERM)


def send(run: Run, i: int, signum: int) -> None:
  """A signal to process i, unless it has ended."""
  if i in run.running():
    os.kill(run.pids[i], signum)


def damage(run: Run, draw: random.Random) -> None:
  """kill -9, then a bit of the newest checkpoint flips, or a file is cut or gone."""
  kill(run, draw)
  run.ended()
  newest = run.workdir / "checkpoints" / str(checkpoints(run.workdir)[-1])
  files = sorted(file for file in newest.rglob("*") if file.is_file())
  # The larger a file, the likelier it is hit.
  file = draw.choices(files, [f.stat().st_size + 1 for f in files])[0]
  data = bytearray(file.read_bytes())
  match draw.choice(("bit", "cut", "gone")):
    case "bit":
      data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
      file.write_bytes(data)
    case "cut":
      file.write_bytes(data[: draw.randrange(len(data))])
    case "gone":
      file.unlink()


def fill(run: Run, draw: random.Random) -> None:
  """No byte is left on the file system of the run."""
  with (run.workdir.parent / "filler").open("wb", buffering=0) as filler:
    try:
      while filler.write(bytes(2**16)):
        pass
    except OSError:
      return


def protect(run: Run, draw: random.Random) -> None:
  """The folder of the checkpoints becomes read-only."""
  place = str(run.workdir / "checkpoints")
  if os.geteuid():
    os.chmod(place, 0o555)
    return
  # Permissions do not bind root.
  subprocess.run(["mount", "--bind", place, place], check=True)
  # Busy while a file of a checkpoint is open.
  again = ["mount", "-o", "remount,bind,ro", place]
  until = time.monotonic() + LIMIT
  while subprocess.run(again, capture_output=True, check=False).returncode:
    if time.monotonic() > until:
      raise TimeoutError(f"{place} could not be made read-only")
    time.sleep(0.02)


def released(place: Path) -> None:
  """Lets the folder of the checkpoints be written to again."""
  if os.geteuid():
    place.chmod(0o755)
  else:
    subprocess.run(["umount", "--lazy", str(place)], check=True)


# name -> (what happens, processes, earliest step, how the command ends)
FAULTS: dict[str, tuple[Callable[[Run, random.Random], None], int, int, set[int]]] = {
  "kill": (kill, 1, 0, {-signal.SIGKILL}),
  "kill_one_of_two": (kill, 2, 0, {-signal.SIGKILL, 1, 2}),
  "preemption": (preempt, 1, 0, {0, -signal.SIGTERM}),
  "damaged_checkpoint": (damage, 1, 2 * INTERVAL + 1, {-signal.SIGKILL}),
  "full_disk": (fill, 1, INTERVAL + 1, {2}),
  "read_only": (protect, 1, INTERVAL + 1, {2}),
}


def trial(name: str, folder: Path, draw: random.Random) -> Trial:
  """Breaks one run and goes on with it."""
  strike, count, earliest, codes = FAULTS[name]
  home = folder / "broken"
  shutil.rmtree(home, ignore_errors=True)
  home.mkdir()
  workdir = home / "run"
  if name == "full_disk":
    mounted(home)
  try:
    run = Run(folder, workdir, count)
    # Some strike while it starts, or as it ends.
    step = draw.randrange(earliest, STEPS)
    run.reach(step)
    # Where there is one checkpoint only, none comes before it.
    least = {"damaged_checkpoint": 2, "full_disk": 1, "read_only": 1}.get(name, 0)
    while len(checkpoints(workdir)) < least and run.running():
      time.sleep(0.02)
    time.sleep(draw.uniform(0, 0.5 if step else 10))
    strike(run, draw)
    struck, began = last_step(workdir), time.monotonic()
    hung = not run.ended()
    took = time.monotonic() - began
    said = True
    if name in ("kill_one_of_two", "full_disk", "read_only"):
      left = [i for i, code in run.codes.items() if code >= 0]
      said = all("taolu: " in run.log(i) for i in left if run.codes[i])
    complete = checkpoints(workdir)
    (home / "filler").unlink(missing_ok=True)
    if name == "read_only":
      released(workdir / "checkpoints")
    before = {i: run.log(i) for i in range(count)}
    again = Run(folder, workdir, count)
    hung = hung or not again.ended()
    log = again.log(0)
    starts = [line for line in log.splitlines() if " from step " in line]
    start = int(starts[0].split(" from step ")[1].split()[0]) if starts else -1
    expected = complete[-1] if complete else 0
    if name == "damaged_checkpoint" and "is damaged" in log:
      expected = complete[-2]
    well = set(again.codes.values()) == {0} and same(workdir, folder / "alone")
    right = not hung and set(run.codes.values()) <= codes | {0}
    found = {
      "fault": name,
      "struck": struck,
      "start": start,
      "checkpoints": complete,
      "codes": run.codes,
      "hung": hung,
      "said": said and right,
      "same": well,
      "lost": start < expected,
      "again": max(0, struck - start),
      "seconds": round(took, 1),
      "fallback": "is damaged" in log,
    }
    if not (said and right and well) or found["lost"]:
      print(json.dumps(before | {"again": log}, indent=1), file=sys.stderr)
    return found
  finally:
    if name == "full_disk":
      subprocess.run(["umount", "--lazy", str(home)], check=True)


def mounted(place: Path) -> None:
  """A file system of 16 MB in memory."""
  argv = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(place)]
  subprocess.run(argv, check=True)


def pictures(folder: Path) -> None:
  """One-coloured squares with captions."""
  folder.mkdir()
  lines = []
  for i in range(24):
    colour = tuple(int(c) for c in np.random.default_rng(i).integers(0, 256, 3))
    Image.new("RGB", (8, 8), colour).save(folder / f"{i:03d}.png")
    lines.append(json.dumps({"file": f"{i:03d}.png", "caption": f"colour {i}"}))
  (folder / "captions.jsonl").write_text("\n".join(lines), encoding="utf-8")


def table(trials: Sequence[Trial]) -> str:
  """A row of Markdown a fault."""
  lines = [
    "| fault | times | hangs | no sentence | ended otherwise"
    " | complete checkpoints lost | steps done again: median, most | slowest stop, s |",
    "|---|---|---|---|---|---|---|---|",
  ]
  for name in FAULTS:
    own = [t for t in trials if t["fault"] == name]
    if own:
      again = sorted(t["again"] for t in own)
      lines.append(
        f"| {name} | {len(own)} | {sum(t['hung'] for t in own)}"
        f" | {sum(not t['said'] for t in own)} | {sum(not t['same'] for t in own)}"
        f" | {sum(t['lost'] for t in own)} | {again[len(again) // 2]}, {again[-1]}"
        f" | {max(t['seconds'] for t in own):.1f} |"
      )
  return "\n".join(lines)


def read(file: Path) -> list[Trial]:
  """The trials that are done."""
  if not file.exists():
    return []
  return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


def measure(flags: argparse.Namespace, folder: Path) -> None:
  """Adds the trials that are missing, one of each fault in turn."""
  pictures(folder / "pictures")
  alone = Run(folder, folder / "alone")
  if not alone.ended() or alone.codes != {0: 0}:
    sys.exit(alone.log(0))
  for i in range(flags.times):
    for name in flags.faults or FAULTS:
      if sum(t["fault"] == name for t in read(flags.results)) > i:
        continue
      found = trial(name, folder, random.Random(f"{flags.seed} {name} {i}"))
      with flags.results.open("a", encoding="utf-8") as results:
        results.write(json.dumps(found) + "\n")
      print(json.dumps(found), flush=True)


def main(argv: Sequence[str]) -> None:
  """Does what the command line says."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("faults", nargs="*", choices=[*FAULTS, []])
  parser.add_argument("--results", type=Path, required=True)
  parser.add_argument("--times", type=int, default=20)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--table", action="store_true")
  flags = parser.parse_args(argv)
  if flags.table:
    print(table(read(flags.results)))
    return
  resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
  # No TemporaryDirectory: each process that is forked would remove it at its end.
  folder = Path(tempfile.mkdtemp())
  try:
    folder.chmod(0o755)
    measure(flags, folder)
  finally:
    shutil.rmtree(folder, ignore_errors=True)
  print(table(read(flags.results)))


if __name__ == "__main__":
  main(sys.argv[1:])
