"""The transformer inside Stable Diffusion's U-Net (Rombach et al. 2022).

arXiv:2112.10752, section 3.3 and appendix E.2.1, in the order of their code: the pixels
read one another, then the text, then comes an MLP.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from nets.attention import SelfAttention, attend
from nets.layers import Dense, DenseIn, DenseOut, DenseParts, GroupNorm
from text.cond import Cond


class TextAttention(nn.Module):
  """x reads a text: W_o attend(W_q x, W_k text, W_v text), with a bias in W_o alone.

  Tokens with a False mask are not read. A text whose mask is all False, the null
  condition, gives W_o 0. (Stable Diffusion's own null condition is the encoding of the
  empty text, to be given as such.)
  """

  heads: int
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "b l d"],
    text: Float[Array, "b m e"],
    mask: Bool[Array, "b m"] | None,
  ) -> Float[Array, "b l d"]:
    b, length, dim = x.shape
    q = DenseIn(dim, use_bias=False, dtype=self.dtype, name="q")(x)
    q = q.reshape(b, length, self.heads, -1)
    kv = DenseParts(2, dim, self.heads, False, self.dtype, name="kv")(text)
    k, v = (y.reshape(b, -1, self.heads, dim // self.heads) for y in kv)
    y = attend(q, k, v, mask)
    if mask is not None:
      y = jnp.where(mask.any(1)[:, None, None, None], y, 0)
    return DenseOut(dim, dtype=self.dtype, name="out")(y.reshape(b, length, dim))


class TransformerBlock(nn.Module):
  """x + attention(norm x), then x + text attention(norm x), then x + MLP(norm x).

  The text attention is there when `text` is. The MLP is W_2 (a gelu(b)) with [a, b] =
  W_1 x, a and b four times as wide as x (GEGLU, Shazeer 2020, arXiv:2002.05202, eq. 6).
  """

  heads: int
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "b l d"],
    text: Float[Array, "b m e"] | None = None,
    mask: Bool[Array, "b m"] | None = None,
  ) -> Float[Array, "b l d"]:
    dim = x.shape[-1]

    def norm(x: Float[Array, "b l d"], i: int) -> Float[Array, "b l d"]:
      layer = nn.LayerNorm(epsilon=1e-5, dtype=jnp.float32, name=f"norm_{i}")
      return layer(x).astype(self.dtype)

    attention = SelfAttention(self.heads, self.dtype, bias=False, name="attention")
    x = x + attention(norm(x, 0))
    if text is not None:
      read = TextAttention(self.heads, self.dtype, name="text")
      x = x + read(norm(x, 1), text, mask)
    hidden = DenseParts(2, 4 * dim, dim, dtype=self.dtype, name="mlp_in")
    a, b = hidden(norm(x, 2))
    y = a * jax.nn.gelu(b, approximate=False)
    return x + DenseOut(dim, dtype=self.dtype, name="mlp_out")(y)


class SpatialTransformer(nn.Module):
  """x + W_out blocks(W_in norm x) over the pixels, which read `cond.seq` too.

  It starts as the identity.

  Attributes:
    depth: number of `TransformerBlock`s.
    head_dim: channels an attention head, a divisor of those of x.
    dtype: type of the computation; parameters are float32.
    groups: of the first norm, see `GroupNorm`.
  """

  depth: int
  head_dim: int
  dtype: DTypeLike = jnp.float32
  groups: int = 0

  @nn.compact
  def __call__(self, x: Float[Array, "b h w c"], cond: Cond) -> Float[Array, "b h w c"]:
    b, h, w, c = x.shape
    y = GroupNorm(groups=self.groups, name="norm")(x).reshape(b, h * w, c)
    y = Dense(c, dtype=self.dtype, name="in")(y)
    for i in range(self.depth):
      block = TransformerBlock(c // self.head_dim, self.dtype, name=f"block_{i}")
      y = block(y, cond.seq, cond.mask)
    zeros = nn.initializers.zeros
    y = Dense(c, dtype=self.dtype, kernel_init=zeros, name="out")(y)
    return x + y.reshape(b, h, w, c)
