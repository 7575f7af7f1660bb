"""Stable Diffusion's KL autoencoder: its published weights for nets/autoencoder.py."""

import math
import re
from pathlib import Path

import jax.numpy as jnp

from core import weights
from core.errors import UserError
from nets.autoencoder import LEAST, Autoencoder
from nets.pretrained import convert as to
from nets.pretrained import hugging_face

FILE = "sd-vae-ft-mse/diffusion_pytorch_model.safetensors"
ORIGIN = (
  "https://huggingface.co/stabilityai/sd-vae-ft-mse (diffusion_pytorch_model"
  ".safetensors)"
)
# Names of diffusers, old and new ones of attention, to those of the first release.
NAMES = (
  (r"^first_stage_model\.", ""),
  (r"\.mid_block\.resnets\.0\.", ".mid.block_1."),
  (r"\.mid_block\.resnets\.1\.", ".mid.block_2."),
  (r"\.mid_block\.attentions\.0\.", ".mid.attn_1."),
  (r"\.(down|up)_blocks\.", r".\1."),
  (r"\.resnets\.", ".block."),
  (r"\.attentions\.", ".attn."),
  (r"\.(down|up)samplers\.0\.", r".\1sample."),
  (r"\.conv_norm_out\.", ".norm_out."),
  (r"\.conv_shortcut\.", ".nin_shortcut."),
  (r"\.group_norm\.", ".norm."),
  (r"\.(?:to_q|query)\.", ".q."),
  (r"\.(?:to_k|key)\.", ".k."),
  (r"\.(?:to_v|value)\.", ".v."),
  (r"\.(?:to_out\.0|proj_attn)\.", ".proj_out."),
)
# The layers of which there are as many as the settings ask.
LEVELS = re.compile(
  r"(?P<side>encoder|decoder)\.(?P<way>down|up)\.(?P<level>\d+)\.(?:"
  r"block\.(?P<block>\d+)\.norm1|attn\.(?P<attn>\d+)\.norm|(?:down|up)sample\.conv"
  r")\.weight"
)


def renamed(state: to.StateDict) -> to.StateDict:
  """The state dict under the names of the first release (CompVis/latent-diffusion).

  1x1 convolutions [o i 1 1] become linear layers [o i]. The levels of the decoder are
  counted from the picture, as there; diffusers counts them from the latents.
  """
  ups = [re.match(r"decoder\.up_blocks\.(\d+)\.", name) for name in state]
  last = max((int(m[1]) for m in ups if m), default=0)

  def rename(name: str) -> str:
    name = re.sub(
      r"^decoder\.up_blocks\.(\d+)", lambda m: f"decoder.up.{last - int(m[1])}", name
    )
    for pattern, new in NAMES:
      name = re.sub(pattern, new, name)
    return name

  return {
    rename(name): a[:, :, 0, 0] if a.shape[2:] == (1, 1) else a
    for name, a in state.items()
  }


def convert(state: to.StateDict) -> to.Params:
  """From diffusers' names, or those of the first release; other names are left out."""
  state = renamed(state)

  def norm(name: str) -> to.Params:
    return {"scale": state[f"{name}.weight"], "bias": state[f"{name}.bias"]}

  def block(name: str) -> to.Params:
    params = {
      "norm_0": norm(f"{name}.norm1"),
      "conv_0": to.conv(state, f"{name}.conv1"),
      "norm_1": norm(f"{name}.norm2"),
      "conv_1": to.conv(state, f"{name}.conv2"),
    }
    if f"{name}.nin_shortcut.weight" in state:
      params["shortcut"] = to.dense(state, f"{name}.nin_shortcut")
    return params

  def attention(name: str) -> to.Params:
    qkv = (f"{name}.{part}" for part in "qkv")
    out = to.dense(state, f"{name}.proj_out")
    return {
      "norm": norm(f"{name}.norm"),
      "attention": {"qkv": to.dense(state, *qkv), "out": out},
    }

  def ends(side: str) -> to.Params:
    params = {
      "in": to.conv(state, f"{side}.conv_in"),
      "middle_0": block(f"{side}.mid.block_1"),
      "middle_1": block(f"{side}.mid.block_2"),
      "out_norm": norm(f"{side}.norm_out"),
      "out": to.conv(state, f"{side}.conv_out"),
    }
    if f"{side}.mid.attn_1.norm.weight" in state:
      params["middle_attention"] = attention(f"{side}.mid.attn_1")
    return params

  params = {
    "encoder": ends("encoder"),
    "quant": to.dense(state, "quant_conv"),
    "post_quant": to.dense(state, "post_quant_conv"),
    "decoder": ends("decoder"),
  }
  for m in filter(None, map(LEVELS.fullmatch, state)):
    side, way, level = params[m["side"]], m["way"], int(m["level"])
    name = f"{m['side']}.{way}.{level}"
    if m["block"]:
      side[f"{way}_{level}_{m['block']}"] = block(f"{name}.block.{m['block']}")
    elif m["attn"]:
      attn = attention(f"{name}.attn.{m['attn']}")
      side[f"{way}_{level}_{m['attn']}_attention"] = attn
    else:
      # Ours belong to the smaller level of the two.
      smaller = level + 1 if way == "down" else level
      side[f"{way}_{smaller}_conv"] = to.conv(state, f"{name}.{way}sample.conv")
  return params


def path() -> Path:
  """Where the file of Stable Diffusion's autoencoder is.

  Raises:
    UserError: it is not there.
  """
  return weights.locate(FILE, ORIGIN)


def beside(file: Path) -> Path:
  """config.json beside the weights; `file` is theirs or their folder."""
  return (file if file.is_dir() else file.parent) / "config.json"


def scale(file: Path) -> float | None:
  """What latents are multiplied by, as config.json says, if it is there and does."""
  if not beside(file).exists():
    return None
  found = hugging_face.read_json(beside(file)).get("scaling_factor")
  return float(found) if isinstance(found, int | float) else None


def check_described(net: Autoencoder, file: Path) -> None:
  """Raises UserError if config.json is of another kind of network or has other norms.

  Norms are what no shape would tell.
  """
  config = beside(file)
  found = hugging_face.read_json(config) if config.exists() else {}
  if (kind := found.get("_class_name", "AutoencoderKL")) != "AutoencoderKL":
    raise UserError(
      f"{config} is of {kind}, not of AutoencoderKL; give the folder 'vae' beside it."
    )
  if (wanted := found.get("norm_num_groups")) is None:
    return
  own = {net.groups or min(math.gcd(32, c), c // LEAST) for c in net.widths}
  if own != {wanted}:
    raise UserError(
      f"{config} is of an autoencoder with {wanted} groups in every norm: set"
      f" model.groups to {wanted}."
    )


def load(
  net: Autoencoder, shape: tuple[int, int, int], file: Path | None = None
) -> to.Params:
  """The parameters of `net` for images of `shape` (h, w, c), from safetensors.

  Stable Diffusion's is `Autoencoder(image_channels=3, encoded=8, latent=4)`; another
  `net` needs a file of the same settings. A file of the whole of Stable Diffusion will
  do too, and so will a folder `vae` as diffusers writes it.

  Raises:
    UserError: the file is missing, damaged or of another network, or images of `shape`
      do not suit `net`.
  """
  file = file or path()
  if not file.exists():
    raise UserError(
      f"{file} is missing: download it from {ORIGIN}, or give the file that you have."
    )
  check_described(net, file)
  if file.is_dir():
    state = hugging_face.read_tensors(file, Path(FILE).stem).state
  else:
    state = weights.read_safetensors(file)
  image = jnp.zeros((1, *shape))
  return to.checked(file, net, convert, state, image)
