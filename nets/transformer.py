"""The pre-norm transformer: text encoders use it plain, DiT with modulation."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Integer, PyTree

from nets.attention import CrossAttention, SelfAttention
from nets.layers import Dense, DenseIn, DenseOut, Dropout


class Block(nn.Module):
  """x + attention(norm x), then x + text attention(norm x), then x + MLP(norm x).

  With a vector `vec` the norms and branches are modulated by it, adaLN-zero
  (Peebles & Xie 2022, arXiv:2212.09748, section 3.2):
  x + gate * branch(norm(x) (1 + scale) + shift), where scale, shift and gate are
  linear in silu(vec) and start at zero, so the block starts as the identity. The
  text attention is there when `text` is, unmodulated as in PixArt-alpha (Chen et
  al. 2023, arXiv:2310.00426, section 2.3).
  """

  heads: int
  mlp_ratio: int = 4
  dropout: float = 0.0
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "b l d"],
    mask: Bool[Array, "b l"] | None = None,
    vec: Float[Array, "b e"] | None = None,
    text: Float[Array, "b m f"] | None = None,
    text_mask: Bool[Array, "b m"] | None = None,
    ids: Integer[Array, " b"] | None = None,
  ) -> Float[Array, "b l d"]:
    dim, plain = x.shape[-1], vec is None
    if not plain:
      zeros = nn.initializers.zeros
      mod = Dense(6 * dim, dtype=self.dtype, kernel_init=zeros, name="modulation")
      mod = jnp.split(mod(jax.nn.silu(vec))[:, None], 6, axis=-1)

    def norm(x: Float[Array, "b l d"], i: int) -> Float[Array, "b l d"]:
      y = nn.LayerNorm(
        dtype=jnp.float32, use_bias=plain, use_scale=plain, name=f"norm_{i}"
      )(x)
      y = y if plain else y * (1 + mod[3 * i + 1]) + mod[3 * i]
      return y.astype(self.dtype)

    def gate(y: Float[Array, "b l d"], i: int) -> Float[Array, "b l d"]:
      y = Dropout(self.dropout)(y, ids)
      return y if plain else y * mod[3 * i + 2]

    attention = SelfAttention(self.heads, self.dtype, name="attention")
    x = x + gate(attention(norm(x, 0), mask), 0)
    if text is not None:
      y = nn.LayerNorm(dtype=jnp.float32, name="norm_text")(x).astype(self.dtype)
      x = x + CrossAttention(self.heads, self.dtype, name="text")(y, text, text_mask)
    y = DenseIn(self.mlp_ratio * dim, dtype=self.dtype, name="mlp_in")(norm(x, 1))
    y = DenseOut(dim, dtype=self.dtype, name="mlp_out")(jax.nn.gelu(y))
    return x + gate(y, 1)


def repeat(
  call: Callable[[nn.Module, Any], Any],
  block: nn.Module,
  x: PyTree,
  depth: int,
  scan: bool,
) -> PyTree:
  """x -> call(block, x), `depth` times, each time with parameters of its own.

  The parameters are stacked, [depth, ...]. `scan` loops over one compiled block;
  else the loop is unrolled.
  """
  loop = nn.scan(
    lambda block, x, _: (call(block, x), None),
    variable_axes={"params": 0},
    split_rngs={"params": True, "dropout": True},
    length=depth,
    unroll=1 if scan else depth,
  )
  return loop(block, x, None)[0]


class Blocks(nn.Module):
  """`depth` Blocks in a row, called like one.

  The parameters are stacked, [depth, ...], whatever the options. `scan` compiles
  one block and loops over it, which keeps the compile time of a deep network
  small; without it the loop is unrolled. `remat` keeps only each block's input
  for the backward pass and computes the rest again.
  """

  depth: int
  heads: int
  mlp_ratio: int = 4
  dropout: float = 0.0
  dtype: DTypeLike = jnp.float32
  remat: bool = False
  scan: bool = True

  @nn.compact
  def __call__(
    self, x: Float[Array, "b l d"], *args, **kwargs
  ) -> Float[Array, "b l d"]:
    make = nn.remat(Block) if self.remat else Block
    block = make(self.heads, self.mlp_ratio, self.dropout, self.dtype, name="block")
    return repeat(
      lambda block, x: block(x, *args, **kwargs),
      block,
      x.astype(self.dtype),
      self.depth,
      self.scan,
    )


class Encoder(nn.Module):
  """A bidirectional transformer with a norm at the end: [b, l, d] -> [b, l, d].

  `x` holds its positions already. Tokens with a False mask are read by none, so
  they do not change the others' output; their own output means nothing. An
  all-False mask gives finite numbers.
  """

  dim: int
  depth: int
  heads: int
  mlp_ratio: int = 4
  dtype: DTypeLike = jnp.float32
  remat: bool = False
  scan: bool = True

  @nn.compact
  def __call__(
    self, x: Float[Array, "b l {self.dim}"], mask: Bool[Array, "b l"] | None = None
  ) -> Float[Array, "b l {self.dim}"]:
    x = Blocks(
      self.depth,
      self.heads,
      self.mlp_ratio,
      dtype=self.dtype,
      remat=self.remat,
      scan=self.scan,
    )(x, mask)
    return nn.LayerNorm(dtype=jnp.float32)(x)
