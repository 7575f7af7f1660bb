"""Whole runs by the command line: train, stop, kill, go on, sample, evaluate."""

import json
import random
import signal
import subprocess
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from core import parallel
from core.checkpoint import Checkpoints
from core.errors import UserError
from core.train import train
from core.workdir import open_workdir
from pipelines import build
from tests.runs import (
  command,
  environment,
  largest_difference,
  load_config,
  on_folder,
  picture_folder,
  random_batch,
  run,
)

QUIET = ("--config.train.sample_every=0", "--config.train.eval_every=0")


@pytest.fixture(scope="module")
def flags(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
  folder = picture_folder(tmp_path_factory.mktemp("pictures"))
  constant = "--config.optim.schedule=constant"
  return (*on_folder(folder), constant, "--config.sample.prompts=('colour 1','颜色2')")


def final_state(workdir: Path):
  config = load_config("configs/quickstart.py")
  config.parallel.backend = "jit"
  return jax.device_get(build.trained(config, workdir)[2])


def logged(workdir: Path) -> list[dict]:
  lines = (workdir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
  return [row for row in map(json.loads, lines) if "loss" in row]


def steps_logged(workdir: Path) -> list[int]:
  return [row["step"] for row in logged(workdir)]


def test_train_sample_eval(tmp_path: Path, flags: tuple[str, ...]) -> None:
  done = run(command(tmp_path, *flags, "--profile_steps=2:3"))
  assert done.returncode == 0, done.stderr
  assert steps_logged(tmp_path) == [1, 2, 3, 4]
  assert "steps 2 to 3 traced" in done.stderr
  operations = (tmp_path / "profile" / "operations.csv").read_text(encoding="utf-8")
  assert "dot_general" in operations
  assert (tmp_path / "samples" / "step_0000004.png").exists()
  assert list((tmp_path / "tensorboard").iterdir())

  prompts = ("--prompt=colour 1", "--prompt=颜色 2/..", "--config.sample.per_prompt=3")
  done = run(command(tmp_path, *flags, "--mode=sample", *prompts))
  assert done.returncode == 0, done.stderr
  for name in ("00_colour_1", "01_颜色_2"):
    for ending in (".png", "_film.png", ".gif"):
      with Image.open(tmp_path / "samples" / f"{name}{ending}") as picture:
        picture.load()
  with np.load(tmp_path / "samples" / "samples.npz") as saved:
    assert saved["images"].shape == (6, 8, 8, 3)
    assert saved["images"].dtype == np.uint8
    assert list(saved["prompts"]) == ["colour 1"] * 3 + ["颜色 2/.."] * 3
    assert saved["step"] == 4

  done = run(command(tmp_path, *flags, "--mode=eval"))
  assert done.returncode == 0, done.stderr
  scores = json.loads((tmp_path / "eval.json").read_text(encoding="utf-8"))
  assert scores == json.loads(done.stdout.splitlines()[-1])
  assert scores["step"] == 4
  assert scores["num_images"] == 16
  assert np.isfinite(scores["loss"])


def test_sigterm_saves_and_a_later_run_goes_on(
  tmp_path: Path, flags: tuple[str, ...]
) -> None:
  long = (*flags, *QUIET, "--config.train.steps=100000")
  with subprocess.Popen(
    command(tmp_path, *long), env=environment(), stderr=subprocess.PIPE, text=True
  ) as process:
    for line in process.stderr:
      if line.startswith("step 3/"):
        process.send_signal(signal.SIGTERM)
        break
    rest = process.stderr.read()
  assert process.returncode == 0, rest
  assert "stopped at step" in rest
  stopped = Checkpoints(tmp_path).latest()
  assert stopped >= 3
  assert steps_logged(tmp_path) == list(range(1, stopped + 1))
  more = (*flags, *QUIET, f"--config.train.steps={stopped + 2}")
  done = run(command(tmp_path, *more))
  assert done.returncode == 0, done.stderr
  assert f"from step {stopped} to {stopped + 2}" in done.stderr
  assert steps_logged(tmp_path) == list(range(1, stopped + 3))


def test_many_bad_steps_stop_the_run(
  tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
  config = load_config("configs/quickstart.py")
  config.parallel.backend = "jit"
  config.train.steps, config.train.max_skipped = 50, 3
  config.optim.warmup_steps = 50
  one = parallel.make(config.parallel)

  def batches(start: int):
    for step in range(start, 50):
      batch = random_batch(config, step)
      if step >= 2:
        batch["x"][0, 0, 0, 0] = np.nan
      yield batch

  workdir = open_workdir(str(tmp_path), config)
  with pytest.raises(UserError, match=r"last 3 steps before step 5; start"):
    train(config, build.family(config), one, batches, workdir)
  rows = logged(tmp_path)
  assert [row["skipped_in_a_row"] for row in rows] == [0, 0, 1, 2, 3]
  assert rows[-1]["loss"] is None
  assert "still rises at the end: optim.warmup_steps is 50" in capsys.readouterr().err
  assert Checkpoints(tmp_path).latest() == 4


def test_the_loop_is_one_step_ahead_of_the_devices(
  tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  """So that a stop is heard in time: each step is begun when all but one are done."""
  config = load_config("configs/quickstart.py")
  config.parallel.backend, config.train.steps = "jit", 5
  config.train.log_every = config.train.checkpoint_every = 5
  one, begun, done, ahead = parallel.make(config.parallel), [], [], []
  compiled, wait = parallel.Parallel.compile_step, jax.block_until_ready

  def compile_step(*args):
    step = compiled(*args)

    def counted(*args):
      ahead.append(len(begun) - len(done))
      state, metrics = step(*args)
      begun.append(metrics)
      return state, metrics

    counted.memory = step.memory
    return counted

  def waited(tree):
    done.extend(m for m in begun if m is tree)
    return wait(tree)

  monkeypatch.setattr(parallel.Parallel, "compile_step", compile_step)
  monkeypatch.setattr(jax, "block_until_ready", waited)

  def batches(start: int):
    for step in range(start, 5):
      yield random_batch(config, step)

  workdir = open_workdir(str(tmp_path), config)
  train(config, build.family(config), one, batches, workdir)
  assert ahead == [0, 1, 1, 1, 1]


@pytest.mark.slow
def test_kill_at_any_moment(tmp_path: Path, flags: tuple[str, ...]) -> None:
  """kill -9 twenty times, half of them during a checkpoint's writing.

  Each run resumes from a complete checkpoint, and the last one ends with the
  parameters of a run that was left alone.
  """
  steps = 600
  plan = (
    *flags,
    *QUIET,
    f"--config.train.steps={steps}",
    "--config.train.checkpoint_every=5",
  )
  assert run(command(tmp_path / "alone", *plan)).returncode == 0
  draw, kills, resumed = random.Random(0), 0, []
  workdir = tmp_path / "killed"
  while kills < 20:
    with subprocess.Popen(
      command(workdir, *plan), env=environment(), stderr=subprocess.PIPE, text=True
    ) as process:
      for line in process.stderr:
        if "from step" in line:
          resumed.append(int(line.split("from step ")[1].split()[0]))
          break
      if kills % 2:
        wait_for_partial_checkpoint(workdir)
      else:
        time.sleep(draw.uniform(0.0, 1.0))
      process.kill()
    assert process.returncode == -signal.SIGKILL, "the run ended before it was killed"
    kills += 1
  done = run(command(workdir, *plan))
  assert done.returncode == 0, done.stderr
  assert resumed == sorted(resumed)
  assert resumed[-1] > 0
  assert largest_difference(final_state(tmp_path / "alone"), final_state(workdir)) == 0
  assert steps_logged(workdir) == list(range(1, steps + 1))


def wait_for_partial_checkpoint(workdir: Path) -> None:
  """Returns while Orbax's temporary folder is there: a write is under way."""
  deadline = time.monotonic() + 60
  while time.monotonic() < deadline:
    if any("tmp" in path.name for path in (workdir / "checkpoints").glob("*")):
      return
  raise AssertionError("no checkpoint was written within a minute")


def test_a_reader_changes_nothing(tmp_path: Path) -> None:
  """Another process may be writing there."""
  reader = Checkpoints(tmp_path, read_only=True)
  assert reader.latest() is None
  reader.close()
  assert not list(tmp_path.iterdir())
