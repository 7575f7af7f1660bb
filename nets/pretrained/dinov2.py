"""DINOv2, a vision transformer trained without labels."""

import json
from pathlib import Path

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from core import weights
from core.errors import UserError
from nets.attention import SelfAttention
from nets.pretrained import convert as to
from nets.pretrained.resize import resize


class Block(nn.Module):
  """x + scale attention(norm x), then x + scale mlp(norm x).

  The MLP is W_2 gelu(W_1 x), or with `swiglu` W_2 (silu(a) b) where [a, b] = W_1 x.
  """

  heads: int
  hidden: int
  swiglu: bool
  eps: float

  @nn.compact
  def __call__(self, x: Float[Array, "b l d"]) -> Float[Array, "b l d"]:
    def scaled(name: str, y: Float[Array, "b l d"]) -> Float[Array, "b l d"]:
      return y * self.param(name, nn.initializers.ones, (y.shape[-1],))

    y = nn.LayerNorm(self.eps, name="norm_0")(x)
    x = x + scaled("scale_0", SelfAttention(self.heads, name="attention")(y))
    y = nn.LayerNorm(self.eps, name="norm_1")(x)
    y = nn.Dense(self.hidden * (1 + self.swiglu), name="mlp_in")(y)
    if self.swiglu:
      gate, y = jnp.split(y, 2, axis=-1)
      y = nn.silu(gate) * y
    else:
      y = nn.gelu(y, approximate=False)
    return x + scaled("scale_1", nn.Dense(x.shape[-1], name="mlp_out")(y))


class DINOv2(nn.Module):
  """Pixels in [0, 255], of any size in whole patches -> the class token's features.

  Oquab et al. 2023 (arXiv:2304.07193): the class token after the last LayerNorm, [b,
  dim]. Pixels are scaled to ImageNet's mean and deviation. `grid` x `grid` learned
  positions are stretched to the patches of the image (see resize.py) as transformers
  does it, which differs a little from the first release.
  """

  dim: int
  depth: int
  heads: int
  hidden: int
  swiglu: bool = False
  patch: int = 14
  grid: int = 37
  eps: float = 1e-6

  @nn.compact
  def __call__(self, pixels: Float[Array, "b h w 3"]) -> Float[Array, "b {self.dim}"]:
    mean, std = jnp.array([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])
    x = (pixels / 255 - mean) / std
    side, zeros = (self.patch, self.patch), nn.initializers.zeros
    x = nn.Conv(self.dim, side, side, padding="VALID", name="patches")(x)
    b, h, w, _ = x.shape
    first = self.param("class", zeros, (self.dim,))
    positions = self.param("positions", zeros, (self.grid, self.grid, self.dim))
    x = x + resize(positions[None], h, w, "bicubic")
    first = jnp.broadcast_to(first, (b, 1, self.dim))
    x = jnp.concatenate([first, x.reshape(b, h * w, self.dim)], axis=1)
    for i in range(self.depth):
      block = Block(self.heads, self.hidden, self.swiglu, self.eps, name=f"block_{i}")
      x = block(x)
    return nn.LayerNorm(self.eps, name="norm")(x[:, 0])


def convert(state: to.StateDict) -> to.Params:
  """From the names of the files on Hugging Face."""

  def norm(name: str) -> to.Params:
    return {"scale": state[f"{name}.weight"], "bias": state[f"{name}.bias"]}

  def block(name: str) -> to.Params:
    qkv = (f"{name}.attention.attention.{part}" for part in ("query", "key", "value"))
    swiglu = f"{name}.mlp.weights_in.weight" in state
    mlp = ("weights_in", "weights_out") if swiglu else ("fc1", "fc2")
    return {
      "norm_0": norm(f"{name}.norm1"),
      "attention": {
        "qkv": to.dense(state, *qkv),
        "out": to.dense(state, f"{name}.attention.output.dense"),
      },
      "scale_0": state[f"{name}.layer_scale1.lambda1"],
      "norm_1": norm(f"{name}.norm2"),
      "mlp_in": to.dense(state, f"{name}.mlp.{mlp[0]}"),
      "mlp_out": to.dense(state, f"{name}.mlp.{mlp[1]}"),
      "scale_1": state[f"{name}.layer_scale2.lambda1"],
    }

  positions = state["embeddings.position_embeddings"][0]
  grid = round((len(positions) - 1) ** 0.5)
  depth = sum(name.endswith(".layer_scale1.lambda1") for name in state)
  return {
    "patches": to.conv(state, "embeddings.patch_embeddings.projection"),
    # The class token has a position too.
    "class": state["embeddings.cls_token"][0, 0] + positions[0],
    "positions": positions[1:].reshape(grid, grid, -1),
    **{f"block_{i}": block(f"encoder.layer.{i}") for i in range(depth)},
    "norm": norm("layernorm"),
  }


def path(name: str = "dinov2-base") -> Path:
  """The directory of config.json and model.safetensors; small, base, large or giant.

  Raises:
    UserError: it is not there.
  """
  return weights.locate(
    name, f"https://huggingface.co/facebook/{name} (config.json, model.safetensors)"
  )


def load(directory: Path | None = None) -> tuple[DINOv2, to.Params]:
  """The network that config.json describes, and its parameters.

  Raises:
    UserError: a file is missing, damaged or of another network.
  """
  directory = directory or path()
  file = directory / "config.json"
  try:
    config = json.loads(file.read_text(encoding="utf-8"))
    if config["model_type"] != "dinov2":
      raise UserError(f"{file} is of {config['model_type']!r}, not of 'dinov2'.")
    hidden = int(config["hidden_size"] * config["mlp_ratio"])
    swiglu = config["use_swiglu_ffn"]
    net = DINOv2(
      dim=config["hidden_size"],
      depth=config["num_hidden_layers"],
      heads=config["num_attention_heads"],
      # Two thirds of it, in eights, so that SwiGLU has as many parameters.
      hidden=(int(hidden * 2 / 3) + 7) // 8 * 8 if swiglu else hidden,
      swiglu=swiglu,
      patch=config["patch_size"],
      grid=config["image_size"] // config["patch_size"],
      eps=config["layer_norm_eps"],
    )
  except (OSError, ValueError, KeyError, TypeError) as e:
    raise UserError(
      f"{file} cannot be read as a configuration of DINOv2"
      f" ({type(e).__name__}: {e}): copy it again from where model.safetensors is from."
    ) from e
  file, image = directory / "model.safetensors", jnp.zeros((1, 28, 28, 3))
  return net, to.checked(file, net, convert, weights.read_safetensors(file), image)
