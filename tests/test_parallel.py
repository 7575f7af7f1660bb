"""One device, eight devices, two processes: the same parameters."""

import json
import re
import signal
import socket
import subprocess
from pathlib import Path

import jax
import pytest
from jax.sharding import PartitionSpec
from ml_collections import ConfigDict

from core import hlo, parallel
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
AXES = ("data", "fsdp", "tensor")


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
  check(alone, config_for(backend, fsdp, microbatches), tmp_path)


@pytest.mark.parametrize("fsdp", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_devices_that_share_layers_equal_one(alone, tmp_path, fsdp) -> None:
  """Two heads, so that two devices have one each, beside two or four times the rows."""
  config = config_for("mesh", fsdp)
  config.parallel.tensor = 2
  check(alone, config, tmp_path)


def check(alone, config: ConfigDict, workdir: Path) -> None:
  state = trained(config, workdir)
  sharded = [a for a in jax.tree.leaves(state.params) if not a.is_fully_replicated]
  assert bool(sharded) == (config.parallel.fsdp * config.parallel.tensor > 1)
  state = jax.device_get(state)
  assert largest_difference(alone.params, state.params) < 1e-5
  assert largest_difference(alone.ema, state.ema) < 1e-5


@pytest.fixture(scope="module")
def flow_alone(tmp_path_factory: pytest.TempPathFactory):
  """The state of a flow after training on one device."""
  state = trained(flow_config_for("jit"), tmp_path_factory.mktemp("flow"))
  return jax.device_get(state)


@pytest.mark.parametrize(
  ("backend", "fsdp"),
  [("pmap", 1), pytest.param("mesh", 4, marks=pytest.mark.slow)],
)
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
    "mesh", jax.sharding.Mesh([[jax.devices()[:1], jax.devices()[1:2]]], AXES)
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


# tests/test_faults.py has a mesh of two processes too.
@pytest.mark.parametrize(
  ("backend", "fsdp"),
  [("auto", 1), pytest.param("mesh", 2, marks=pytest.mark.slow)],
)
def test_two_processes_equal_one(tmp_path, backend: str, fsdp: int) -> None:
  """Two gloo processes of two devices against one process of four."""
  flags = (
    *on_folder(picture_folder(tmp_path / "pictures")),
    f"--config.parallel.backend={backend}",
    f"--config.parallel.fsdp={fsdp}",
    "--config.model.depth=1",
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
  config.model.depth = 1
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
    "--config.model.depth=1",
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
  ("backend", "fsdp", "tensor", "words"),
  [
    ("jit", 2, 1, "fsdp=2"),
    ("mesh", 3, 1, "fsdp=3"),
    ("gpu", 1, 1, "known: auto"),
    ("pmap", 1, 2, "tensor=2"),
    ("mesh", 1, 3, "tensor=3"),
    ("mesh", 4, 4, "fsdp=4 times parallel.tensor=4"),
  ],
)
def test_refusals(backend: str, fsdp: int, tensor: int, words: str) -> None:
  with pytest.raises(UserError, match=words):
    parallel.make(ConfigDict({"backend": backend, "fsdp": fsdp, "tensor": tensor}))


def test_auto_takes_the_simplest() -> None:
  ways = [(1, 1), (4, 1), (1, 2)]
  given = [{"backend": "auto", "fsdp": f, "tensor": t} for f, t in ways]
  made = [parallel.make(ConfigDict(each)) for each in given]
  assert [run.backend for run in made] == ["pmap", "mesh", "mesh"]
  assert [run.parts for run in made] == [8, 8, 4]


@pytest.mark.parametrize(
  ("layer", "name", "shape", "spec"),
  [
    ("mlp_in", "kernel", (3, 32, 64), (None, "fsdp", "tensor")),
    ("mlp_out", "kernel", (3, 64, 32), (None, "tensor", "fsdp")),
    ("qkv", "kernel", (32, 96), (("fsdp", "tensor"), None)),  # its parts: in use
    ("out", "kernel", (3, 3, 5, 64), (None, None, None, ("fsdp", "tensor"))),
    ("modulation", "kernel", (33, 64), (None, ("fsdp", "tensor"))),
    ("norm", "scale", (32,), ()),
  ],
)
def test_each_parameter_has_its_place(layer, name, shape, spec) -> None:
  ways = {"data": 2, "fsdp": 2, "tensor": 2}
  assert parallel.place(ways, layer, name, shape) == PartitionSpec(*spec)


def test_without_tensor_kernels_are_cut_along_their_inputs() -> None:
  ways, cut = (
    {"data": 2, "fsdp": 4, "tensor": 1},
    PartitionSpec(("fsdp", "tensor"), None),
  )
  for layer in ("mlp_in", "mlp_out", "qkv", "out"):
    assert parallel.place(ways, layer, "kernel", (64, 32)) == cut


@pytest.mark.parametrize(
  "file",
  [pytest.param("quickstart", marks=pytest.mark.slow), "autoregressive/decoder"],
)
def test_devices_that_share_layers_share_their_work(file: str) -> None:
  """Each of two has little more than half of the products of a transformer."""
  config = load_config(f"configs/{file}.py")
  config.model.dim, config.model.depth = 64, 2
  family, batch = build.family(config), random_batch(config)
  state = jax.eval_shape(family.init, jax.random.key(0), batch)
  products = []
  for tensor in (1, 2):
    own = ConfigDict({"backend": "mesh", "fsdp": 1, "tensor": tensor})
    run = parallel.make(own, jax.devices()[:tensor])
    program = run.lower_step(family.step, state, batch).compile().as_text()
    products.append(hlo.flops(hlo.parse(program))[0])
  assert products[1] < 0.6 * products[0]


def test_batch_must_divide() -> None:
  run = parallel.make(ConfigDict({"backend": "pmap", "fsdp": 1, "tensor": 1}))
  run.check_batch(32, 4)
  with pytest.raises(UserError, match="multiple of 32"):
    run.check_batch(16, 4)
  shared = parallel.make(ConfigDict({"backend": "mesh", "fsdp": 1, "tensor": 2}))
  shared.check_batch(12)
  with pytest.raises(UserError, match=r"8 devices / parallel.tensor=2 .*ltiple of 4"):
    shared.check_batch(6)
