"""Stable Diffusion's U-Net: its published weights for nets/unet.py."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import traverse_util

from core.errors import UserError
from nets.pretrained import convert as to
from nets.pretrained.hugging_face import describing, read_json, read_tensors
from nets.sizes import per_level
from nets.unet import UNet
from text.cond import Cond

STEM = "diffusion_pytorch_model"
# What config.json says of a network that UNet can be, or does not say: the values that
# diffusers takes then.
READ = {
  "attention_head_dim": 8,
  "block_out_channels": (320, 640, 1280, 1280),
  "cross_attention_dim": 1280,
  "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
  "in_channels": 4,
  "layers_per_block": 2,
  "norm_eps": 1e-5,
  "norm_num_groups": 32,
  "out_channels": 4,
  "transformer_layers_per_block": 1,
  "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
}
FIXED = {
  "act_fn": "silu",
  "addition_embed_type": None,
  "attention_type": "default",
  "center_input_sample": False,
  "class_embed_type": None,
  "class_embeddings_concat": False,
  "conv_in_kernel": 3,
  "conv_out_kernel": 3,
  "cross_attention_norm": None,
  "downsample_padding": 1,
  "dual_cross_attention": False,
  "encoder_hid_dim": None,
  "encoder_hid_dim_type": None,
  "flip_sin_to_cos": True,
  "freq_shift": 0,
  "mid_block_only_cross_attention": None,
  "mid_block_scale_factor": 1,
  "mid_block_type": "UNetMidBlock2DCrossAttn",
  "num_attention_heads": None,
  "num_class_embeds": None,
  "only_cross_attention": False,
  "resnet_out_scale_factor": 1.0,
  "resnet_skip_time_act": False,
  "resnet_time_scale_shift": "default",
  "time_cond_proj_dim": None,
  "time_embedding_act_fn": None,
  "time_embedding_dim": None,
  "time_embedding_type": "positional",
  "timestep_post_act": None,
}
ATTENDS = {
  "DownBlock2D": False,
  "CrossAttnDownBlock2D": True,
  "UpBlock2D": False,
  "CrossAttnUpBlock2D": True,
}
# Attributes of UNet that must agree, by what a config calls them.
SETTINGS = {
  "widths": "model.widths",
  "blocks": "model.blocks",
  "attention": "model.attention",
  "head_dim": "model.head_dim",
  "heads": "model.heads",
  "stem": "model.stem",
  "modulation": "model.modulation",
  "skip_scale": "model.skip_scale",
  "resample": "model.resample",
  "attention_up": "model.attention_up",
  "transformer": "model.transformer",
  "groups": "model.groups",
  "eps": "model.norm_eps",
}
# Modules of ours and what diffusers calls them.
ENDS = {
  "in": "conv_in",
  "out_norm": "conv_norm_out",
  "out": "conv_out",
  "middle_0": "mid_block.resnets.0",
  "middle_attention": "mid_block.attentions.0",
  "middle_1": "mid_block.resnets.1",
}
PARTS = {
  "": ("",),
  "Dense_0": ("linear_1",),
  "Dense_1": ("linear_2",),
  "norm_0": ("norm1",),
  "conv_0": ("conv1",),
  "modulation": ("time_emb_proj",),
  "norm_1": ("norm2",),
  "conv_1": ("conv2",),
  "shortcut": ("conv_shortcut",),
  "norm": ("norm",),
  "in": ("proj_in",),
  "out": ("proj_out",),
  "attention/qkv": ("attn1.to_q", "attn1.to_k", "attn1.to_v"),
  "attention/out": ("attn1.to_out.0",),
  "text/q": ("attn2.to_q",),
  "text/kv": ("attn2.to_k", "attn2.to_v"),
  "text/out": ("attn2.to_out.0",),
  "norm_2": ("norm3",),
  "mlp_in": ("ff.net.0.proj",),
  "mlp_out": ("ff.net.2",),
}


class Described(NamedTuple):
  """A network, and what it reads: latents of so many channels, a text so wide."""

  net: UNet
  channels: int
  text: int


def described(directory: Path, height: int, clock: str = "scaled_linear") -> Described:
  """What config.json describes, for latents of that height.

  What it calls attention_head_dim is the number of heads: 8 at every width in Stable
  Diffusion 1.x, one for each 64 channels in 2.x.

  Raises:
    UserError: config.json is missing or damaged, or describes another kind of network.
  """
  file = directory / "config.json"
  found = read_json(file)
  refusal = "which nets/unet.py has not; give the unet of Stable Diffusion 1 or 2."
  kind = found.get("_class_name", "UNet2DConditionModel")
  if kind != "UNet2DConditionModel":
    raise UserError(f"{file} is of {kind}, not of UNet2DConditionModel.")
  for field, value in FIXED.items():
    if found.get(field, value) != value:
      raise UserError(f"{file} has {field}={found[field]!r}, {refusal}")
  read = {field: found.get(field, value) for field, value in READ.items()}
  with describing(file, "a U-Net"):
    downs, ups = read["down_block_types"], read["up_block_types"]
    if bad := {*downs, *ups} - ATTENDS.keys():
      raise UserError(f"{file} has blocks {min(bad)}, {refusal}")
    attends = [ATTENDS[kind] for kind in downs]
    if attends != [ATTENDS[kind] for kind in reversed(ups)]:
      raise UserError(f"{file} attends at other resolutions down than up, {refusal}")
    widths = tuple(map(int, read["block_out_channels"]))
    given, blocks = read["attention_head_dim"], read["layers_per_block"]
    heads = per_level(given if isinstance(given, int) else tuple(given), widths)
    head_dims = {c // n for c, n in zip(widths, heads, strict=True)}
    if len(set(heads)) > 1 and len(head_dims) > 1:
      raise UserError(f"{file} has attention_head_dim={given}, {refusal}")
    same = len(set(heads)) == 1
    net = UNet(
      out_channels=int(read["out_channels"]),
      widths=widths,
      blocks=blocks if isinstance(blocks, int) else tuple(blocks),
      attention=tuple(height >> i for i, attend in enumerate(attends) if attend),
      head_dim=0 if same else head_dims.pop(),
      heads=heads[0] if same else 0,
      modulation="shift",
      transformer=int(read["transformer_layers_per_block"]),
      groups=int(read["norm_num_groups"]),
      eps=float(read["norm_eps"]),
      clock=clock,
    )
    return Described(net, int(read["in_channels"]), int(read["cross_attention_dim"]))


def load(net: UNet, shape: tuple[int, int, int], directory: Path) -> to.Params:
  """The parameters of `net` for latents of `shape` (h, w, c).

  `directory` is `unet` of a Stable Diffusion as diffusers writes it, with config.json
  and diffusion_pytorch_model.safetensors, whole or in parts, in full or half precision.

  Raises:
    UserError: a file is missing, damaged or of another network than `net`.
  """
  theirs, channels, text = described(directory, shape[0], net.clock)
  file = directory / "config.json"
  if net.clock == "logsnr":
    raise UserError(
      f"{file} is of a U-Net that was trained on timesteps: set model.clock to"
      " 'scaled_linear', not 'logsnr'."
    )
  for field, name in SETTINGS.items():
    wanted, own = getattr(theirs, field), getattr(net, field)
    if field == "blocks":
      wanted, own = (per_level(a.blocks, a.widths) for a in (theirs, net))
    if wanted != own:
      raise UserError(f"{file} is of a U-Net with {name}={wanted!r}, not {own!r}.")
  for what, wanted, own in (
    ("reads", channels, shape[-1]),
    ("returns", theirs.out_channels, net.out_channels),
  ):
    if wanted != own:
      raise UserError(f"{file} is of a U-Net that {what} {wanted} channels, not {own}.")
  state, file_of = read_tensors(directory, STEM)
  return convert(net, shape, text, state, file_of)


def convert(
  net: UNet,
  shape: tuple[int, int, int],
  text: int,
  state: to.StateDict,
  file_of: Callable[[str], Path],
) -> to.Params:
  """From diffusers' names; `text` is the width of what is read, see `to.matched`."""
  inputs = jnp.zeros((1, *shape)), jnp.zeros(1), Cond(seq=jnp.zeros((1, 1, text)))
  tree = jax.eval_shape(net.init, jax.random.key(0), *inputs)["params"]
  names = {path: tensors(path, len(net.widths)) for path in flat(tree)}
  # Linear layers over pixels, which Stable Diffusion 1 has as 1x1 convolutions.
  state = {k: a[:, :, 0, 0] if a.shape[2:] == (1, 1) else a for k, a in state.items()}
  return to.matched(net, names, state, file_of, *inputs)


def flat(tree: to.Params) -> dict[str, Any]:
  """Parameters by their paths, 'a/b/c'."""
  return traverse_util.flatten_dict(tree, sep="/")


def tensors(path: str, levels: int) -> tuple[str, ...]:
  """The tensors that the parameter at `path` is made of, of a net of so many levels."""
  module, *inner, leaf = path.split("/")
  if inner and (block := re.fullmatch(r"block_(\d+)", inner[0])):
    prefix, inner = f"transformer_blocks.{block[1]}.", inner[1:]
  else:
    prefix = ""
  parts = [f"{prefix}{part}" for part in PARTS["/".join(inner)]]
  kind = "bias" if leaf == "bias" else "weight"
  return tuple(
    ".".join(filter(None, (place(module, levels), part, kind))) for part in parts
  )


def place(module: str, levels: int) -> str:
  """What diffusers calls a module of UNet; their way up counts from the bottom."""
  if module == "noise":
    return "time_embedding"
  if module in ENDS:
    return ENDS[module]
  way, level, rest = module.split("_", 2)
  if rest == "conv":
    # One between two levels is of the smaller here, of the one it follows there.
    number = int(level) - 1 if way == "down" else levels - 1 - int(level)
    return f"{way}_blocks.{number}.{way}samplers.0.conv"
  number = int(level) if way == "down" else levels - 1 - int(level)
  i, *attention = rest.split("_")
  return f"{way}_blocks.{number}.{'attentions' if attention else 'resnets'}.{i}"
