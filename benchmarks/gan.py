"""The training step of SNGAN's ResNet against the same in PyTorch.

    python benchmarks/gan.py [rounds]

Needs PyTorch: the environment of `make parity`. CIFAR's shape without classes: 32x32
colour pictures, hinge loss, spectral norm in the critic, Adam, float32, on the CPU. A
step is one update of the critic and one of the generator, each by 16 pictures; ours is
the whole step of the family, with its average of the weights and its metrics. They take
turns, so that all see the same machine; their numbers mean little alone, the ratio
(theirs / ours: above 1, ours is faster) is what counts.
"""

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

try:
  import torch
except ImportError:
  sys.exit(
    "gan compares with PyTorch, which is not installed; run `make parity` once, then"
    " .venv-parity/bin/python benchmarks/gan.py."
  )

import jax
import numpy as np
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from configs.gan import sngan
from core import parallel
from core.family import Spec, count_params
from core.family import make as make_family
from text.cond import Cond

BATCH, RATE = 16, 2e-4
UP, DOWN = (256, 256, 256, 256), (128, 128)
Run = Callable[[], None]


def ours() -> tuple[Run, list[int]]:
  """(a training step, how many parameters each network has)."""
  config = sngan.get_config()
  config.model.widths, config.gan.widths, config.gan.critic_steps = UP, DOWN, 1
  config.data.batch_size, config.optim.learning_rate = BATCH, RATE
  config.parallel.backend = "jit"
  family, run = make_family(config, Spec((32, 32, 3))), parallel.make(config.parallel)
  batch = {
    "x": np.random.default_rng(0).uniform(-1, 1, (BATCH, 32, 32, 3)).astype(np.float32),
    "cond": Cond(),
    "_id": np.arange(BATCH, dtype=np.uint32),
    "_mask": np.ones(BATCH, bool),
  }
  key = jax.random.key(0)
  state = [run.init(family.init, key, run.put(batch))]
  compiled = run.compile_step(family.step, state[0], batch)
  counts = [count_params(state[0].params[name]) for name in ("generator", "critic")]

  def train() -> None:
    state[0], _ = jax.block_until_ready(compiled(state[0], batch, key))

  return train, counts


class Up(nn.Module):
  """A block of the generator."""

  def __init__(self, a: int, b: int) -> None:
    super().__init__()
    self.norms = nn.ModuleList([nn.BatchNorm2d(a), nn.BatchNorm2d(b)])
    self.convs = nn.ModuleList(
      [nn.Conv2d(a, b, 3, padding=1), nn.Conv2d(b, b, 3, padding=1)]
    )
    self.shortcut = nn.Conv2d(a, b, 1)

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    """Twice the size."""
    y = self.convs[0](F.interpolate(F.relu(self.norms[0](x)), scale_factor=2))
    y = self.convs[1](F.relu(self.norms[1](y)))
    return y + F.interpolate(self.shortcut(x), scale_factor=2)


class Generator(nn.Module):
  """Miyato et al. 2018, table 4."""

  def __init__(self) -> None:
    super().__init__()
    self.start = nn.Linear(128, UP[-1] * 16)
    self.blocks = nn.Sequential(*map(Up, UP[:0:-1], UP[-2::-1]))
    self.norm, self.out = nn.BatchNorm2d(UP[0]), nn.Conv2d(UP[0], 3, 3, padding=1)

  def forward(self, z: torch.Tensor) -> torch.Tensor:
    """Pictures of noise."""
    x = self.blocks(self.start(z).view(len(z), -1, 4, 4))
    return torch.tanh(self.out(F.relu(self.norm(x))))


class Down(nn.Module):
  """A block of the critic."""

  def __init__(self, a: int, b: int, first: bool, halved: bool) -> None:
    super().__init__()
    self.first, self.halved = first, halved
    self.convs = nn.ModuleList(
      [
        spectral_norm(nn.Conv2d(a, b, 3, padding=1)),
        spectral_norm(nn.Conv2d(b, b, 3, padding=1)),
      ]
    )
    self.shortcut = spectral_norm(nn.Conv2d(a, b, 1)) if halved else nn.Identity()

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    """Half the size, or the same."""
    y = self.convs[0](x if self.first else F.relu(x))
    y = self.convs[1](F.relu(y))
    if self.halved:
      x, y = F.avg_pool2d(x, 2), F.avg_pool2d(y, 2)
    return self.shortcut(x) + y


class Critic(nn.Module):
  """Miyato et al. 2018, table 4."""

  def __init__(self) -> None:
    super().__init__()
    widths, halved = (3, *DOWN, *DOWN[-1:] * 2), (True, True, False, False)
    self.blocks = nn.Sequential(
      *[Down(*widths[i : i + 2], not i, half) for i, half in enumerate(halved)]
    )
    self.logit = spectral_norm(nn.Linear(DOWN[-1], 1))

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    """Logits of pictures."""
    return self.logit(F.relu(self.blocks(x)).sum((2, 3)))[:, 0]


def theirs(channels_last: bool) -> tuple[Run, list[int]]:
  """The same in PyTorch."""
  form = torch.channels_last if channels_last else torch.contiguous_format
  generator, critic = (net().to(memory_format=form) for net in (Generator, Critic))
  adams = [
    torch.optim.Adam(net.parameters(), RATE, (0.0, 0.9)) for net in (generator, critic)
  ]
  average = [p.detach().clone() for p in generator.parameters()]
  real = (2 * torch.rand(BATCH, 3, 32, 32) - 1).to(memory_format=form)

  def train() -> None:
    with torch.no_grad():
      fake = generator(torch.randn(BATCH, 128))
    loss = F.relu(1 - critic(real)).mean() + F.relu(1 + critic(fake)).mean()
    adams[1].zero_grad()
    loss.backward()
    adams[1].step()
    critic.requires_grad_(False)
    loss = -critic(generator(torch.randn(BATCH, 128))).mean()
    adams[0].zero_grad()
    loss.backward()
    adams[0].step()
    critic.requires_grad_(True)
    torch._foreach_lerp_(average, [p.detach() for p in generator.parameters()], 1e-3)

  return train, [
    sum(p.numel() for p in net.parameters()) for net in (generator, critic)
  ]


def seconds(run: Run) -> float:
  """How long it takes once."""
  began = time.perf_counter()
  run()
  return time.perf_counter() - began


def main(rounds: str = "10") -> None:
  """Prints a table: seconds, and the ratio to the faster of the two in PyTorch."""
  parallel.keep_freed_memory()
  parts = {
    "ours": ours(),
    "torch": theirs(channels_last=False),
    "torch, channels last": theirs(channels_last=True),
  }
  print(f"{torch.get_num_threads()} threads, float32, {rounds} rounds in turn")
  for name, (run, counts) in parts.items():
    print(
      f"{name:22}" + " and ".join(f"{n / 1e6:.2f}M" for n in counts) + " parameters"
    )
    for _ in range(2):
      run()
  times = np.array(
    [[seconds(run) for run, _ in parts.values()] for _ in range(int(rounds))]
  )
  least, median = times.min(0), [statistics.median(row) for row in times.T]
  print("                      minimum s   median s   ratio of minima   of medians")
  for name, low, mid in zip(parts, least, median, strict=True):
    print(
      f"{name:22}{low:8.3f}{mid:11.3f}{min(least[1:]) / low:14.2f}"
      f"{min(median[1:]) / mid:15.2f}"
    )


if __name__ == "__main__":
  main(*sys.argv[1:])
