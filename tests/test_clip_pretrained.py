"""CLIP and SigLIP from directories: what is read, and what is refused.

That the numbers are transformers' own is shown in tests/parity/test_clip.py.
"""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from safetensors.numpy import load_file, save_file

from core.errors import UserError
from eval import images
from nets import clip_image, clip_text
from nets.pretrained import clip
from pipelines import dual
from pipelines.embed import Embedder
from tests.encoders import tokenizer
from tests.runs import largest_difference, load_config
from tests.test_scoring import devices

SIZES = {
  "hidden_size": 8,
  "intermediate_size": 12,
  "num_hidden_layers": 1,
  "num_attention_heads": 2,
}
TEXT = {**SIZES, "vocab_size": 60, "max_position_embeddings": 6, "eos_token_id": 2}
IMAGE = {**SIZES, "image_size": 8, "patch_size": 4}


def describe(folder: Path, kind: str, **changes: object) -> None:
  folder.mkdir(parents=True, exist_ok=True)
  config = {"model_type": kind, "text_config": TEXT, "vision_config": IMAGE}
  config |= {"projection_dim": 4} if kind == "clip" else {}
  text = json.dumps(config | changes)
  (folder / "config.json").write_text(text, encoding="utf-8")


def tensors(net, names, *inputs) -> tuple[dict, dict]:
  """A network's own numbers, and the same under the names of a file."""
  params = jax.jit(net.init)(jax.random.key(0), *inputs)["params"]
  flat, state = traverse_util.flatten_dict(params, sep="/"), {}
  for path, own in names.items():
    for name, part in zip(own, np.split(flat[path], len(own), axis=-1), strict=True):
      if path.endswith("kernel"):
        part = part.transpose((3, 2, 0, 1) if part.ndim == 4 else (1, 0))
      state[name] = np.ascontiguousarray(part)
  return params, state


def directory(folder: Path, kind: str = "clip") -> dict:
  """Writes a small model; returns its parameters."""
  describe(folder, kind)
  image, text = clip.image_tower(folder), clip_text.network(folder)
  head = "text_projection" if kind == "clip" else "text_model.head"
  params, state = {}, {}
  for name, net, names, x in (
    ("image", image, clip_image.names(image), jnp.zeros((1, 8, 8, 3))),
    ("text", text, clip_text.names(text, head=head), jnp.zeros((1, 6), jnp.int32)),
  ):
    params[name], own = tensors(net, names, x)
    state |= own
  state["logit_scale"] = np.asarray(3.0, np.float32)
  if kind == "siglip":
    state["logit_bias"] = np.asarray([-9.0], np.float32)
  tokenizer().save(str(folder / "tokenizer.json"))
  (folder / "tokenizer_config.json").write_text('{"pad_token": "[PAD]"}')
  # Files of OpenAI's time have these too.
  state["vision_model.embeddings.position_ids"] = np.arange(5)[None]
  state["text_model.embeddings.position_ids"] = np.arange(6)[None]
  save_file(state, folder / "model.safetensors")
  return params


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_every_tensor_is_read(tmp_path: Path, kind: str) -> None:
  params = directory(tmp_path, kind)
  found = clip.load(tmp_path)
  assert found.kind == kind
  assert largest_difference(params["image"], found.params["image"]) == 0
  assert largest_difference(params["text"], found.params["text"]) == 0
  assert found.params["scale"] == 3
  assert found.params.get("bias") == (-9 if kind == "siglip" else None)
  assert found.mean == clip.MEANS[kind]


def changed(folder: Path, remove: str = "", **add: np.ndarray) -> None:
  state = load_file(folder / "model.safetensors")
  state.pop(remove, None)
  save_file(state | add, folder / "model.safetensors")


def test_tensors_that_do_not_fit_are_refused(tmp_path: Path) -> None:
  directory(tmp_path)
  for remove, add, words in (
    ("logit_scale", {}, "no tensor logit_scale"),
    ("vision_model.pre_layrnorm.weight", {}, "no tensor vision_model.pre_layrnorm"),
    ("text_projection.weight", {}, "no tensor text_projection.weight"),
    ("", {"vision_model.extra": np.zeros(2)}, "vision_model.extra, which is no part"),
    ("", {"visual_projection.weight": np.zeros((4, 9))}, "of shape .4, 9."),
  ):
    changed(tmp_path, remove, **add)
    with pytest.raises(UserError, match=words):
      clip.load(tmp_path)
    directory(tmp_path)


def test_files_that_are_missing_or_of_others_are_refused(tmp_path: Path) -> None:
  with pytest.raises(UserError, match=r"config.json cannot be opened"):
    clip.load(tmp_path)
  describe(tmp_path, "bert")
  with pytest.raises(UserError, match="model_type is 'bert'"):
    clip.load(tmp_path)
  describe(tmp_path, "clip", vision_config={**IMAGE, "hidden_act": "gelo"})
  with pytest.raises(UserError, match="did you mean 'gelu'"):
    clip.load(tmp_path)
  describe(tmp_path, "siglip", vision_config={**IMAGE, "vision_use_head": False})
  with pytest.raises(UserError, match="without its head"):
    clip.load(tmp_path)
  describe(tmp_path, "clip")
  with pytest.raises(UserError, match=r"has no model.safetensors"):
    clip.load(tmp_path)
  directory(tmp_path)
  other = tmp_path / "preprocessor_config.json"
  other.write_text('{"resample": 2}', encoding="utf-8")
  with pytest.raises(UserError, match="resample=2 is not bicubic"):
    clip.load(tmp_path)
  other.write_text('{"image_mean": [0.5, 0.5, 0.5], "resample": 3}', encoding="utf-8")
  assert clip.load(tmp_path).mean == (0.5, 0.5, 0.5)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_it_judges_as_a_trained_one_does(tmp_path: Path, kind: str) -> None:
  folder = tmp_path / "clip-vit-base-patch16"
  params = directory(folder, kind)
  judge = dual.load(str(folder), load_config("configs/text/clip.py").parallel)
  embed = Embedder(judge, devices(1), 4)
  ids = np.zeros((2, 6), np.int32)
  ids[0], ids[1, :4] = [2, 21, 8, 7, 3, 0], [2, 4, 5, 3]  # [CLS] r e d [SEP], a b
  mask = np.arange(6) < np.array([[5], [4]])
  net = clip_text.network(folder)
  given = (ids, mask) if kind == "clip" else (ids,)
  _, pooled = jax.jit(net.apply)({"params": params["text"]}, *given)
  want = pooled / np.linalg.norm(pooled, axis=1, keepdims=True)
  np.testing.assert_allclose(embed.texts(["red", "ab"]), want, atol=1e-5)
  x = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3)).astype(np.uint8)
  scaled = (x / 255 - np.asarray(clip.MEANS[kind])) / np.asarray(clip.STDS[kind])
  tower = clip.image_tower(folder)
  out = jax.jit(tower.apply)({"params": params["image"]}, jnp.float32(scaled))
  want = out / np.linalg.norm(out, axis=1, keepdims=True)
  np.testing.assert_allclose(embed.images(images.of_array("x", x)), want, atol=1e-5)
  assert judge.name == "alignment score (clip-vit-base-patch16)"
  other = folder / "preprocessor_config.json"
  other.write_text('{"image_mean": [0.1, 0.2, 0.3]}', encoding="utf-8")
  again = dual.load(str(folder), load_config("configs/text/clip.py").parallel)
  assert again.settings != judge.settings
  (folder / "tokenizer.json").unlink()
  with pytest.raises(UserError, match="tokenizer.json is missing"):
    dual.load(str(folder), load_config("configs/text/clip.py").parallel)


def test_only_published_weights_are_called_clip_score() -> None:
  """They are told by their hash: a folder may have any name."""
  called = lambda name, sha: dual.called(Path(f"/w/{name}"), sha)  # noqa: E731
  (own,) = dual.OFFICIAL
  assert called("anything", own) == "CLIP score (clip-vit-large-patch14)"
  for name in ("clip-vit-large-patch14", "CLIP-ViT-H-14-laion2B-s32B-b79K", "mine"):
    assert called(name, "00") == f"alignment score ({name})"
