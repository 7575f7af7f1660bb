"""Glow's training step and sampling against normflows' in PyTorch.

    python benchmarks/flows.py [rounds]

Needs PyTorch and normflows: the environment of `make parity`. 32x32 colour pictures, 3
levels of 8 steps, affine couplings of 128 hidden channels, batch 16, Adam, float32, on
the CPU. The two take turns, so that both see the same machine; their numbers mean
little alone, the ratio (theirs / ours: above 1, ours is faster) is what counts.
"""

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

try:
  import normflows as nf
  import torch
except ImportError as error:
  sys.exit(
    f"flows compares with PyTorch and normflows, but {error.name} is not installed;"
    " run `make parity` once, then .venv-parity/bin/python benchmarks/flows.py."
  )

import jax
import jax.numpy as jnp
import numpy as np
import optax

from configs.flows import glow as glow_config
from core import parallel
from core.levels import log_normal
from flows import elementwise, glow
from flows.bijector import Bijector
from text.cond import Cond

SIZE, LEVELS, STEPS, HIDDEN, BATCH, RATE = 32, 3, 8, 128, 16, 1e-4
Run = Callable[[], None]


def ours(reversible: bool, scan: bool) -> tuple[Run, Run, int]:
  """(a training step, a batch of samples, the number of parameters)."""
  config = glow_config.get_config()
  config.flow.levels, config.flow.steps, config.model.dim = LEVELS, STEPS, HIDDEN
  config.model.remat, config.model.scan = reversible, scan
  flow: Bijector = glow.multi_scale(
    config, elementwise.affine("glow"), glow.conditioner(config), 1.0
  )
  x = jax.random.normal(jax.random.key(0), (BATCH, SIZE, SIZE, 3))
  adam = optax.adam(RATE)
  params = jax.jit(lambda key: flow.init(key, x, Cond())[0])(jax.random.key(1))

  def step(params: tuple, opt: tuple) -> tuple[tuple, tuple]:
    def loss(params: tuple) -> jax.Array:
      z, logdet = flow.forward(params, x, Cond())
      return -jnp.mean(log_normal(z) + logdet)

    updates, opt = adam.update(jax.grad(loss)(params), opt)
    return optax.apply_updates(params, updates), opt

  state = [params, adam.init(params)]
  compiled = jax.jit(step, donate_argnums=(0, 1)).lower(*state).compile()
  draw = jax.jit(lambda params: flow.inverse(params, x, Cond())).lower(params).compile()

  def train() -> None:
    state[:] = jax.block_until_ready(compiled(*state))

  def sample() -> None:
    jax.block_until_ready(draw(state[0]))

  return train, sample, sum(leaf.size for leaf in jax.tree.leaves(params))


def theirs() -> tuple[Run, Run, int]:
  """The same in PyTorch, as normflows' example of Glow builds it."""
  bases, merges, flows = [], [], []
  for i in range(LEVELS):
    channels = 3 * 2 ** (LEVELS + 1 - i)
    level = [
      nf.flows.GlowBlock(channels, HIDDEN, split_mode="channel", scale=True)
      for _ in range(STEPS)
    ]
    flows.append([*level, nf.flows.Squeeze()])
    if i:
      merges.append(nf.flows.Merge())
    side = SIZE // 2 ** (LEVELS - i)
    # At the first entry nothing is merged, so its prior holds all channels.
    own = channels if i == 0 else channels // 2
    bases.append(nf.distributions.DiagGaussian((own, side, side)))
  net = nf.MultiscaleFlow(bases, flows, merges)
  x = torch.randn(BATCH, 3, SIZE, SIZE)
  net.forward_kld(x)  # the data-dependent start
  adam = torch.optim.Adam(net.parameters(), RATE)

  def train() -> None:
    loss = net.forward_kld(x)
    adam.zero_grad()
    loss.backward()
    adam.step()

  def sample() -> None:
    with torch.no_grad():
      net.sample(BATCH)

  return train, sample, sum(p.numel() for p in net.parameters())


def seconds(run: Run) -> float:
  """How long it takes once."""
  began = time.perf_counter()
  run()
  return time.perf_counter() - began


def main(rounds: str = "10") -> None:
  """Prints a table: seconds, and the ratio."""
  parallel.keep_freed_memory()
  parts = {
    "unrolled": ours(reversible=False, scan=False),
    "reversible": ours(reversible=True, scan=False),
    "scanned": ours(reversible=False, scan=True),
    "normflows": theirs(),
  }
  print(f"{torch.get_num_threads()} threads, float32, {rounds} rounds in turn")
  for name, (*_, count) in parts.items():
    print(f"{name:12}{count / 1e6:6.2f}M parameters")
  print("                      minimum s   median s   ratio of minima   of medians")
  for i, what in enumerate(("training", "sampling")):
    for run in [part[i] for part in parts.values()] * 2:
      run()
    times = np.array(
      [[seconds(part[i]) for part in parts.values()] for _ in range(int(rounds))]
    ).T
    least, median = times.min(1), [statistics.median(row) for row in times]
    for name, low, mid in zip(parts, least, median, strict=True):
      print(
        f"{what:10}{name:12}{low:8.3f}{mid:11.3f}{least[-1] / low:14.2f}"
        f"{median[-1] / mid:15.2f}"
      )


if __name__ == "__main__":
  main(*sys.argv[1:])
