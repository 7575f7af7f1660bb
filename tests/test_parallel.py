"""One device, eight devices, two processes: the same parameters."""

import json
import re
import signal
import socket
import subprocess
from pathlib import Path

import jax
import pytest
from ml_collections import ConfigDict

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
)

STEPS = 3


def config_for(backend: str, fsdp: int = 1, microbatches: int = 1) -> ConfigDict:
  config = load_config("configs/quickstart.py")
  config.parallel.backend, config.parallel.fsdp = backend, fsdp
  config.optim.microbatches = microbatches
  config.optim.schedule, config.optim.learning_rate = "constant", 1e-3
  config.model.dropout = 0.1  # its masks are keyed by example as well
  config.data.batch_size = 16
  config.train.steps = config.train.checkpoint_every = STEPS
  return config


def flow_config_for(backend: str, fsdp: int = 1) -> ConfigDict:
  """A Glow that inverts itself in its backward pass."""
  config = load_config("configs/flows/glow.py")
  config.parallel.backend, config.parallel.fsdp = backend, fsdp
  config.model.remat = config.model.scan = True
  config.optim.schedule, config.optim.learning_rate = "constant", 1e-3
  config.data.batch_size = 16
  config.train.steps = config.train.checkpoint_every = STEPS
  return config


def trained(config: ConfigDict, workdir: Path, run: parallel.Parallel | None = None):
  run = run or parallel.make(config.parallel)
  opened = open_workdir(str(workdir), config)

  def batches(start: int):
    for step in range(start, config.train.steps + 1):
      yield random_batch(config, step)

  return train(config, build.family(config), run, batches, opened)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory):
  """The state after training on one device."""
  state = trained(config_for("jit"), tmp_path_factory.mktemp("jit"))
  return jax.device_get(state)


@pytest.mark.parametrize(
  ("backend", "fsdp", "microbatches"),
  [("pmap", 1, 1), ("mesh", 1, 1), ("mesh", 4, 1), ("pmap", 1, 2)],
)
def test_eight_devices_equal_one(alone, tmp_path, backend, fsdp, microbatches) -> None:
  config = config_for(backend, fsdp, microbatches)
  state = trained(config, tmp_path)
  sharded = [a for a in jax.tree.leaves(state.params) if not a.is_fully_replicated]
  assert bool(sharded) == (fsdp > 1)
  state = jax.device_get(state)
  assert largest_difference(alone.params, state.params) < 1e-5
  assert largest_difference(alone.ema, state.ema) < 1e-5


@pytest.fixture(scope="module")
def flow_alone(tmp_path_factory: pytest.TempPathFactory):
  """The state of a flow after training on one device."""
  state = trained(flow_config_for("jit"), tmp_path_factory.mktemp("flow"))
  return jax.device_get(state)


@pytest.mark.parametrize(("backend", "fsdp"), [("pmap", 1), ("mesh", 4)])
def test_a_flow_on_eight_devices_equals_one(flow_alone, tmp_path, backend, fsdp):
  """Its actnorms start from the whole batch, wherever its rows are."""
  state = jax.device_get(trained(flow_config_for(backend, fsdp), tmp_path))
  assert largest_difference(flow_alone.params, state.params) < 1e-5
  assert largest_difference(flow_alone.ema, state.ema) < 1e-5


def test_resume_from_eight_devices_onto_two(alone, tmp_path) -> None:
  config = config_for("mesh", fsdp=4)
  config.train.steps = 2
  trained(config, tmp_path)
  two = parallel.Parallel(
    "mesh", jax.sharding.Mesh([[jax.devices()[0], jax.devices()[1]]], ("data", "fsdp"))
  )
  config = config_for("mesh", fsdp=2)
  state = jax.device_get(trained(config, tmp_path, two))
  assert state.step == STEPS
  assert largest_difference(alone.params, state.params) < 1e-5


def two_processes(workdir: Path, *flags: str) -> list[subprocess.Popen]:
  """The command as two processes of two devices, which find each other."""
  with socket.socket() as free:
    free.bind(("localhost", 0))
    port = free.getsockname()[1]
  return [
    subprocess.Popen(
      command(workdir, *flags),
      env=environment(2)
      | {
        "TAOLU_COORDINATOR": f"localhost:{port}",
        "TAOLU_PROCESSES": "2",
        "TAOLU_PROCESS": str(i),
      },
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )
    for i in range(2)
  ]


@pytest.mark.parametrize(("backend", "fsdp"), [("auto", 1), ("mesh", 2)])
def test_two_processes_equal_one(tmp_path, backend: str, fsdp: int) -> None:
  """Two gloo processes of two devices against one process of four."""
  flags = (
    *on_folder(picture_folder(tmp_path / "pictures")),
    f"--config.parallel.backend={backend}",
    f"--config.parallel.fsdp={fsdp}",
    "--config.train.eval_every=0",
    "--config.train.sample_every=0",
    "--config.sample.prompts=('colour 1',)",
  )
  processes = two_processes(tmp_path / "two", *flags)
  for process in processes:
    output = process.communicate(timeout=600)[0]
    assert process.returncode == 0, output
  one = subprocess.run(
    command(tmp_path / "one", *flags), env=environment(4), timeout=600, check=False
  )
  assert one.returncode == 0
  config = config_for("jit")
  states = [
    jax.device_get(build.trained(config, tmp_path / name)[2]) for name in ("one", "two")
  ]
  assert largest_difference(*states) < 1e-5
  steps = [
    [json.loads(line)["step"] for line in file.read_text(encoding="utf-8").splitlines()]
    for file in (tmp_path / name / "metrics.jsonl" for name in ("one", "two"))
  ]
  assert steps[0] == steps[1]


def test_sigterm_to_one_process_stops_all(tmp_path: Path) -> None:
  """They agree on the step, save it, and end with 0."""
  flags = (
    *on_folder(picture_folder(tmp_path / "pictures")),
    "--config.optim.schedule=constant",
    "--config.train.steps=1000000",
    "--config.train.eval_every=0",
    "--config.train.sample_every=0",
    "--config.sample.prompts=('colour 1',)",
  )
  first, second = two_processes(tmp_path / "run", *flags)
  for line in first.stdout:
    if line.startswith("step 3/"):
      break
  second.send_signal(signal.SIGTERM)
  said = first.communicate(timeout=600)[0]
  rest = second.communicate(timeout=600)[0]
  assert (first.returncode, second.returncode) == (0, 0), said + rest
  (step,) = re.findall(r"stopped at step (\d+), saved", said)
  assert Checkpoints(tmp_path / "run").latest() == int(step) >= 3


@pytest.mark.parametrize(
  ("backend", "fsdp", "words"),
  [("jit", 2, "fsdp=2"), ("mesh", 3, "fsdp=3"), ("gpu", 1, "known: auto")],
)
def test_refusals(backend: str, fsdp: int, words: str) -> None:
  with pytest.raises(UserError, match=words):
    parallel.make(ConfigDict({"backend": backend, "fsdp": fsdp}))


def test_auto_takes_the_simplest() -> None:
  made = [parallel.make(ConfigDict({"backend": "auto", "fsdp": n})) for n in (1, 4)]
  assert [run.backend for run in made] == ["pmap", "mesh"]


def test_batch_must_divide() -> None:
  run = parallel.make(ConfigDict({"backend": "pmap", "fsdp": 1}))
  run.check_batch(32, 4)
  with pytest.raises(UserError, match="multiple of 32"):
    run.check_batch(16, 4)
