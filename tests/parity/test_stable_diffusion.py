"""Stable Diffusion's U-Net, its draws and decoded pictures against diffusers' own."""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import (
  AutoencoderKL,
  DDIMScheduler,
  SD3Transformer2DModel,
  StableDiffusionPipeline,
  UNet2DConditionModel,
)
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from configs.diffusion import stable_diffusion
from core import noise
from core.family import Spec, make, sample_keys
from diffusion import sampler
from diffusion.settings import Estimate, Settings, time_grid
from nets.autoencoder import Autoencoder
from nets.pretrained import autoencoder, unet
from nets.unet import UNet
from pipelines import inputs, published
from text import tokens
from text.cond import Cond, guide

# numpy 2 asks of tensors what PyTorch's do not say yet.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")

SHAPE, TEXT = (16, 8, 4), (5, 24)
SCHEDULE = noise.scaled_linear()
# What differs between the two: the heads, and a linear layer for a 1x1 convolution.
VERSIONS = {
  "1": {"attention_head_dim": 4},
  "2": {"attention_head_dim": (2, 4), "use_linear_projection": True},
}
SCHEDULER = {
  "beta_start": 0.00085,
  "beta_end": 0.012,
  "beta_schedule": "scaled_linear",
  "clip_sample": False,
  "set_alpha_to_one": False,
  "steps_offset": 1,
}


@functools.cache
def peer(version: str) -> UNet2DConditionModel:
  """With random weights, norms and biases not at 1 and 0."""
  torch.manual_seed(0)
  net = UNet2DConditionModel(
    block_out_channels=(32, 64),
    down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    layers_per_block=1,
    cross_attention_dim=TEXT[1],
    norm_num_groups=8,
    **VERSIONS[version],
  )
  with torch.no_grad():
    for p in net.parameters():
      p.add_(0.05 * torch.randn_like(p))
  return net.eval()


def normal(*shape: int) -> np.ndarray:
  return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def close(ours, theirs) -> None:
  """Within 1e-4 of the peer's largest number."""
  np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4 * abs(theirs).max())


def nhwc(x: torch.Tensor) -> np.ndarray:
  return x.detach().permute(0, 2, 3, 1).numpy()


def nchw(x: np.ndarray) -> torch.Tensor:
  return torch.tensor(np.moveaxis(x, -1, 1))


def loaded(theirs: UNet2DConditionModel, folder: Path) -> tuple[UNet, dict]:
  """Ours, by way of a folder that they write."""
  theirs.save_pretrained(folder)
  net = unet.described(folder, SHAPE[0]).net
  return net, unet.load(net, SHAPE, folder)


STEPS = torch.tensor([0, 421, 999])


def forward(net: UNet, params: dict, x: jax.Array, text: jax.Array) -> jax.Array:
  logsnr = SCHEDULE.logsnr((jnp.asarray(STEPS) + 1) / 1000)
  return net.apply({"params": params}, x, logsnr, Cond(seq=text))


def test_unet_and_its_gradients(tmp_path: Path) -> None:
  theirs = peer("1")
  net, params = loaded(theirs, tmp_path)
  assert (net.heads, net.head_dim) == (4, 0)
  x, text, g = (normal(3, *shape) for shape in (SHAPE, TEXT, SHAPE))
  tx, ttext = nchw(x).requires_grad_(), torch.tensor(text).requires_grad_()
  out = theirs(tx, STEPS, ttext).sample
  out.backward(nchw(g))

  @jax.jit
  def ours(*args):
    y, back = jax.vjp(functools.partial(forward, net), *args)
    return y, back(g)

  y, (dparams, dx, dtext) = ours(params, x, text)
  close(y, nhwc(out))
  close(dx, nhwc(tx.grad))
  close(dtext, ttext.grad.numpy())
  grads = {name: p.grad.numpy() for name, p in theirs.named_parameters()}
  wanted = unet.convert(net, SHAPE, TEXT[1], grads, Path)
  largest = max(abs(a).max() for a in jax.tree.leaves(wanted))
  for own, other in zip(*map(jax.tree.leaves, (dparams, wanted)), strict=True):
    np.testing.assert_allclose(own, other, rtol=0, atol=1e-4 * largest)


def test_unet_of_the_second_version(tmp_path: Path) -> None:
  net, params = loaded(peer("2"), tmp_path)
  assert (net.heads, net.head_dim) == (0, 16)
  x, text = (normal(3, *shape) for shape in (SHAPE, TEXT))
  with torch.no_grad():
    out = peer("2")(nchw(x), STEPS, torch.tensor(text)).sample
  close(jax.jit(functools.partial(forward, net))(params, x, text), nhwc(out))


@pytest.mark.parametrize("shards", [False, True])
def test_halves_and_parts(shards: bool, tmp_path: Path) -> None:
  theirs = peer("1")
  size = {"max_shard_size": "100KB"} if shards else {}
  theirs.save_pretrained(tmp_path, variant="fp16", **size)
  assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == shards
  net = unet.described(tmp_path, SHAPE[0]).net
  params = unet.load(net, SHAPE, tmp_path)
  kernel = theirs.down_blocks[0].resnets[0].conv1.weight.detach().numpy()
  np.testing.assert_array_equal(
    params["down_0_0"]["conv_0"]["kernel"], kernel.transpose(2, 3, 1, 0)
  )


@pytest.fixture(scope="module")
def codec() -> AutoencoderKL:
  """Pictures of 32x16 to latents of 16x8."""
  torch.manual_seed(1)
  return AutoencoderKL(
    block_out_channels=(32, 40),
    down_block_types=("DownEncoderBlock2D",) * 2,
    up_block_types=("UpDecoderBlock2D",) * 2,
    norm_num_groups=8,
    layers_per_block=1,
    latent_channels=4,
  ).eval()


def test_a_picture_of_a_text(codec: AutoencoderKL, tmp_path: Path) -> None:
  """Guided DDIM over latents, step by step, and the decoded picture: v prediction."""
  steps, scale = 10, 7.5
  scheduler = DDIMScheduler(**SCHEDULER, prediction_type="v_prediction")
  pipeline = StableDiffusionPipeline(
    vae=codec,
    text_encoder=None,
    tokenizer=None,
    unet=peer("2"),
    scheduler=scheduler,
    safety_checker=None,
    feature_extractor=None,
    requires_safety_checker=False,
  )
  pipeline.save_pretrained(tmp_path)
  keys = sample_keys(jax.random.key(0), 2)
  text, null = normal(2, *TEXT), normal(3, *TEXT)[2:]
  pipeline.set_progress_bar_config(disable=True)
  wanted = []
  draw = functools.partial(
    pipeline,
    prompt_embeds=torch.tensor(text),
    negative_prompt_embeds=torch.tensor(null.repeat(2, 0)),
    latents=nchw(np.array(sampler.draw(keys, 0, SHAPE))),
    height=32,
    width=16,
    num_inference_steps=steps,
    guidance_scale=scale,
    callback_on_step_end=lambda p, i, t, kept: wanted.append(kept["latents"]) or kept,
  )
  images = draw(output_type="np").images

  net = unet.described(tmp_path / "unet", SHAPE[0]).net
  params = unet.load(net, SHAPE, tmp_path / "unet")
  schedule = noise.discrete(SCHEDULE, 1000)
  both = Cond(seq=jnp.concatenate([text, null.repeat(2, 0)]))

  def denoise(x_t: jax.Array, logsnr: jax.Array) -> Estimate:
    pair = (jnp.concatenate([a, a]) for a in (x_t, logsnr))
    value = guide(net.apply({"params": params}, *pair, both), scale)
    return Estimate(noise.to_x_eps(value, x_t, logsnr, "vp", "v")[0], None)

  settings = Settings(sampler="ddim", grid="leading", steps=steps)
  grid = time_grid(schedule, settings)
  x, latents = sampler.draw(keys, 0, SHAPE), []
  # One step after the other, to see what lies between.
  step = jax.jit(lambda x, t: sampler.solve(denoise, keys, x, t, "vp", settings)[0])
  for i in range(steps):
    x = step(x, grid[i : i + 2])
    latents.append(x)
  for own, other in zip(latents, wanted, strict=True):
    close(own, nhwc(other))

  decoder = Autoencoder(3, encoded=8, latent=4, widths=(32, 40), blocks=1)
  file = tmp_path / "vae" / "diffusion_pytorch_model.safetensors"
  weights = autoencoder.load(decoder, (32, 16, 3), file)
  decode = functools.partial(decoder.apply, {"params": weights}, method="decode")
  picture = jax.jit(decode)(x / codec.config.scaling_factor)
  close(jnp.clip(picture / 2 + 0.5, 0, 1), images)


def tokenizer(folder: Path) -> CLIPTokenizer:
  """A small one, and its two files as the first release has them."""
  units = sorted(ByteLevel.alphabet())  # '!' is the first
  words = ["re", "red</w>", "he", "art</w>", "heart</w>", "<|startoftext|>"]
  vocabulary = [*units, *(f"{unit}</w>" for unit in units), *words, "<|endoftext|>"]
  vocabulary.insert(-2, "ar")
  ids = {word: i for i, word in enumerate(vocabulary)}
  pairs = "r e\nre d</w>\nh e\na r\nar t</w>\nhe art</w>"
  merges = [tuple(pair.split()) for pair in pairs.splitlines()]
  folder.mkdir(exist_ok=True)
  for file in folder.iterdir():
    file.unlink()
  (folder / "vocab.json").write_text(json.dumps(ids))
  (folder / "merges.txt").write_text(f"#version: 0.2\n{pairs}\n")
  (folder / "special_tokens_map.json").write_text('{"pad_token": "!"}')
  return CLIPTokenizer(vocab=ids, merges=merges, pad_token="!")


def test_clips_tokens(tmp_path: Path) -> None:
  theirs = tokenizer(tmp_path / "tokenizer")
  ours = tokens.load(tmp_path / "text_encoder", 12)
  for caption in ("Red  heart", "it's 42 hearts!", "红心 ❤", "", "a" * 40, "REDHEART."):
    wanted = theirs(caption, truncation=True, max_length=12)["input_ids"]
    assert ours([caption])[0].tolist() == wanted, caption
  assert tokens.padding(tmp_path / "text_encoder") == theirs.pad_token_id == 0


def test_from_text_by_a_config(codec: AutoencoderKL, tmp_path: Path) -> None:
  """The folder of a pipeline, read as configs/diffusion/stable_diffusion.py:v1 does.

  Guided DDIM by the family's own sampler, with the empty text as null: eps prediction.
  """
  steps, length, own = 4, TEXT[0] + 2, tokenizer(tmp_path / "other")
  torch.manual_seed(2)
  settings = CLIPTextConfig(
    vocab_size=len(own),
    hidden_size=TEXT[1],
    intermediate_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    max_position_embeddings=length,
    bos_token_id=own.bos_token_id,
    eos_token_id=own.eos_token_id,
  )
  own.model_max_length = length
  pipeline = StableDiffusionPipeline(
    vae=codec,
    text_encoder=CLIPTextModel(settings).eval(),
    tokenizer=own,
    unet=peer("1"),
    scheduler=DDIMScheduler(**SCHEDULER),
    safety_checker=None,
    feature_extractor=None,
    requires_safety_checker=False,
  )
  pipeline.set_progress_bar_config(disable=True)
  pipeline.save_pretrained(tmp_path)
  tokenizer(tmp_path / "tokenizer")
  prompts, keys = ["red heart", "a very long red redheart"], jax.random.key(0)
  with torch.no_grad():
    both = pipeline.encode_prompt(prompts, "cpu", 1, True)
  # As we keep them.
  text, null = (a.to(torch.bfloat16).float() for a in both)
  noises = sampler.draw(sample_keys(keys, 2), 0, SHAPE)
  wanted = pipeline(
    prompt_embeds=text,
    negative_prompt_embeds=null,
    latents=nchw(np.array(noises)),
    height=32,
    width=16,
    num_inference_steps=steps,
    guidance_scale=7.5,
    output_type="latent",
  ).images

  c = stable_diffusion.get_config()
  stable_diffusion.published(c, str(tmp_path), 1)
  net = unet.described(tmp_path / "unet", SHAPE[0]).net
  for name in ("widths", "blocks", "attention", "heads", "groups"):
    c.model[name] = getattr(net, name)
  c.sample.steps = steps
  spec = Spec(SHAPE, pixels=False)
  c.data.codec = ""
  family = make(c, spec, **published.frozen(c, spec))
  cond = inputs.conditions(c, prompts, [0, 0])
  np.testing.assert_allclose(
    np.asarray(cond.parts[0].seq, np.float32), text, rtol=2**-7, atol=1e-3
  )
  batch = {"x": np.zeros((2, *SHAPE), np.float32), "cond": cond}
  state = jax.jit(family.init)(keys, batch)
  samples = jax.jit(lambda state: family.sample(state, keys, cond, 2))(state)
  # The last bit of a text's numbers may be rounded otherwise.
  scale = abs(nhwc(wanted)).max()
  np.testing.assert_allclose(samples.images / scale, nhwc(wanted) / scale, atol=1e-3)


def test_full_size_has_as_many_parameters() -> None:
  """As tests/test_shapes.py has them; made without numbers."""
  kinds = {"attention_head_dim": 8, "cross_attention_dim": 768}
  with torch.device("meta"):
    first = UNet2DConditionModel(**kinds)
    second = UNet2DConditionModel(
      attention_head_dim=(5, 10, 20, 20),
      cross_attention_dim=1024,
      use_linear_projection=True,
    )
    third = SD3Transformer2DModel(
      num_layers=24,
      num_attention_heads=24,
      caption_projection_dim=1536,
      pos_embed_max_size=192,
    )
  counts = [sum(p.numel() for p in net.parameters()) for net in (first, second, third)]
  assert counts == [859_520_964, 865_910_724, 2_028_328_000]
