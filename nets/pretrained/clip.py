"""CLIP and SigLIP whole, from directories as Hugging Face keeps them."""

from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from core.errors import UserError
from nets import clip_image, clip_text
from nets.layers import unit
from nets.pretrained import convert as to
from nets.pretrained import hugging_face as hf
from nets.pretrained.resize import resize

# The text tower, what weighs image against text, and numbers that are no parameters.
UNUSED = (
  r"text_model\.|text_projection\.|logit_|(vision_model\.)?embeddings\.position_ids"
)
# What transformers takes where a config.json does not say.
DEFAULTS = {
  "clip": {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 32,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
  },
  "siglip": {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 16,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
  },
}
# Of pixels in [0, 1], where preprocessor_config.json does not say.
MEANS = {"clip": (0.48145466, 0.4578275, 0.40821073), "siglip": (0.5, 0.5, 0.5)}
STDS = {"clip": (0.26862954, 0.26130258, 0.27577711), "siglip": (0.5, 0.5, 0.5)}
BICUBIC = 3  # Pillow's number for it


class Pretrained(NamedTuple):
  """Both towers of a directory.

  Attributes:
    kind: clip or siglip.
    image, text: the networks.
    mean, std: of pixels in [0, 1].
    params: {image, text, scale} and of SigLIP `bias`: logits are
      exp(scale) u.v + bias.
  """

  kind: str
  image: clip_image.ImageTower
  text: clip_text.TextTower
  mean: tuple[float, ...]
  std: tuple[float, ...]
  params: dict[str, Any]

  def images(self, params: dict[str, Any], x: Array) -> Float[Array, "b d"]:
    """Pictures [b, h, w, 3] in [-1, 1] -> unit vectors.

    They are squared to the tower's size by Pillow's bicubic filter, not rounded; its
    own preprocessing rounds, and cuts what is not square.
    """
    size = self.image.size
    x = resize((x + 1) / 2, size, size, "pillow_bicubic")
    x = (jnp.clip(x, 0, 1) - jnp.asarray(self.mean)) / jnp.asarray(self.std)
    return unit(self.image.apply({"params": params["image"]}, x))

  def texts(
    self,
    params: dict[str, Any],
    tokens: Int[Array, "b l"],
    mask: Bool[Array, "b l"] | None,
  ) -> Float[Array, "b d"]:
    """Tokens -> unit vectors; SigLIP reads its padding."""
    mask = mask if self.kind == "clip" else None
    _, pooled = self.text.apply({"params": params["text"]}, tokens, mask)
    return unit(pooled)


def image_tower(directory: Path) -> clip_image.ImageTower:
  """The image tower that config.json describes.

  Raises:
    UserError: it cannot be read, or describes what is not built here.
  """
  file = directory / "config.json"
  config = hf.read_json(file)
  with hf.describing(file, "CLIP or SigLIP"):
    kind = config["model_type"]
    if kind not in DEFAULTS:
      raise ValueError(f"model_type is {kind!r}")
    own = DEFAULTS[kind] | hf.part(config, "vision")
    if not own.get("vision_use_head", True):
      raise ValueError("an image tower without its head is not built here")
    return clip_image.ImageTower(
      size=own["image_size"],
      patch=own["patch_size"],
      dim=own["hidden_size"],
      depth=own["num_hidden_layers"],
      heads=own["num_attention_heads"],
      hidden=own["intermediate_size"],
      act=hf.activation(file, own["hidden_act"]),
      eps=own["layer_norm_eps"],
      class_token=kind == "clip",
      out=config.get("projection_dim", 512) if kind == "clip" else 0,
    )


def pixels(directory: Path, kind: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
  """Mean and deviation by which pixels in [0, 1] are scaled.

  Raises:
    UserError: preprocessor_config.json cannot be read, or resizes in another way.
  """
  file = directory / "preprocessor_config.json"
  own = hf.read_json(file) if file.exists() else {}
  with hf.describing(file, "the preprocessing of CLIP or SigLIP"):
    if own.get("resample", BICUBIC) != BICUBIC:
      raise ValueError(f"resample={own['resample']} is not bicubic, which is {BICUBIC}")
    means = tuple(map(float, own.get("image_mean", MEANS[kind])))
    return means, tuple(map(float, own.get("image_std", STDS[kind])))


def load(directory: Path) -> Pretrained:
  """Both towers, in float32.

  Raises:
    UserError: a file is missing or damaged, or a tensor missing, mis-shaped or left
      over.
  """
  image, text = image_tower(directory), clip_text.network(directory)
  kind = "clip" if image.class_token else "siglip"
  mean, std = pixels(directory, kind)
  state, file_of = hf.read_tensors(directory)
  params = {
    "image": to.matched(
      image,
      clip_image.names(image),
      state,
      file_of,
      jnp.zeros((1, image.size, image.size, 3)),
      unused=UNUSED,
    ),
    "text": clip_text.load(directory, text),
  }
  for name, own in (("scale", "logit_scale"), ("bias", "logit_bias")):
    if name == "scale" or kind == "siglip":
      if own not in state:
        raise UserError(f"{file_of(own)} has no tensor {own}; download it again.")
      params[name] = jnp.asarray(state[own], jnp.float32).reshape(())
  return Pretrained(kind, image, text, mean, std, params)
