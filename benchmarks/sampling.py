"""Sampling by one compiled scan against diffusers' loop over steps in PyTorch.

    python benchmarks/sampling.py [rounds] [batch] [steps]

Needs PyTorch and diffusers: the environment of `make parity`. DDIM with a U-Net of
random weights, the same shapes on both sides, float32, on the CPU; the time includes
the noise, the network and the scheduler. The two take turns, so that both see the same
machine; the ratio (theirs / ours: above 1, ours is faster) is what counts.

The machine must be idle: PyTorch's threads wait for one another, and if others take
their cores its time is many times too long. On a busy one give both a single core
(`taskset -c 0 python ...`) and read the ratio of processor time.
"""

import importlib
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

try:
  import torch

  # Makes torchvision importable, which diffusers' networks need.
  importlib.import_module("tests.parity.conftest")
  from diffusers import DDIMScheduler, UNet2DModel
except ImportError as error:
  sys.exit(
    f"sampling compares with PyTorch and diffusers, but {error.name} is not installed;"
    " run `make parity` once, then .venv-parity/bin/python benchmarks/sampling.py."
  )

import jax
import jax.numpy as jnp

from core import noise, parallel
from core.family import sample_keys
from diffusion import sampler
from diffusion.settings import Estimate, Settings
from nets.unet import UNet
from text.cond import Cond

SIZE, WIDTHS = 32, (64, 128, 128)


def ours(batch: int, steps: int) -> Callable[[], None]:
  """Draws a batch: noise to pictures in one compiled program."""
  net = UNet(out_channels=3, widths=WIDTHS, blocks=2, attention=(16,), head_dim=64)
  schedule, settings = noise.linear(), Settings(steps=steps, frames=1)
  shape = (SIZE, SIZE, 3)
  args = (jnp.zeros((batch, *shape)), jnp.zeros(batch), Cond())
  params = jax.jit(net.init)(jax.random.key(0), *args)

  def sample(params: dict, rng: jax.Array) -> jax.Array:
    def denoise(x_t: jax.Array, logsnr: jax.Array) -> Estimate:
      eps = net.apply(params, x_t, logsnr, Cond())
      x_hat, _ = noise.to_x_eps(eps, x_t, logsnr, "vp", "eps")
      return Estimate(jnp.clip(x_hat, -1, 1), None)

    keys = sample_keys(rng, batch)
    return sampler.sample(denoise, keys, shape, schedule, settings).images

  compiled = jax.jit(sample).lower(params, jax.random.key(1)).compile()
  return lambda: jax.block_until_ready(compiled(params, jax.random.key(1)))


def theirs(batch: int, steps: int) -> Callable[[], None]:
  """The same as their pipeline loops: the network, then the scheduler, step by step."""
  net = UNet2DModel(
    sample_size=SIZE,
    block_out_channels=WIDTHS,
    layers_per_block=2,
    down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    attention_head_dim=64,
    attn_norm_num_groups=32,
    resnet_time_scale_shift="scale_shift",
  ).eval()
  scheduler = DDIMScheduler(timestep_spacing="trailing")

  @torch.inference_mode()
  def sample() -> None:
    x = torch.randn(batch, 3, SIZE, SIZE)
    scheduler.set_timesteps(steps)
    for t in scheduler.timesteps:
      out = net(x, t).sample
      x = scheduler.step(out, t, x, use_clipped_model_output=True).prev_sample

  return sample


def seconds(sample: Callable[[], None]) -> tuple[float, float]:
  """(wall, processor) time of one batch."""
  began = time.perf_counter(), time.process_time()
  sample()
  return time.perf_counter() - began[0], time.process_time() - began[1]


def main(rounds: str = "10", batch: str = "16", steps: str = "20") -> None:
  """Prints seconds a batch, and the ratio."""
  parallel.keep_freed_memory()
  run, peer = (make(int(batch), int(steps)) for make in (ours, theirs))
  for sample in (run, peer):
    sample()
  times = [(*seconds(run), *seconds(peer)) for _ in range(int(rounds))]
  print(
    f"{torch.get_num_threads()} threads, float32, {rounds} rounds in turn of {batch}"
    f" pictures, DDIM with {steps} steps"
  )
  print("                 minimum s         median s           ratio of")
  print("               ours  theirs     ours  theirs     minima  medians")
  columns = list(zip(*times, strict=True))
  for name, own, other in (
    ("wall", columns[0], columns[2]),
    ("processor", columns[1], columns[3]),
  ):
    least, peer_least = min(own), min(other)
    median, peer_median = statistics.median(own), statistics.median(other)
    print(
      f"{name:10}{least:9.2f}{peer_least:8.2f}{median:9.2f}{peer_median:8.2f}"
      f"{peer_least / least:11.2f}{peer_median / median:9.2f}"
    )


if __name__ == "__main__":
  main(*sys.argv[1:])
