"""One text to one picture by Stable Diffusion's shape, against diffusers' pipeline.

    taskset -c 0 python benchmarks/stable_diffusion.py [rounds] [steps] [latents]

Needs PyTorch and diffusers: the environment of `make parity`. Text encoder, U-Net and
autoencoder of the shape of Stable Diffusion 1.5, at a fifth of its width, have the same
random weights on both sides, read from one folder. Each call goes from the ids of 77
tokens, and those of the empty text, by guided DDIM to the pixels of a picture, eight
times as large as its latents. Both have one thread and take turns; the ratio (theirs /
ours: above 1, ours is faster) is what counts. That the two pictures are the same is
checked first.
"""

import importlib
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["XLA_FLAGS"] = (
  f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_multi_thread_eigen=false"
)
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

try:
  import torch

  # Makes torchvision importable, which diffusers' networks need.
  importlib.import_module("tests.parity.conftest")
  from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
  )
  from transformers import CLIPTextConfig, CLIPTextModel
except ImportError as error:
  sys.exit(
    f"stable_diffusion compares with PyTorch and diffusers, but {error.name} is not"
    " installed; run `make parity` once, then .venv-parity/bin/python"
    " benchmarks/stable_diffusion.py."
  )

import jax
import jax.numpy as jnp
import numpy as np

from core import noise, parallel
from core.family import sample_keys
from diffusion import sampler
from diffusion.settings import Estimate, Settings
from nets import clip_text
from nets.autoencoder import Autoencoder
from nets.pretrained import autoencoder, unet
from text.cond import Cond, guide

WIDTHS, CODEC = (64, 128, 256, 256), (32, 64, 128, 128)
TOKENS, TEXT, SCALE, GUIDANCE = 77, 128, 0.18215, 7.5
IDS = np.random.default_rng(0).integers(0, 999, (2, TOKENS)).astype(np.int32)


def pipeline() -> StableDiffusionPipeline:
  """diffusers' own, with random weights."""
  torch.manual_seed(0)
  torch.set_num_threads(1)
  text = CLIPTextConfig(
    vocab_size=1000,
    hidden_size=TEXT,
    intermediate_size=4 * TEXT,
    num_hidden_layers=6,
    num_attention_heads=4,
    max_position_embeddings=TOKENS,
    eos_token_id=999,
  )
  made = StableDiffusionPipeline(
    vae=AutoencoderKL(
      block_out_channels=CODEC,
      down_block_types=("DownEncoderBlock2D",) * 4,
      up_block_types=("UpDecoderBlock2D",) * 4,
      layers_per_block=2,
      scaling_factor=SCALE,
    ).eval(),
    text_encoder=CLIPTextModel(text).eval(),
    tokenizer=None,
    unet=UNet2DConditionModel(
      block_out_channels=WIDTHS, cross_attention_dim=TEXT, attention_head_dim=8
    ).eval(),
    scheduler=DDIMScheduler(
      beta_start=0.00085,
      beta_end=0.012,
      beta_schedule="scaled_linear",
      clip_sample=False,
      set_alpha_to_one=False,
      steps_offset=1,
    ),
    safety_checker=None,
    feature_extractor=None,
    requires_safety_checker=False,
  )
  made.set_progress_bar_config(disable=True)
  return made


def theirs(
  made: StableDiffusionPipeline, start: np.ndarray, steps: int
) -> Callable[[], np.ndarray]:
  """A picture in [0, 1] by their loop, from the noise `start`."""
  ids, size = torch.tensor(IDS), 8 * start.shape[1]
  latents = torch.tensor(np.moveaxis(start, -1, 1))

  @torch.inference_mode()
  def draw() -> np.ndarray:
    own, null = made.text_encoder(ids)[0].split(1)
    return made(
      prompt_embeds=own,
      negative_prompt_embeds=null,
      latents=latents,
      height=size,
      width=size,
      num_inference_steps=steps,
      guidance_scale=GUIDANCE,
      output_type="np",
    ).images

  return draw


def ours(folder: Path, size: int, steps: int) -> Callable[[], np.ndarray]:
  """The same in one compiled program, with the weights in `folder`."""
  shape, keys = (size, size, 4), sample_keys(jax.random.key(0), 1)
  tower = clip_text.network(folder / "text_encoder", jnp.float32)
  net = unet.described(folder / "unet", size).net
  codec = Autoencoder(3, encoded=8, latent=4, widths=CODEC, groups=32)
  params = {
    "text": clip_text.load(folder / "text_encoder", tower),
    "net": unet.load(net, shape, folder / "unet"),
    "codec": autoencoder.load(codec, (8 * size, 8 * size, 3), folder / "vae"),
  }
  schedule = noise.discrete(noise.scaled_linear(), 1000)
  settings = Settings(sampler="ddim", grid="leading", steps=steps, frames=1)

  def picture(params: dict, ids: jax.Array) -> jax.Array:
    seq, _ = tower.apply({"params": params["text"]}, ids)

    def denoise(x_t: jax.Array, logsnr: jax.Array) -> Estimate:
      pair = (jnp.concatenate([a, a]) for a in (x_t, logsnr))
      eps = guide(net.apply({"params": params["net"]}, *pair, Cond(seq=seq)), GUIDANCE)
      return Estimate(noise.to_x_eps(eps, x_t, logsnr, "vp", "eps")[0], None)

    latents = sampler.sample(denoise, keys, shape, schedule, settings).images
    own = {"params": params["codec"]}
    pixels = codec.apply(own, latents / SCALE, method="decode")
    return jnp.clip(pixels / 2 + 0.5, 0, 1)

  compiled = jax.jit(picture).lower(params, IDS).compile()
  return lambda: np.asarray(compiled(params, IDS))


def seconds(draw: Callable[[], np.ndarray]) -> tuple[float, float]:
  """(wall, processor) time of one picture."""
  began = time.perf_counter(), time.process_time()
  draw()
  return time.perf_counter() - began[0], time.process_time() - began[1]


def main(rounds: str = "6", steps: str = "20", latents: str = "32") -> None:
  """Prints seconds a picture, and the ratio."""
  parallel.keep_freed_memory()
  made, size = pipeline(), int(latents)
  start = sampler.draw(sample_keys(jax.random.key(0), 1), 0, (size, size, 4))
  peer = theirs(made, np.asarray(start), int(steps))
  with tempfile.TemporaryDirectory() as folder:
    made.save_pretrained(folder)
    own = ours(Path(folder), size, int(steps))
  difference = abs(own() - peer()).max()
  print(
    f"largest difference of the two pictures, whose pixels are in [0, 1]:"
    f" {difference:.1e}"
  )
  if difference > 1e-3:
    sys.exit("the two are not the same picture")
  times = [(*seconds(own), *seconds(peer)) for _ in range(int(rounds))]
  print(
    f"{rounds} rounds in turn, DDIM with {steps} steps, {8 * size}x{8 * size} pixels"
  )
  print("                 minimum s         median s           ratio of")
  print("               ours  theirs     ours  theirs     minima  medians")
  columns = list(zip(*times, strict=True))
  for name, mine, other in (
    ("wall", columns[0], columns[2]),
    ("processor", columns[1], columns[3]),
  ):
    least, peer_least = min(mine), min(other)
    median, peer_median = statistics.median(mine), statistics.median(other)
    print(
      f"{name:10}{least:9.2f}{peer_least:8.2f}{median:9.2f}{peer_median:8.2f}"
      f"{peer_least / least:11.2f}{peer_median / median:9.2f}"
    )


if __name__ == "__main__":
  main(*sys.argv[1:])
