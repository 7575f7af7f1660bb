"""A training step of the U-Net and the DiT against diffusers in PyTorch.

    python benchmarks/step_time.py [rounds] [unet|dit ...]

Needs PyTorch and diffusers: the environment of `make parity`. Forward, backward and
Adam, float32, on the CPU; the same shapes, widths and heads on both sides. The two
take turns, so that both see the same machine; their numbers mean little alone, the
ratio (theirs / ours: above 1, ours is faster) is what counts.
"""

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

try:
  import torch
  from diffusers import DiTTransformer2DModel, UNet2DModel
except ImportError as error:
  sys.exit(
    f"step_time compares with PyTorch and diffusers, but {error.name} is not installed;"
    " run `make parity` once, then .venv-parity/bin/python benchmarks/step_time.py."
  )

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from core import parallel
from nets.dit import DiT
from nets.unet import UNet
from text.cond import Cond

SIZE, RATE = 32, 1e-4
Step = Callable[[], None]


def ours(net: nn.Module, batch: int) -> tuple[Step, int]:
  """(a training step, the number of parameters)."""
  x = jax.random.normal(jax.random.key(0), (batch, SIZE, SIZE, 3))
  logsnr, cond, adam = jnp.linspace(-5, 5, batch), Cond(), optax.adam(RATE)
  params = jax.jit(net.init)(jax.random.key(1), x, logsnr, cond)

  def step(params: dict, opt: tuple) -> tuple[dict, tuple]:
    def loss(params: dict) -> jax.Array:
      return jnp.mean((net.apply(params, x, logsnr, cond) - x) ** 2)

    updates, opt = adam.update(jax.grad(loss)(params), opt)
    return optax.apply_updates(params, updates), opt

  state = [params, adam.init(params)]
  compiled = jax.jit(step, donate_argnums=(0, 1)).lower(*state).compile()

  def run() -> None:
    state[:] = jax.block_until_ready(compiled(*state))

  return run, sum(leaf.size for leaf in jax.tree.leaves(params))


def theirs(
  net: torch.nn.Module, batch: int, **inputs: torch.Tensor
) -> tuple[Step, int]:
  """The same in PyTorch."""
  x = torch.randn(batch, 3, SIZE, SIZE)
  inputs = {"timestep": torch.arange(batch), **inputs}
  adam = torch.optim.Adam(net.parameters(), RATE)

  def run() -> None:
    loss = ((net(x, **inputs).sample - x) ** 2).mean()
    adam.zero_grad()
    loss.backward()
    adam.step()

  return run, sum(p.numel() for p in net.parameters())


def unet() -> tuple[tuple[Step, int], tuple[Step, int]]:
  """Widths 64, 128, 128; two blocks; attention at 16x16 and in the middle."""
  widths, batch = (64, 128, 128), 32
  net = UNet(out_channels=3, widths=widths, blocks=2, attention=(16,), head_dim=64)
  peer = UNet2DModel(
    sample_size=SIZE,
    block_out_channels=widths,
    layers_per_block=2,
    down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    attention_head_dim=64,
    attn_norm_num_groups=32,
    resnet_time_scale_shift="scale_shift",
  )
  return ours(net, batch), theirs(peer, batch)


def dit() -> tuple[tuple[Step, int], tuple[Step, int]]:
  """Dim 384, depth 8, 6 heads, patch 2. Their blocks each embed the time anew."""
  batch = 16
  net = DiT(dim=384, depth=8, heads=6, patch=2, out_channels=3, scan=False)
  peer = DiTTransformer2DModel(
    num_attention_heads=6,
    attention_head_dim=64,
    in_channels=3,
    out_channels=3,
    num_layers=8,
    sample_size=SIZE,
    patch_size=2,
    num_embeds_ada_norm=1,
  )
  classes = torch.zeros(batch, dtype=torch.long)
  return ours(net, batch), theirs(peer, batch, class_labels=classes)


def seconds(step: Step) -> float:
  """How long one step takes."""
  began = time.perf_counter()
  step()
  return time.perf_counter() - began


def main(rounds: str = "10", *names: str) -> None:
  """Prints a table: seconds a step, and the ratio."""
  parallel.keep_freed_memory()
  print(f"{torch.get_num_threads()} threads, float32, {rounds} rounds in turn")
  print("          parameters         minimum s         median s           ratio of")
  print("          ours  theirs     ours  theirs     ours  theirs    minima  medians")
  for name in names or ("unet", "dit"):
    (run, count), (peer, peer_count) = {"unet": unet, "dit": dit}[name]()
    for step in (run, peer) * 2:
      step()
    times = [(seconds(run), seconds(peer)) for _ in range(int(rounds))]
    (least, median), (peer_least, peer_median) = (
      (min(column), statistics.median(column)) for column in zip(*times, strict=True)
    )
    print(
      f"{name:6}{count / 1e6:7.2f}M{peer_count / 1e6:7.2f}M"
      f"{least:9.2f}{peer_least:8.2f}{median:9.2f}{peer_median:8.2f}"
      f"{peer_least / least:10.2f}{peer_median / median:9.2f}"
    )


if __name__ == "__main__":
  main(*sys.argv[1:])
