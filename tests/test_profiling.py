"""Traces of training steps: which are traced, and what their table says."""

import contextlib
import csv
import functools
import resource
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.profiler import ProfileData

from core import parallel, profiling
from core.errors import UserError
from tests.runs import load_config

CALLS = 5  # of the matrix product in a step


@functools.cache
def step(backend: str = "jit") -> parallel.Step:
  """Multiplies by the same matrix CALLS times, in a loop; its state is donated."""

  def body(state: jax.Array, batch: jax.Array, rng: jax.Array, axis: str = "") -> tuple:
    def once(x: jax.Array, _: None) -> tuple[jax.Array, None]:
      return jnp.tanh(x @ x), None

    y = jax.lax.scan(once, state, length=CALLS)[0]
    return y, {"loss": y.mean() + batch.mean()}

  config = load_config("configs/quickstart.py").parallel
  config.backend = backend
  return parallel.make(config).compile_step(body, jnp.ones((64, 64)), jnp.ones((8, 1)))


def go(folder, wanted, start, stop, backend="jit", between=lambda: None) -> list[dict]:
  """The table, after a run from `start` that ends early, at `stop`."""
  state, devices = jnp.ones((64, 64)), 1 if backend == "jit" else 8
  where = (start, devices, folder, contextlib.nullcontext)
  with profiling.traced(step(backend), wanted, *where) as run:
    for _ in range(start, stop):
      state, _ = run(state, jnp.ones((8, 1)), jax.random.key(0))
      between()
  with (folder / "operations.csv").open() as file:
    return list(csv.DictReader(file))


def traced_steps(folder: Path) -> list[int]:
  """The numbers of the steps in the newest trace."""
  data = ProfileData.from_file(str(profiling.newest(folder)))
  events = [e for plane in data.planes for line in plane.lines for e in line.events]
  return sorted(dict(e.stats)["step_num"] for e in events if e.name == "train")


def products(rows: list[dict]) -> float:
  """How many matrix products a step has."""
  return sum(float(r["runs_a_step"]) for r in rows if "dot_general" in r["source"])


@pytest.mark.parametrize(
  ("wanted", "start", "stop", "steps"),
  [
    (range(3, 5), 0, 6, [3, 4]),
    (range(3, 5), 3, 6, [4]),  # the first was done before
    (range(2, 9), 0, 4, [2, 3, 4]),  # stopped in between
  ],
)
def test_the_wanted_steps_are_traced(tmp_path, capsys, wanted, start, stop, steps):
  rows = go(tmp_path, wanted, start, stop)
  assert traced_steps(tmp_path) == steps
  assert products(rows) == CALLS
  assert not any(row["opcode"] == "while" for row in rows)
  times = [float(row["ms_a_step"]) for row in rows]
  assert times == sorted(times, reverse=True)
  assert times[0] > 0
  told = capsys.readouterr().err
  assert told.startswith(f"steps {steps[0]} to {steps[-1]} traced")
  assert "dot_general" in told


def test_other_programs_are_not_counted(tmp_path):
  other = jax.jit(lambda x: jax.lax.fori_loop(0, 7, lambda _, y: jnp.tanh(y @ y), x))
  x = jnp.ones((64, 64))
  rows = go(tmp_path, range(1, 4), 0, 3, between=lambda: other(x).block_until_ready())
  assert products(rows) == CALLS


@pytest.mark.parametrize("backend", ["pmap", "mesh"])
def test_a_table_of_eight_devices_is_of_one(tmp_path, backend):
  rows = go(tmp_path, range(2, 4), 0, 4, backend)
  assert products(rows) == CALLS


def test_steps_that_are_done_are_told(tmp_path, capsys):
  run, where = step(), (4, 1, tmp_path, contextlib.nullcontext)
  with profiling.traced(run, range(1, 4), *where) as same:
    assert same is run
  assert "nothing is traced" in capsys.readouterr().err


def test_a_failed_run_leaves_no_trace_open(tmp_path):
  def fail() -> None:
    where = (0, 1, tmp_path, contextlib.nullcontext)
    with profiling.traced(step(), range(1, 9), *where) as run:
      run(jnp.ones((64, 64)), jnp.ones((8, 1)), jax.random.key(0))
      raise UserError("not finite")

  with pytest.raises(UserError, match="not finite"):
    fail()
  assert go(tmp_path, range(1, 3), 0, 2)


def test_a_trace_that_cannot_be_written_costs_nothing(tmp_path, capsys):
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  state, where = jnp.ones((64, 64)), (0, 1, tmp_path, contextlib.nullcontext)
  resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
  try:
    with profiling.traced(step(), range(1, 3), *where) as run:
      for _ in range(4):
        state, _ = run(state, jnp.ones((8, 1)), jax.random.key(0))
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
  assert "could not be written" in capsys.readouterr().err
  assert jnp.isfinite(state).all()
  # JAX takes that trace for one that is under way: the next training goes on without.
  with profiling.traced(step(), range(1, 3), *where) as run:
    run(jnp.ones((64, 64)), jnp.ones((8, 1)), jax.random.key(0))
  assert "nothing is traced" in capsys.readouterr().err
  with contextlib.suppress(OSError, RuntimeError):
    jax.profiler.stop_trace()


def test_it_is_refused_before_the_training(tmp_path):
  profiling.check(range(0), 5)
  profiling.check(range(4, 6), 5)
  with pytest.raises(UserError, match="begins with step 6, and the last is 5"):
    profiling.check(range(6, 8), 5)
  profiling.check_place(tmp_path / "profile")
  assert list(tmp_path.glob("profile/*")) == []
  (tmp_path / "file").touch()
  with pytest.raises(UserError, match="cannot write to"):
    profiling.check_place(tmp_path / "file")


def test_the_flag():
  assert profiling.steps("") == profiling.steps("", "eval") == range(0)
  assert list(profiling.steps("20:22")) == [20, 21, 22]
  assert len(profiling.steps("7:7")) == 1
  for text in ("0:3", "5:4", "5", "5:", "a:b", "-1:2", "1:2:3", " 1:2"):
    with pytest.raises(UserError, match="FIRST:LAST"):
      profiling.steps(text)
  with pytest.raises(UserError, match="not --mode=eval"):
    profiling.steps("1:2", "eval")


def test_kinds_add_up():
  found = [
    profiling.Operation("fusion.1", "fusion", "jit(f)/a/mul", 1.0, 1),
    profiling.Operation("fusion.2", "fusion", "jit(f)/b/mul", 2.0, 1),
    profiling.Operation("copy.1", "copy", "", 1.0, 1),
    profiling.Operation("dot.1", "dot", "jit(f)/b/transpose", 4.0, 1),
  ]
  lines = profiling.told(found, 2, Path("runs")).splitlines()[1:]
  assert [line.split() for line in lines] == [
    ["2000.0", "ms", "a", "step", "50%", "dot_general"],
    ["1500.0", "ms", "a", "step", "38%", "mul"],
    ["500.0", "ms", "a", "step", "12%", "copy"],
  ]
