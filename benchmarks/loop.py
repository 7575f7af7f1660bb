"""What the training loop and the data pipeline cost beside the bare compiled step.

    python benchmarks/loop.py [rounds]

Trains configs/quickstart.py in a temporary workdir. After every 25 steps of the loop
(data, logging every 25 steps, a checkpoint every 25) the same number of bare steps
runs on a copy of the state and one fixed batch; so both are timed in turn. Then the
data pipeline runs alone for as many images as 2000 batches hold.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax
import jax.numpy as jnp

from configs import quickstart
from core import parallel
from core.family import State
from core.train import Hook, train
from core.workdir import open_workdir
from data import source
from pipelines import build, inputs

STEPS = 25


def main(rounds: int = 6) -> None:
  """Prints the medians and their ratios."""
  parallel.keep_freed_memory()
  config = quickstart.get_config()
  config.train.steps = STEPS * rounds
  config.train.checkpoint_every = config.train.log_every = STEPS
  run, family = parallel.make(config.parallel), build.family(config)
  data = source.load(config.data, config.data.train_split)
  batches = inputs.train_stream(config, data)
  batch = next(batches(0))
  bare_step = bare(run, family.step, batch)
  loop, alone = [], []
  clock = [0.0]

  def hook(state: State) -> dict[str, float]:
    jax.block_until_ready(state)
    loop.append(time.perf_counter() - clock[0])
    alone.append(bare_step(state))
    clock[0] = time.perf_counter()
    return {}

  with tempfile.TemporaryDirectory() as folder:
    workdir = open_workdir(folder, config)
    train(config, family, run, batches, workdir, [Hook(STEPS, hook)])
  # The first round of the loop includes compiling.
  ratios = [a / b for a, b in zip(loop[1:], alone[1:], strict=True)]
  step = statistics.median(alone[1:]) / STEPS
  consumed = config.data.batch_size / step
  made = pipeline(batches, config.data.batch_size)
  print(f"bare step            {1000 * step:10.1f} ms   {consumed:12,.0f} images/s")
  print(f"step in the loop     {1000 * statistics.median(loop[1:]) / STEPS:10.1f} ms")
  print(
    f"loop / bare          {sum(loop[1:]) / sum(alone[1:]):10.3f}   pairs:", end=" "
  )
  print(" ".join(f"{ratio:.3f}" for ratio in ratios))
  print(
    f"data pipeline alone  {made:10,.0f} images/s, {made / consumed:,.0f} x the step"
  )


def bare(
  run: parallel.Parallel, step: Callable, batch: dict
) -> Callable[[State], float]:
  """state -> seconds that STEPS compiled steps take on a copy of it."""
  compiled = []

  def seconds(state: State) -> float:
    state = jax.tree.map(jnp.copy, state)
    if not compiled:
      compiled.append(run.compile_step(step, state, batch))
    keys = [jax.random.key(i) for i in range(STEPS)]
    jax.block_until_ready(state)
    began = time.perf_counter()
    for key in keys:
      state, _ = compiled[0](state, batch, key)
    jax.block_until_ready(state)
    return time.perf_counter() - began

  return seconds


def pipeline(batches: Callable, batch_size: int, count: int = 2000) -> float:
  """Images a second of the training batches alone."""
  stream = batches(0)
  next(stream)
  began = time.perf_counter()
  for _ in range(count):
    next(stream)
  rate = count * batch_size / (time.perf_counter() - began)
  stream.close()
  return rate


if __name__ == "__main__":
  main(*map(int, sys.argv[1:]))
