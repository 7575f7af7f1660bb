"""PixelCNN++ (Salimans et al. 2017, arXiv:1701.05517), section 2 and figure 2.

After the authors' code, which the paper leaves details to, but that weights are not
normalized and start without the data, where theirs make every layer's output have mean
0 and variance 1: the last layer of each block starts at zero in place of a tenth. The
way up is a 1x1 convolution whose channels become pixels, where theirs is a shifted
transposed one.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Integer

from nets.layers import Dense, Dropout, unsqueeze
from nets.sizes import check_size
from text.cond import Cond

Initializer = nn.initializers.Initializer
Vec = Float[Array, "b e"] | None


def views(
  x: Float[Array, "b h w c"], rows: int, columns: int, *, right: bool, stride: int = 1
) -> Float[Array, "b h2 w2 c2"]:
  """Each pixel with those of `rows` rows up to its own; 0 beyond the picture.

  `columns` columns up to its own where `right`, else around it. A linear map of the
  result is a convolution shifted down, or down and to the right.
  """
  _, h, w, _ = x.shape
  sides = (columns - 1, 0) if right else (columns // 2, columns // 2)
  padded = jnp.pad(x, ((0, 0), (rows - 1, 0), sides, (0, 0)))
  parts = [
    padded[:, i : i + h : stride, j : j + w : stride]
    for i in range(rows)
    for j in range(columns)
  ]
  return jnp.concatenate(parts, axis=-1)


def concat_elu(x: Float[Array, "b h w c"]) -> Float[Array, "b h w c2"]:
  """elu of x and of -x."""
  return nn.elu(jnp.concatenate([x, -x], axis=-1))


class GatedBlock(nn.Module):
  """x + a sigmoid(b), [a, b] a shifted convolution of what one made of x and `more`.

  Attributes:
    right: shifted to the right too.
    dropout: of what the second convolution sees.
    dtype: of the computation; parameters are float32.
  """

  right: bool
  dropout: float = 0.0
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "b h w c"],
    more: Float[Array, "b h w d"] | None,
    vec: Vec,
    ids: Integer[Array, " b"] | None = None,
  ) -> Float[Array, "b h w c"]:
    width, columns = x.shape[-1], 2 if self.right else 3

    def conv(y: Array, features: int, name: str, **how: Initializer) -> Array:
      seen = views(y, 2, columns, right=self.right)
      return Dense(features, dtype=self.dtype, name=name, **how)(seen)

    y = conv(concat_elu(x), width, "conv_0")
    if more is not None:
      y = y + Dense(width, dtype=self.dtype, name="more")(concat_elu(more))
    y = Dropout(self.dropout)(concat_elu(y), ids)
    y = conv(y, 2 * width, "conv_1", kernel_init=nn.initializers.zeros)
    if vec is not None:
      y = y + Dense(2 * width, dtype=self.dtype, name="vec")(vec)[:, None, None]
    a, b = jnp.split(y, 2, axis=-1)
    return x + a * jax.nn.sigmoid(b)


class PixelCNNPP(nn.Module):
  """A picture to raw numbers of each pixel, which see only the pixels before it.

  Two streams: one sees the rows above, the other also what is left in its own row and
  the first. Down to half of the sides at each width, and up again with shortcuts.

  Attributes:
    out_channels: of the raw numbers.
    widths: channels at each resolution.
    blocks: on each way at each resolution.
    dropout: in the blocks, active where `ids` are given.
    dtype: of the computation; parameters and output are float32.
  """

  out_channels: int
  widths: tuple[int, ...]
  blocks: int
  dropout: float = 0.0
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "b h w c"],
    cond: Cond,
    ids: Integer[Array, " b"] | None = None,
  ) -> Float[Array, "b h w {self.out_channels}"]:
    """Raises UserError if the picture cannot be halved as often as `widths` asks."""
    _, h, w, _ = x.shape
    halvings = len(self.widths) - 1
    check_size(h, w, halvings, self.widths)

    def dense(y: Array, features: int, name: str) -> Array:
      return Dense(features, dtype=self.dtype, name=name)(y)

    def block(y: Array, more: Array | None, right: bool, name: str) -> Array:
      made = GatedBlock(right, self.dropout, self.dtype, name=name)
      return made(y, more, cond.pooled, ids)

    # Beyond the edge it is 0, so that the network knows where it is.
    x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, 1)), constant_values=1.0)
    above = shifted(x, down=True)
    left = views(shifted(x, down=False), 2, 1, right=True)
    width = self.widths[0]
    first = dense(views(above, 1, 3, right=False), width, "in_2")
    u = dense(views(above, 2, 3, right=False), width, "in_0")
    ul = dense(left, width, "in_1") + first
    kept = [(u, ul)]
    for level, width in enumerate(self.widths):
      if level:
        name = f"down_{level}"
        u = dense(views(u, 2, 3, right=False, stride=2), width, f"{name}_u")
        ul = dense(views(ul, 2, 2, right=True, stride=2), width, f"{name}_ul")
        kept.append((u, ul))
      for i in range(self.blocks):
        u = block(u, None, False, f"down_{level}_{i}_u")
        ul = block(ul, u, True, f"down_{level}_{i}_ul")
        kept.append((u, ul))
    u, ul = kept.pop()
    for level, width in reversed(list(enumerate(self.widths))):
      if level < halvings:
        u, ul = (
          unsqueeze(dense(y, 4 * width, f"up_{level}_{name}"))
          for y, name in ((u, "u"), (ul, "ul"))
        )
      # At the bottom one is where the way up begins.
      for i in range(self.blocks + (level < halvings)):
        other, other_left = kept.pop()
        u = block(u, other, False, f"up_{level}_{i}_u")
        more = jnp.concatenate([u, other_left], axis=-1)
        ul = block(ul, more, True, f"up_{level}_{i}_ul")
    return Dense(self.out_channels, name="out")(nn.elu(ul.astype(jnp.float32)))


def shifted(x: Float[Array, "b h w c"], *, down: bool) -> Float[Array, "b h w c"]:
  """What was above each pixel, or to its left; 0 at the edge."""
  if down:
    return jnp.pad(x[:, :-1], ((0, 0), (1, 0), (0, 0), (0, 0)))
  return jnp.pad(x[:, :, :-1], ((0, 0), (0, 0), (1, 0), (0, 0)))
