"""The image towers of dual encoders: a vision transformer, a ResNet, and a head alone.

Each maps pictures to one vector that is not normalised: [b, h, w, c] -> [b, out].
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from core.errors import UserError
from nets.clip_text import Layer, layer_names
from nets.layers import Conv, Dense, GroupNorm, squeeze
from nets.pretrained import convert as to
from nets.pretrained import hugging_face as hf
from nets.unet import ResBlock, check_size


def _patches(x: Array, kernel: Array, *_: Any, **__: Any) -> Array:
  """A convolution of patches side by side, as a product."""
  side, features = len(kernel), kernel.shape[-1]
  return squeeze(x, side) @ kernel.reshape(-1, features)


class AttentionPool(nn.Module):
  """A learned query reads all tokens to y, then y + W_2 act(W_1 norm y).

  The head of SigLIP's image tower, from Zhai et al. 2022 (arXiv:2106.04560).
  """

  heads: int
  hidden: int
  act: str
  eps: float
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "b l d"]) -> Float[Array, "b d"]:
    b, _, d = x.shape
    probe = self.param("probe", nn.initializers.normal(0.02), (1, 1, d))
    probe = jnp.broadcast_to(probe.astype(x.dtype), (b, 1, d))
    qkv = Dense(3 * d, dtype=self.dtype, name="qkv")(jnp.concatenate([probe, x], 1))
    qkv = qkv.reshape(b, -1, 3, self.heads, d // self.heads)
    logits = jnp.einsum("bhd,blhd->bhl", qkv[:, 0, 0], qkv[:, 1:, 1])
    logits = logits.astype(jnp.float32) * (d // self.heads) ** -0.5
    weights = jax.nn.softmax(logits, axis=-1).astype(self.dtype)
    y = jnp.einsum("bhl,blhd->bhd", weights, qkv[:, 1:, 2]).reshape(b, d)
    y = Dense(d, dtype=self.dtype, name="out")(y)
    z = nn.LayerNorm(self.eps, dtype=jnp.float32, name="norm")(y).astype(self.dtype)
    z = hf.ACTIVATIONS[self.act](Dense(self.hidden, dtype=self.dtype, name="mlp_in")(z))
    return y + Dense(d, dtype=self.dtype, name="mlp_out")(z)


class ImageTower(nn.Module):
  """A vision transformer, as CLIP and SigLIP have it.

  CLIP (Radford et al. 2021, arXiv:2103.00020, section 2.4): a class token before the
  patches, a LayerNorm before the first layer, and the class token after the last
  LayerNorm. SigLIP (Zhai et al. 2023, arXiv:2303.15343): neither, and `AttentionPool`
  of all patches. A linear map to `out` numbers follows, if that is not 0.

  Attributes:
    size, patch: sides of the pictures and of their patches, in pixels.
    dim, depth, heads, hidden: of the transformer; `hidden` is the MLP's width.
    act: one of hugging_face.ACTIVATIONS.
    eps: of the LayerNorms.
    class_token: CLIP's kind, or else SigLIP's.
    out: length of the vector; 0 for `dim`, without a map.
    remat: recompute each layer in the backward pass, to save memory.
    dtype: of the computation; parameters and output are float32.
  """

  size: int
  patch: int
  dim: int
  depth: int
  heads: int
  hidden: int
  act: str = "quick_gelu"
  eps: float = 1e-5
  class_token: bool = True
  out: int = 0
  remat: bool = False
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self, x: Float[Array, "b {self.size} {self.size} c"]
  ) -> Float[Array, "b e"]:
    """Raises UserError if a picture does not divide into patches."""
    if self.size % self.patch:
      raise UserError(
        f"pictures of {self.size} pixels do not divide into patches of {self.patch};"
        " set model.patch to a divisor."
      )
    normal, side = nn.initializers.normal, (self.patch, self.patch)
    conv = nn.Conv(
      self.dim,
      side,
      side,
      padding="VALID",
      use_bias=not self.class_token,
      dtype=self.dtype,
      conv_general_dilated=_patches,
      name="patches",
    )
    x = conv(x).reshape(len(x), -1, self.dim)
    if self.class_token:
      first = self.param("class", normal(self.dim**-0.5), (self.dim,))
      first = jnp.broadcast_to(first.astype(x.dtype), (len(x), 1, self.dim))
      x = jnp.concatenate([first, x], axis=1)
    places = self.param("positions", normal(self.dim**-0.5), x.shape[1:])
    x = x + places.astype(x.dtype)

    def norm(name: str, x: Float[Array, "b *l d"]) -> Float[Array, "b *l d"]:
      y = nn.LayerNorm(self.eps, dtype=jnp.float32, name=name)(x)
      return y.astype(self.dtype)

    x = norm("norm_in", x) if self.class_token else x
    layer = nn.remat(Layer) if self.remat else Layer
    init = normal(self.dim**-0.5 * (2 * self.depth) ** -0.5)
    options = (self.heads, self.hidden, self.act, self.eps)
    for i in range(self.depth):
      x = layer(*options, init, self.dtype, name=f"layer_{i}")(x)
    if self.class_token:
      x = norm("norm", x[:, 0])
    else:
      x = AttentionPool(*options, self.dtype, name="pool")(norm("norm", x))
    if self.out:
      x = Dense(self.out, use_bias=False, dtype=self.dtype, name="head")(x)
    return x.astype(jnp.float32)


class ResNet(nn.Module):
  """ResNet blocks at each resolution, the mean over the picture, a linear map.

  Attributes:
    widths: channels at each resolution; each after the first halves the picture.
    blocks: a resolution.
    out: length of the vector.
    dtype: of the computation; parameters and output are float32.
  """

  widths: tuple[int, ...]
  blocks: int
  out: int
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b {self.out}"]:
    check_size(x.shape[1], x.shape[2], len(self.widths) - 1, self.widths)
    x = Conv(self.widths[0], dtype=self.dtype, name="in")(x)
    for level, width in enumerate(self.widths):
      for i in range(self.blocks):
        half = "down" if level and not i else ""
        block = ResBlock(
          width, dtype=self.dtype, resample=half, least=4, name=f"block_{level}_{i}"
        )
        x = block(x, None, None)
    x = jax.nn.silu(GroupNorm(4, name="norm")(x)).mean((1, 2))
    return Dense(self.out, use_bias=False, name="head")(x.astype(jnp.float32))


class Head(nn.Module):
  """A linear map of the features of a frozen net, normalised: W norm(x) + b."""

  out: int

  @nn.compact
  def __call__(self, x: Float[Array, "b 1 1 c"]) -> Float[Array, "b {self.out}"]:
    x = nn.LayerNorm(name="norm")(x[:, 0, 0].astype(jnp.float32))
    return Dense(self.out, name="head")(x)


def names(net: ImageTower, prefix: str = "vision_model.") -> to.Names:
  """Where the parameters of an `ImageTower` are in Hugging Face's files."""
  found = {
    "positions": (f"{prefix}embeddings.position_embedding.weight",),
    **to.dense_names(
      "patches", f"{prefix}embeddings.patch_embedding", bias=not net.class_token
    ),
    **to.norm_names("norm", f"{prefix}post_layernorm"),
  }
  for i in range(net.depth):
    found |= layer_names(f"layer_{i}", f"{prefix}encoder.layers.{i}")
  if net.class_token:
    found["class"] = (f"{prefix}embeddings.class_embedding",)
    found |= to.norm_names("norm_in", f"{prefix}pre_layrnorm")
  else:
    head = f"{prefix}head"
    found |= {
      "pool/probe": (f"{head}.probe",),
      "pool/qkv/kernel": (f"{head}.attention.in_proj_weight",),
      "pool/qkv/bias": (f"{head}.attention.in_proj_bias",),
      **to.dense_names("pool/out", f"{head}.attention.out_proj"),
      **to.norm_names("pool/norm", f"{head}.layernorm"),
      **to.dense_names("pool/mlp_in", f"{head}.mlp.fc1"),
      **to.dense_names("pool/mlp_out", f"{head}.mlp.fc2"),
    }
  if net.out:
    found |= to.dense_names("head", "visual_projection", bias=False)
  return found
