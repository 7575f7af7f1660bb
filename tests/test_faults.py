"""Hosts that are missing or die, other numbers of devices, damaged checkpoints."""

import errno
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from core import checkpoint
from core.checkpoint import Checkpoints
from core.errors import UserError
from tests.runs import ROOT, environment, largest_difference, picture_folder
from tests.worker import trained

SECONDS = 4
STEPS = 6


def started(
  count: int, *arguments: str, of: int = 0, devices: int = 1
) -> list[subprocess.Popen]:
  """The first `count` processes of a run of `of`, which find each other."""
  with socket.socket() as free:
    free.bind(("localhost", 0))
    port = free.getsockname()[1]
  return [
    subprocess.Popen(
      [sys.executable, "-m", "tests.worker", *arguments],
      cwd=ROOT,
      env=environment(devices)
      | {
        "TAOLU_COORDINATOR": f"localhost:{port}",
        "TAOLU_PROCESSES": str(of or count),
        "TAOLU_PROCESS": str(i),
        "TAOLU_JOIN_SECONDS": str(SECONDS if of else 300),
        "TAOLU_HEARTBEAT_SECONDS": str(60 if "train" in arguments else SECONDS),
      },
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )
    for i in range(count)
  ]


def outputs(processes: list[subprocess.Popen]) -> list[str]:
  """What processes print that all end well.

  All are read at once: one whose pipe is full would stop, and the others with it.
  """
  with ThreadPoolExecutor() as pool:
    found = list(pool.map(lambda p: p.communicate(timeout=600)[0], processes))
  assert [p.returncode for p in processes] == [0] * len(processes), found
  return found


def last_words(process: subprocess.Popen) -> tuple[int, str]:
  """How a process ends, and the last line that it prints."""
  output = process.communicate(timeout=300)[0]
  return process.returncode, output.strip().splitlines()[-1]


def test_a_missing_process_is_reported() -> None:
  """Two of three come."""
  for i, process in enumerate(started(2, "join", of=3)):
    status, line = last_words(process)
    assert status == 1
    assert re.match(rf"taolu: process {i} waited \d+ s for the other processes", line)
    assert "2 of 3 came, not process 2; start all" in line


def test_a_missing_coordinator_is_reported() -> None:
  first, second = started(2, "join", of=2)
  first.kill()
  first.communicate()
  status, line = last_words(second)
  assert status == 1
  assert re.search(r"waited \d+ s for the other processes .* no coordinator ans", line)


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_other(victim: int) -> None:
  """Within the time of a heartbeat, where they exchange nothing else."""
  processes = started(2, "join")
  for process in processes:
    assert process.stdout.readline() == "joined\n"
  processes[victim].kill()
  began = time.monotonic()
  status, line = last_words(processes[1 - victim])
  assert time.monotonic() - began < 5 * SECONDS
  assert status == 1
  assert line.startswith(f"taolu: process {1 - victim} of 2 stops, since another")
  processes[victim].communicate()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
  return picture_folder(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def alone(pictures: Path, tmp_path_factory: pytest.TempPathFactory):
  """The state and the losses after training on one device, left alone."""
  folder = tmp_path_factory.mktemp("alone")
  state = jax.device_get(trained(pictures, folder, STEPS, devices=jax.devices()[:1]))
  return state, losses(folder), folder


def losses(workdir: Path) -> dict[int, float]:
  lines = (workdir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
  rows = [row for row in map(json.loads, lines) if "loss" in row]
  assert len({row["step"] for row in rows}) == len(rows)
  return {row["step"]: row["loss"] for row in rows}


def flip(folder: Path) -> None:
  """One bit of the largest file."""
  files = (file for file in folder.rglob("*") if file.is_file())
  file = max(files, key=lambda file: file.stat().st_size)
  data = bytearray(file.read_bytes())
  data[len(data) // 2] ^= 1
  file.write_bytes(data)


@pytest.fixture(scope="module")
def four(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
  """The workdir of four processes of two devices, after four steps."""
  folder = tmp_path_factory.mktemp("four")
  outputs(started(4, "train", str(pictures), str(folder), "4", "1", devices=2))
  return folder


@pytest.mark.parametrize("count", [1, 2, 8])
def test_eight_devices_of_four_processes_go_on_as(
  four, alone, pictures, tmp_path, count
):
  """Its losses are those of one device, and each step is done once."""
  workdir = Path(shutil.copytree(four, tmp_path / "run"))
  state = trained(pictures, workdir, STEPS, devices=jax.devices()[:count])
  assert largest_difference(alone[0].params, state.params) < 1e-5
  found = losses(workdir)
  assert list(found) == list(range(1, STEPS + 1))
  assert max(abs(found[step] - alone[1][step]) for step in found) < 1e-5


def test_two_processes_use_the_checkpoint_before_a_damaged_one(
  four, alone, pictures, tmp_path
):
  """Each reads a part of the weights, and they agree on which is damaged."""
  workdir = Path(shutil.copytree(four, tmp_path / "run"))
  flip(workdir / "checkpoints" / "4")
  arguments = ("train", str(pictures), str(workdir), str(STEPS), "2")
  said = outputs(started(2, *arguments))
  assert "4 is damaged (" in said[0]
  assert "training goes on from step 2" in said[0]
  assert (workdir / "damaged" / "4").is_dir()
  found = losses(workdir)
  assert max(abs(found[step] - alone[1][step]) for step in found) < 1e-5
  assert list(found) == list(range(1, STEPS + 1))


def test_a_run_without_a_whole_checkpoint_stops(alone, pictures, tmp_path):
  workdir = Path(shutil.copytree(alone[2], tmp_path / "run"))
  for place in (workdir / "checkpoints").iterdir():
    flip(place)
  with pytest.raises(UserError, match=r"6 does not fit .* or is damaged .*before\.$"):
    trained(pictures, workdir, STEPS + 2, devices=jax.devices()[:1])
  assert not (workdir / "damaged").exists()


def test_checksums_know_bits_and_not_places() -> None:
  whole = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
  tree = {"a": whole, "b": np.ones(3, bool), "c": np.float32(1)}
  mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("data", "fsdp"))

  def placed(*axes: str) -> dict:
    place = NamedSharding(mesh, PartitionSpec(*axes))
    return tree | {"a": jax.device_put(whole, place)}

  sums = {checkpoint.checksum(t) for t in (tree, placed(), placed("fsdp"))}
  assert len(sums) == 1
  for bit in (0, 31):
    other = whole.copy()
    other.view(np.uint32)[3, 1] ^= np.uint32(1 << bit)
    assert checkpoint.checksum(tree | {"a": other}) not in sums


@pytest.mark.parametrize(
  "number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EFBIG]
)
def test_a_folder_that_can_t_be_written_is_said(tmp_path, monkeypatch, number) -> None:
  checkpoints = Checkpoints(tmp_path)
  state = {"step": np.zeros(())}
  checkpoints.save(1, state)
  checkpoints.wait()

  def refuse(*args: object, **kwargs: object) -> None:
    raise RuntimeError(f"write() failed: {os.strerror(number)}; writing x")

  monkeypatch.setattr(checkpoints._manager, "save", refuse)
  words = f"can't be written to .* \\({os.strerror(number)}\\); make room"
  with pytest.raises(UserError, match=words):
    checkpoints.save(2, state)
  assert checkpoints.latest() == 1
  checkpoints.close()


@pytest.mark.slow
def test_faults_at_random_moments_lose_nothing(tmp_path: Path) -> None:
  """Each twice; docs/pods.md has them twenty times, by the same script."""
  file = tmp_path / "faults.jsonl"
  faults = ["kill", "kill_one_of_two", "preemption", "damaged_checkpoint"]
  mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)]
  may_mount = os.geteuid() == 0 and subprocess.run(mount, check=False).returncode == 0
  if may_mount:
    subprocess.run(["umount", str(tmp_path)], check=True)
    faults.append("full_disk")
  if may_mount or os.geteuid():  # permissions do not bind root
    faults.append("read_only")
  argv = [sys.executable, "benchmarks/faults.py", "--times=2", f"--results={file}"]
  subprocess.run([*argv, *faults], cwd=ROOT, check=True, timeout=3600)
  trials = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
  assert len(trials) == 2 * len(faults)
  for t in trials:
    assert (t["hung"], t["said"], t["same"], t["lost"]) == (False, True, True, False), t
