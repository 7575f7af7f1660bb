"""Traces of training steps: which are traced, and what their table says."""

import csv
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from core import profiling
from core.errors import UserError
from core.parallel import Step

CALLS = 5  # of the matrix product in a step


def step() -> Step:
  """Multiplies by the same matrix CALLS times, in a loop."""

  def run(state: jax.Array, batch: jax.Array, rng: jax.Array) -> tuple:
    def body(x: jax.Array, _: None) -> tuple[jax.Array, None]:
      return jnp.tanh(x @ batch), None

    return jax.lax.scan(body, state, length=CALLS)[0], {}

  x = jnp.ones((64, 64))
  return Step(jax.jit(run).lower(x, x, x).compile(), lambda batch: batch)


def traced(folder, wanted: range, start: int, end: int, stop: int) -> list[dict]:
  """The table, after a run from `start` that ends early, at `stop`."""
  x = jnp.ones((64, 64))
  with profiling.traced(step(), wanted, start, end, folder) as run:
    state = x
    for _ in range(start, stop):
      state, _ = run(state, x, x)
  with (folder / "operations.csv").open() as file:
    return list(csv.DictReader(file))


@pytest.mark.parametrize(
  ("wanted", "start", "stop", "count"),
  [
    (range(3, 5), 0, 6, 2),
    (range(3, 5), 3, 6, 1),  # the first was done before
    (range(5, 20), 2, 10, 6),  # beyond the last
    (range(2, 9), 0, 4, 3),  # stopped in between
  ],
)
def test_the_wanted_steps_are_counted(tmp_path, capsys, wanted, start, stop, count):
  rows = traced(tmp_path, wanted, start, 10, stop)
  products = [row for row in rows if "dot_general" in row["source"]]
  assert sum(float(row["runs_a_step"]) for row in products) == CALLS
  assert not any(row["opcode"] == "while" for row in rows)
  times = [float(row["ms_a_step"]) for row in rows]
  assert times == sorted(times, reverse=True)
  assert times[0] > 0
  told = capsys.readouterr().err
  assert told.startswith(f"{count} steps traced")
  assert "dot_general" in told


def test_a_failed_run_leaves_no_trace_open(tmp_path):
  x = jnp.ones((64, 64))

  def fail() -> None:
    with profiling.traced(step(), range(1, 9), 0, 9, tmp_path) as run:
      run(x, x, x)
      raise UserError("not finite")

  with pytest.raises(UserError, match="not finite"):
    fail()
  assert traced(tmp_path, range(1, 3), 0, 9, 2)


@pytest.mark.parametrize("wanted", [range(1, 4), range(11, 20)])
def test_steps_that_are_not_to_come_are_refused(tmp_path, wanted):
  with (
    pytest.raises(UserError, match="4 are done, and the last is 10"),
    profiling.traced(step(), wanted, 4, 10, tmp_path),
  ):
    pass


def test_the_flag():
  assert profiling.steps("") == range(0)
  assert list(profiling.steps("20:22")) == [20, 21, 22]
  assert len(profiling.steps("7:7")) == 1
  for text in ("0:3", "5:4", "5", "5:", "a:b", "-1:2", "1:2:3", " 1:2"):
    with pytest.raises(UserError, match="FIRST:LAST"):
      profiling.steps(text)


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
