"""MM-DiT: image and text tokens in one attention, each with weights of their own.

Esser et al. 2024 (arXiv:2403.03206), section 4 and figure 2.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Integer

from nets.attention import attend
from nets.layers import Dense, Dropout
from nets.transformer import repeat


class JointBlock(nn.Module):
  """`Block` for two sequences, image x and text y, that share one attention.

  Each has its own norms, modulation by `vec` (adaLN-zero), projections and MLP.
  Queries and keys are divided by their root mean square and scaled, a head at a
  time (section 5.3.2). Image tokens are always read; text tokens with a False mask
  never are, so with an all-False mask the image reads itself alone.

  `last` leaves out what only changes the text, which is returned as it came.
  """

  heads: int
  mlp_ratio: int = 4
  dropout: float = 0.0
  dtype: DTypeLike = jnp.float32
  last: bool = False

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "b l d"],
    y: Float[Array, "b m d"],
    mask: Bool[Array, "b m"] | None,
    vec: Float[Array, "b e"],
    ids: Integer[Array, " b"] | None = None,
  ) -> tuple[Float[Array, "b l d"], Float[Array, "b m d"]]:
    b, length, dim = x.shape

    def dense(features: int, name: str, a: Array, **init) -> Array:
      return Dense(features, dtype=self.dtype, name=name, **init)(a)

    def modulation(name: str, parts: int) -> list[Array]:
      zeros = nn.initializers.zeros
      mod = dense(
        parts * dim, f"{name}_modulation", jax.nn.silu(vec), kernel_init=zeros
      )
      return jnp.split(mod[:, None], parts, axis=-1)

    def norm(a: Array, shift: Array, scale: Array) -> Array:
      a = nn.LayerNorm(use_bias=False, use_scale=False, dtype=jnp.float32)(a)
      return (a * (1 + scale) + shift).astype(self.dtype)

    def project(name: str, parts: str, a: Array) -> dict[str, Array]:
      a = dense(len(parts) * dim, f"{name}_{parts}", a)
      a = a.reshape(b, -1, len(parts), self.heads, dim // self.heads)
      split = dict(zip(parts, jnp.moveaxis(a, 2, 0), strict=True))
      for part in set(parts) - {"v"}:
        rms = nn.RMSNorm(dtype=jnp.float32, name=f"{name}_{part}_norm")
        split[part] = rms(split[part]).astype(self.dtype)
      return split

    def update(name: str, a: Array, read: Array, mod: list[Array]) -> Array:
      read = dense(dim, f"{name}_out", read)
      a = a + mod[2] * Dropout(self.dropout)(read, ids)
      z = dense(self.mlp_ratio * dim, f"{name}_mlp_in", norm(a, *mod[3:5]))
      z = dense(dim, f"{name}_mlp_out", jax.nn.gelu(z))
      return a + mod[5] * Dropout(self.dropout)(z, ids)

    mod_x, mod_y = modulation("image", 6), modulation("text", 2 if self.last else 6)
    image = project("image", "qkv", norm(x, *mod_x[:2]))
    text = project("text", "kv" if self.last else "qkv", norm(y, *mod_y[:2]))
    q, k, v = (
      jnp.concatenate([a[part] for a in (image, text) if part in a], axis=1)
      for part in "qkv"
    )
    if mask is not None:
      mask = jnp.pad(mask, ((0, 0), (length, 0)), constant_values=True)
    read = attend(q, k, v, mask).reshape(b, -1, dim)
    x = update("image", x, read[:, :length], mod_x)
    if not self.last:
      y = update("text", y, read[:, length:], mod_y)
    return x, y


class JointBlocks(nn.Module):
  """`depth` JointBlocks in a row, of which the image is kept.

  All but the last are stacked, as in `Blocks`; the last has no update of the text,
  since nothing would read it.
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
    self, x: Float[Array, "b l d"], y: Float[Array, "b m d"], *args
  ) -> Float[Array, "b l d"]:
    make = nn.remat(JointBlock) if self.remat else JointBlock
    options = (self.heads, self.mlp_ratio, self.dropout, self.dtype)
    two = (x.astype(self.dtype), y.astype(self.dtype))
    if self.depth > 1:
      block = make(*options, name="block")
      two = repeat(
        lambda block, two: block(*two, *args), block, two, self.depth - 1, self.scan
      )
    return make(*options, last=True, name="last")(*two, *args)[0]
