"""DiT, the diffusion transformer (Peebles & Xie 2022, arXiv:2212.09748)."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Integer

from core.errors import UserError
from nets.embeddings import NoiseEmbedding, positions_2d
from nets.joint import JointBlocks
from nets.layers import Dense, squeeze, unsqueeze
from nets.transformer import Blocks
from text.cond import Cond


def patchify(x: Float[Array, "b h w c"], patch: int) -> Float[Array, "b l p"]:
  """Cut into patch x patch squares, row by row: p = patch * patch * c.

  Raises UserError if the image does not divide into patches.
  """
  b, h, w, c = x.shape
  if h % patch or w % patch:
    fit = "x".join(str(max(1, size // patch) * patch) for size in (h, w))
    raise UserError(
      f"An image of {h}x{w} does not divide into patches of {patch}x{patch}; use"
      f" {fit}, or another `patch`."
    )
  return squeeze(x, patch).reshape(b, -1, patch * patch * c)


def unpatchify(
  x: Float[Array, "b l p"], height: int, width: int, patch: int
) -> Float[Array, "b {height} {width} c"]:
  """The inverse of `patchify`."""
  return unsqueeze(
    x.reshape(len(x), height // patch, width // patch, x.shape[-1]), patch
  )


class DiT(nn.Module):
  """A transformer over the patches of a noisy image.

  The noise level and `cond.pooled` modulate every block (adaLN-zero); the patches
  read `cond.seq` by cross-attention, or in one attention with it (MM-DiT).
  Positions are fixed, so the parameters fit any image size. The output starts at
  zero.

  Attributes:
    dim: width of a token, a multiple of 4 and of `heads`.
    depth: number of blocks.
    heads: attention heads.
    patch: side of a patch in pixels; image sides are multiples of it.
    out_channels: channels of the output; the input may have others.
    mlp_ratio: hidden width of the MLPs over `dim`.
    dropout: rate on the branches of each block.
    dtype: type of the computation; parameters and output are float32.
    remat: recompute each block in the backward pass, to save memory.
    scan: compile one block and loop, to save compile time.
    text_attention: 'cross' (`Block`) or 'joint' (`JointBlock`).
  """

  dim: int
  depth: int
  heads: int
  patch: int
  out_channels: int
  mlp_ratio: int = 4
  dropout: float = 0.0
  dtype: DTypeLike = jnp.float32
  remat: bool = False
  scan: bool = True
  text_attention: str = "cross"

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "b h w c"],
    logsnr: Float[Array, " b"],
    cond: Cond,
    ids: Integer[Array, " b"] | None = None,
  ) -> Float[Array, "b h w {self.out_channels}"]:
    """The raw output for noisy images `x`; dropout is active if `ids` is given."""
    if self.dim % 4 or self.dim % self.heads:
      raise UserError(
        f"DiT's `dim` {self.dim} must be a multiple of 4 and of `heads` {self.heads}."
      )
    _, h, w, _ = x.shape
    p, dense = self.patch, nn.initializers.xavier_uniform()
    y = Dense(self.dim, dtype=self.dtype, kernel_init=dense, name="patches")(
      patchify(x, p)
    )
    y = y + jnp.asarray(positions_2d(h // p, w // p, self.dim), self.dtype)
    vec = NoiseEmbedding(self.dim, dtype=self.dtype, name="noise")(logsnr)
    if cond.pooled is not None:
      vec = vec + Dense(self.dim, dtype=self.dtype, name="pooled")(cond.pooled)
    options = (
      self.depth,
      self.heads,
      self.mlp_ratio,
      self.dropout,
      self.dtype,
      self.remat,
      self.scan,
    )
    if self.text_attention == "joint" and cond.seq is not None:
      text = Dense(self.dim, dtype=self.dtype, name="text")(cond.seq)
      y = JointBlocks(*options, name="joint")(y, text, cond.mask, vec, ids)
    else:
      y = Blocks(*options, name="blocks")(
        y, vec=vec, text=cond.seq, text_mask=cond.mask, ids=ids
      )

    zeros = nn.initializers.zeros
    mod = Dense(2 * self.dim, kernel_init=zeros, name="modulation")(jax.nn.silu(vec))
    shift, scale = jnp.split(mod[:, None], 2, axis=-1)
    y = nn.LayerNorm(use_bias=False, use_scale=False, dtype=jnp.float32)(y)
    y = y * (1 + scale) + shift
    y = Dense(p * p * self.out_channels, kernel_init=zeros, name="out")(y)
    return unpatchify(y, h, w, p)
