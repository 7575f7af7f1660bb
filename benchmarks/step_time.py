"""A training step of each family's reference network against the same in PyTorch.

    python benchmarks/step_time.py [rounds] [unet|dit|vae|decoder|glow|sngan ...]

U-Net, DiT and KL autoencoder against diffusers, decoder against transformers' Llama,
Glow against normflows (as in flows.py), SNGAN against its own PyTorch (as in gan.py).
Needs them all: the environment of `make parity`. Forward, backward and Adam, float32,
on the CPU; the same shapes, widths and heads on both sides. The two take turns, so that
both see the same machine; their numbers mean little alone, the ratio (theirs / ours:
above 1, ours is faster) is what counts.
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

  # Makes torchvision importable, which transformers asks for.
  importlib.import_module("tests.parity.conftest")
  importlib.import_module("normflows")
  from diffusers import AutoencoderKL, DiTTransformer2DModel, UNet2DModel

  from benchmarks import autoregressive, flows, gan
except ImportError as error:
  sys.exit(
    f"step_time compares with PyTorch, diffusers, transformers and normflows, but"
    f" {error.name} is not installed; run `make parity` once, then"
    " .venv-parity/bin/python benchmarks/step_time.py."
  )

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from core import parallel
from nets.autoencoder import Autoencoder
from nets.decoder import Decoder
from nets.dit import DiT
from nets.stream import Stream
from nets.unet import UNet
from text.cond import Cond
from text.encoders import NoEncoder

SIZE, RATE = 32, 1e-4
Step = Callable[[], None]
Sides = tuple[tuple[Step, int], tuple[Step, int]]  # (step, parameters), ours and theirs


def denoiser(net: nn.Module, batch: int) -> tuple[Step, int]:
  """A step that learns to give back what it is given."""
  x = jax.random.normal(jax.random.key(0), (batch, SIZE, SIZE, 3))
  logsnr = jnp.linspace(-5, 5, batch)
  return ours(net, lambda y: jnp.mean((y - x) ** 2), x, logsnr, Cond())


def ours(
  net: nn.Module, loss_of: Callable[..., jax.Array], *inputs: jax.Array | Cond
) -> tuple[Step, int]:
  """(a training step, the number of parameters)."""
  adam = optax.adam(RATE)
  params = jax.jit(net.init)(jax.random.key(1), *inputs)

  def step(params: dict, opt: tuple) -> tuple[dict, tuple]:
    def loss(params: dict) -> jax.Array:
      return loss_of(net.apply(params, *inputs))

    updates, opt = adam.update(jax.grad(loss)(params), opt)
    return optax.apply_updates(params, updates), opt

  state = [params, adam.init(params)]
  compiled = jax.jit(step, donate_argnums=(0, 1)).lower(*state).compile()

  def run() -> None:
    state[:] = jax.block_until_ready(compiled(*state))

  return run, sum(leaf.size for leaf in jax.tree.leaves(params))


def their_denoiser(
  net: torch.nn.Module, batch: int, **inputs: torch.Tensor
) -> tuple[Step, int]:
  """The same in PyTorch."""
  x = torch.randn(batch, 3, SIZE, SIZE)
  inputs = {"timestep": torch.arange(batch), **inputs}
  return theirs(net, lambda: ((net(x, **inputs).sample - x) ** 2).mean())


def theirs(
  net: torch.nn.Module, loss_of: Callable[[], torch.Tensor]
) -> tuple[Step, int]:
  """(a training step, the number of parameters)."""
  adam = torch.optim.Adam(net.parameters(), RATE)

  def run() -> None:
    loss = loss_of()
    adam.zero_grad()
    loss.backward()
    adam.step()

  return run, sum(p.numel() for p in net.parameters())


def unet() -> Sides:
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
  return denoiser(net, batch), their_denoiser(peer, batch)


def dit() -> Sides:
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
  return denoiser(net, batch), their_denoiser(peer, batch, class_labels=classes)


class Reconstruction(nn.Module):
  """Mean and log-variance of the latents, and the pictures of their means."""

  autoencoder: Autoencoder

  def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(pictures, mean, logvar)."""
    mean, logvar = jnp.split(self.autoencoder.encode(x), 2, axis=-1)
    return self.autoencoder.decode(mean), mean, logvar


def vae() -> Sides:
  """Widths 64, 128, 128; two blocks; squared error and a little of the KL term."""
  widths, batch = (64, 128, 128), 16
  x = jax.random.normal(jax.random.key(0), (batch, SIZE, SIZE, 3))

  def loss(found: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
    y, mean, logvar = found
    kl = 0.5 * (mean**2 + jnp.exp(logvar) - 1 - logvar).sum((1, 2, 3)).mean()
    return jnp.mean((y - x) ** 2) + 1e-6 * kl

  net = Autoencoder(
    image_channels=3, encoded=8, latent=4, widths=widths, blocks=2, attention=()
  )
  peer = AutoencoderKL(
    block_out_channels=widths,
    layers_per_block=2,
    down_block_types=["DownEncoderBlock2D"] * 3,
    up_block_types=["UpDecoderBlock2D"] * 3,
  )
  pictures = torch.randn(batch, 3, SIZE, SIZE)

  def their_loss() -> torch.Tensor:
    posterior = peer.encode(pictures).latent_dist
    y = peer.decode(posterior.mode()).sample
    return ((y - pictures) ** 2).mean() + 1e-6 * posterior.kl().mean()

  return ours(Reconstruction(net), loss, x), theirs(peer, their_loss)


def decoder() -> Sides:
  """Llama of 4 layers of 256, 8 heads, sequences of 256 of 256 values."""
  dim, depth, heads, length, batch = 256, 4, 8, 256, 8
  vocab = autoregressive.VOCAB
  x = jax.random.randint(jax.random.key(0), (batch, length), 0, vocab)
  net = Stream(NoEncoder(), Decoder(dim, depth, heads, scan=False), (16, 16, 1), vocab)
  peer = autoregressive.llama(dim, depth, heads, length)
  # Theirs predicts each token from those before, so a beginning is put before them.
  tokens = torch.randint(vocab, (batch, length + 1))

  def loss(logits: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(logits, x).mean()

  def their_loss() -> torch.Tensor:
    logits = peer(tokens[:, :-1], use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits.mT, tokens[:, 1:])

  return ours(net, loss, x, Cond()), theirs(peer, their_loss)


def glow() -> Sides:
  """3 levels of 8 steps, 128 hidden channels."""
  (run, _, count), (peer, _, peer_count) = flows.ours(False, True), flows.theirs()
  return (run, count), (peer, peer_count)


def sngan() -> Sides:
  """CIFAR's ResNets, a step of both; theirs has channels last, its faster layout."""
  (run, counts), (peer, peer_counts) = gan.ours(), gan.theirs(channels_last=True)
  return (run, sum(counts)), (peer, sum(peer_counts))


NETWORKS = {
  "unet": unet,
  "dit": dit,
  "vae": vae,
  "decoder": decoder,
  "glow": glow,
  "sngan": sngan,
}


def seconds(step: Step) -> float:
  """How long one step takes."""
  began = time.perf_counter()
  step()
  return time.perf_counter() - began


def main(rounds: str = "10", *names: str) -> None:
  """Prints a table: seconds a step, and the ratio."""
  if wrong := set(names) - set(NETWORKS):
    sys.exit(f"{wrong.pop()!r} is none of {', '.join(NETWORKS)}.")
  parallel.keep_freed_memory()
  print(f"{torch.get_num_threads()} threads, float32, {rounds} rounds in turn")
  print("           parameters         minimum s         median s           ratio of")
  print("           ours  theirs     ours  theirs     ours  theirs    minima  medians")
  for name in names or NETWORKS:
    (run, count), (peer, peer_count) = NETWORKS[name]()
    for step in (run, peer) * 2:
      step()
    times = [(seconds(run), seconds(peer)) for _ in range(int(rounds))]
    (least, median), (peer_least, peer_median) = (
      (min(column), statistics.median(column)) for column in zip(*times, strict=True)
    )
    print(
      f"{name:7}{count / 1e6:7.2f}M{peer_count / 1e6:7.2f}M"
      f"{least:9.2f}{peer_least:8.2f}{median:9.2f}{peer_median:8.2f}"
      f"{peer_least / least:10.2f}{peer_median / median:9.2f}"
    )


if __name__ == "__main__":
  main(*sys.argv[1:])
