"""ResNet generators and critics of GANs: SNGAN, SAGAN and BigGAN.

Miyato et al. 2018 (arXiv:1802.05957), tables 3 to 6; self-attention from Zhang et al.
2019 (arXiv:1805.08318), section 3; noise for every block from Brock et al. 2019
(arXiv:1809.11096), appendix B.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

from core.errors import UserError
from nets.batch_norm import BatchNorm
from nets.layers import Conv, Dense
from nets.projection import project
from nets.sizes import check_size
from nets.subpixel import Resized
from nets.unet import double, halve

INITS = {
  "xavier": nn.initializers.xavier_uniform(),  # SNGAN
  "orthogonal": nn.initializers.orthogonal(),  # BigGAN
}


class Attention(nn.Module):
  """x + gamma o(softmax(q(x) k(x)^T) v(x)), gamma from 0; keys and values of a half.

  Zhang et al. 2019, eq. 1 to 3: 1x1 convolutions without bias to c / 8 channels for
  queries and keys and c / 2 for values, keys and values pooled by 2 along both sides.

  Attributes:
    kernel_init: of the kernels.
    dtype: of the computation; parameters are float32.
  """

  kernel_init: nn.initializers.Initializer
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    b, h, w, c = x.shape
    dense = functools.partial(
      Dense, use_bias=False, kernel_init=self.kernel_init, dtype=self.dtype
    )
    pool = lambda y: nn.max_pool(y, (2, 2), (2, 2)).reshape(b, -1, y.shape[-1])  # noqa: E731
    q = dense(max(c // 8, 1), name="q")(x).reshape(b, h * w, -1)
    k = pool(dense(max(c // 8, 1), name="k")(x))
    v = pool(dense(max(c // 2, 1), name="v")(x))
    weights = jax.nn.softmax(jnp.einsum("bic,bjc->bij", q, k).astype(jnp.float32), -1)
    y = jnp.einsum("bij,bjc->bic", weights.astype(v.dtype), v).reshape(b, h, w, -1)
    gamma = self.param("gamma", nn.initializers.zeros, ())
    return x + gamma.astype(x.dtype) * dense(c, name="out")(y)


class Generator(nn.Module):
  """Noise to a small map, ResNet blocks that double it, batch norm, ReLU, tanh.

  A block is x2 of norm, ReLU, 3x3 convolution, doubled before the first one; its
  shortcut is doubled and has a 1x1 convolution.

  Attributes:
    shape: [h, w, c] of the picture.
    widths: channels at each resolution, from the picture's own down.
    attention: heights at which there is self-attention.
    chunks: each block is told a part of the noise of its own, beside the condition.
    kernel_init: of the kernels, 'xavier' or 'orthogonal'.
    dtype: of the computation; parameters and output are float32.
  """

  shape: tuple[int, int, int]
  widths: tuple[int, ...] = (256, 256, 256, 256)
  attention: tuple[int, ...] = ()
  chunks: bool = False
  kernel_init: str = "xavier"
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self,
    z: Float[Array, "b k"],
    vec: Float[Array, "b e"] | None = None,
    keys: Key[Array, " b"] | None = None,
    training: bool = False,
    axis: str | None = None,
  ) -> Float[Array, "b h w c"]:
    doublings, init = len(self.widths) - 1, INITS[self.kernel_init]
    height, width, channels = self.shape
    check_size(height, width, doublings, self.widths)
    height, width = height >> doublings, width >> doublings
    vecs = [vec] * doublings
    if self.chunks:
      if z.shape[-1] <= doublings:
        raise UserError(
          f"gan.latent_dim={z.shape[-1]} must be {doublings + 1} or more, so that"
          " gan.chunks gives each block a part."
        )
      z, *parts = jnp.array_split(z, doublings + 1, axis=-1)
      vecs = [
        part if vec is None else jnp.concatenate([vec, part], -1) for part in parts
      ]
    conv, dense = (
      functools.partial(layer, kernel_init=init, dtype=self.dtype)
      for layer in (Conv, Dense)
    )
    x = Dense(height * width * self.widths[-1], kernel_init=init, name="in")(z)
    x = x.reshape(len(z), height, width, -1).astype(self.dtype)
    for level, (features, told) in enumerate(
      zip(self.widths[-2::-1], vecs, strict=True)
    ):
      name = f"block_{level}"
      norm = lambda i, y, name=name, told=told: jax.nn.relu(  # noqa: E731
        BatchNorm(name=f"{name}_norm_{i}")(y, told, training, axis)
      )
      doubled = Resized(features, True, init, self.dtype, name=f"{name}_conv_0")
      y = doubled(norm(0, x))
      y = conv(features, name=f"{name}_conv_1")(norm(1, y))
      # A linear map before doubling is the same as after it.
      x = y + double(dense(features, name=f"{name}_shortcut")(x))
      if x.shape[1] in self.attention:
        x = Attention(init, self.dtype, name=f"{name}_attention")(x)
    x = jax.nn.relu(BatchNorm(name="norm")(x, None, training, axis))
    x = conv(channels, name="out")(x)
    return jnp.tanh(x.astype(jnp.float32))


class Critic(nn.Module):
  """ResNet blocks that halve, blocks that do not, ReLU, the sum over all places.

  A block is x2 of ReLU, 3x3 convolution, and the mean of 2x2 pixels; the first has no
  ReLU at its start, and its shortcut halves before its convolution.

  Attributes:
    widths: channels after each halving.
    extra: blocks of the last width after them.
    attention: heights at which there is self-attention.
    kernel_init: of the kernels, 'xavier' or 'orthogonal'.
    dtype: of the computation; parameters and output are float32.
  """

  widths: tuple[int, ...] = (128, 128)
  extra: int = 2
  attention: tuple[int, ...] = ()
  kernel_init: str = "xavier"
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "b h w c"],
    vec: Float[Array, "b e"] | None = None,
    training: bool = True,
    axis: str | None = None,
  ) -> Float[Array, " b"]:
    check_size(x.shape[1], x.shape[2], len(self.widths), self.widths)
    init = INITS[self.kernel_init]
    conv, dense = (
      functools.partial(layer, kernel_init=init, dtype=self.dtype)
      for layer in (Conv, Dense)
    )
    halvings = [True] * len(self.widths) + [False] * self.extra
    widths = (*self.widths, *self.widths[-1:] * self.extra)
    for level, (features, halved) in enumerate(zip(widths, halvings, strict=True)):
      name, before = f"block_{level}", x.shape[-1]
      inner = before if level else features
      y = jax.nn.relu(x) if level else x
      y = conv(inner, name=f"{name}_conv_0")(y)
      y = jax.nn.relu(y)
      if halved:
        # The mean of 2x2 pixels and a 1x1 convolution may change places.
        x = halve(x)
        y = Resized(features, False, init, self.dtype, name=f"{name}_conv_1")(y)
      else:
        y = conv(features, name=f"{name}_conv_1")(y)
      if halved or before != features:
        x = dense(features, name=f"{name}_shortcut")(x)
      x = x + y
      if x.shape[1] in self.attention:
        x = Attention(init, self.dtype, name=f"{name}_attention")(x)
    return project(jnp.sum(jax.nn.relu(x).astype(jnp.float32), (1, 2)), vec)
