"""CLIP and SigLIP whole, and the losses, against transformers' own."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torchvision
import transformers

from nets import clip_text
from nets.pretrained import clip
from nets.pretrained.resize import resize
from text import contrastive

SIZES = {
  "hidden_size": 16,
  "intermediate_size": 24,
  "num_hidden_layers": 2,
  "num_attention_heads": 2,
}
WORDS = {"vocab_size": 50, "max_position_embeddings": 9, "bos_token_id": 1}
IMAGES = {"image_size": 12, "patch_size": 4}
RNG = np.random.default_rng(0)
TOKENS = RNG.integers(3, 40, (3, 9))
MASK = np.arange(9) < np.array([[9], [6], [3]])
TOKENS[np.arange(3), MASK.sum(1) - 1] = 49
PIXELS = RNG.integers(0, 256, (3, 12, 12, 3)).astype(np.uint8)


def peer_of(kind: str, act: str):
  """A small one, every parameter drawn so that none is of no consequence."""
  text = dict(**SIZES, **WORDS, eos_token_id=49, hidden_act=act)
  image = dict(**SIZES, **IMAGES, hidden_act=act)
  if kind == "clip":
    config = transformers.CLIPConfig(
      text_config=text, vision_config=image, projection_dim=8
    )
    peer = transformers.CLIPModel(config)
  else:
    config = transformers.SiglipConfig(text_config=text, vision_config=image)
    peer = transformers.SiglipModel(config)
  torch.manual_seed(0)
  for p in peer.parameters():
    torch.nn.init.normal_(p, std=0.3 if p.ndim > 1 else 0.1)
    if p.ndim == 1 and p.numel() > 1:
      p.data += 0.5
  return peer.eval()


def close(ours, theirs) -> None:
  theirs = theirs.detach().numpy()
  scale = np.abs(theirs).max()
  np.testing.assert_allclose(np.asarray(ours), theirs, rtol=0, atol=1e-4 * scale)


@pytest.mark.parametrize(
  ("kind", "act"),
  [("clip", "quick_gelu"), ("clip", "gelu"), ("siglip", "gelu_pytorch_tanh")],
)
def test_both_towers_and_their_loss(tmp_path, kind, act) -> None:
  peer = peer_of(kind, act)
  peer.save_pretrained(tmp_path)
  ours = clip.load(tmp_path)
  assert ours.kind == kind
  params, x = ours.params, jnp.asarray(PIXELS / 127.5 - 1, jnp.float32)
  u = jax.jit(ours.images)(params, x)
  v = jax.jit(ours.texts)(params, jnp.asarray(TOKENS), jnp.asarray(MASK))
  mean, std = clip.MEANS[kind], clip.STDS[kind]
  given = torch.tensor(PIXELS).permute(0, 3, 1, 2) / 255
  given = torchvision.transforms.functional.normalize(given, mean, std)
  options = {"attention_mask": torch.tensor(MASK).long()} if kind == "clip" else {}
  want = peer(
    input_ids=torch.tensor(TOKENS), pixel_values=given, return_loss=True, **options
  )
  close(u, want.image_embeds)
  close(v, want.text_embeds)
  scale, bias = jnp.exp(params["scale"]), params.get("bias", 0.0)
  close(scale * u @ v.T + bias, want.logits_per_image)
  marks = jnp.arange(12, dtype=jnp.uint32).reshape(3, 2, 2)
  pairs = contrastive.Pairs(u, v, marks, jnp.ones(3, bool))
  batch = contrastive.gathered(pairs, None)
  if kind == "clip":
    close(contrastive.info_nce(batch, scale).mean(), want.loss)
  else:
    close(contrastive.sigmoid(batch, scale, jnp.asarray(bias)).mean(), want.loss)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_what_config_json_leaves_out(tmp_path, kind) -> None:
  """transformers' own defaults, which its files may omit."""
  made = {"clip": transformers.CLIPConfig, "siglip": transformers.SiglipConfig}[kind]
  config = made(text_config={}, vision_config={}).to_dict()
  bare = {"model_type": kind, "text_config": {}, "vision_config": {}}
  towers = []
  for content in (config, bare):
    (tmp_path / "config.json").write_text(json.dumps(content), encoding="utf-8")
    towers.append((clip.image_tower(tmp_path), clip_text.network(tmp_path)))
  assert towers[0] == towers[1]


def test_settings_that_are_there_twice(tmp_path) -> None:
  """As in files of OpenCLIP's time: those with `dict` in their name count."""
  content = {
    "model_type": "clip",
    "text_config": {"hidden_size": 8, "num_hidden_layers": 2},
    "text_config_dict": {"hidden_size": 16, "hidden_act": "gelu"},
    "vision_config": {"hidden_size": 24},
    "vision_config_dict": None,
  }
  (tmp_path / "config.json").write_text(json.dumps(content), encoding="utf-8")
  want = transformers.CLIPConfig.from_pretrained(tmp_path)
  text, image = clip_text.network(tmp_path), clip.image_tower(tmp_path)
  own = want.text_config
  sizes = (own.hidden_size, own.num_hidden_layers, own.hidden_act)
  assert (text.dim, text.depth, text.act) == sizes
  assert image.dim == want.vision_config.hidden_size


def test_preprocessing(tmp_path) -> None:
  """Of square pictures, up to the rounding that Pillow's has and ours has not."""
  processor = transformers.CLIPImageProcessorPil(
    size={"shortest_edge": 20}, crop_size=20
  )
  pictures = RNG.integers(0, 256, (2, 33, 33, 3)).astype(np.uint8)
  theirs = processor(list(pictures), return_tensors="np")["pixel_values"]
  x = resize(pictures.astype(np.float32) / 255, 20, 20, "pillow_bicubic").clip(0, 1)
  ours = (x - np.asarray(clip.MEANS["clip"])) / np.asarray(clip.STDS["clip"])
  gaps = abs(ours.transpose(0, 3, 1, 2) - theirs) * 255 * min(clip.STDS["clip"])
  # Of noise, Pillow also cuts what leaves [0, 255] on the way.
  assert gaps.mean() < 0.5
  assert gaps.max() < 3
