"""DCGAN's generator and critic (Radford et al. 2016, arXiv:1511.06434)."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

from nets.batch_norm import BatchNorm
from nets.layers import Dense
from nets.projection import project
from nets.sizes import check_size
from nets.subpixel import transposed

INIT = nn.initializers.normal(0.02)  # section 4
LEAK = 0.2


class Double(nn.Module):
  """A 4x4 transposed convolution of stride 2, padding "SAME".

  As nn.ConvTranspose, but on a CPU the kernel's gradient takes a sixth of the time.

  Attributes:
    features: channels of the output.
    use_bias: add a learned number to each.
    dtype: of the computation; parameters are float32.
  """

  features: int
  use_bias: bool = True
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 f"]:
    kernel = self.param("kernel", INIT, (4, 4, x.shape[-1], self.features))
    y = transposed(x.astype(self.dtype), kernel.astype(self.dtype))
    if self.use_bias:
      y += self.param("bias", nn.initializers.zeros, (self.features,)).astype(y.dtype)
    return y


class Generator(nn.Module):
  """Noise to a small map, then 4x4 transposed convolutions that double it, tanh.

  Batch norm and ReLU before each convolution; a condition is told by the norms
  (conditional batch norm; the paper has no conditions).

  Attributes:
    shape: [h, w, c] of the picture.
    widths: channels at each resolution, from half the picture's own down.
    dtype: of the computation; parameters and output are float32.
  """

  shape: tuple[int, int, int]
  widths: tuple[int, ...] = (64, 128, 256)
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
    (height, width, _), halvings = self.shape, len(self.widths)
    check_size(height, width, halvings, self.widths)
    height, width = height >> halvings, width >> halvings
    x = Dense(height * width * self.widths[-1], kernel_init=INIT, name="in")(z)
    x = x.reshape(len(z), height, width, -1).astype(self.dtype)
    for level, features in enumerate((self.shape[-1], *self.widths[:-1])[::-1]):
      x = jax.nn.relu(BatchNorm(name=f"norm_{level}")(x, vec, training, axis))
      last = level == len(self.widths) - 1
      x = Double(features, use_bias=last, dtype=self.dtype, name=f"conv_{level}")(x)
    return jnp.tanh(x.astype(jnp.float32))


class Critic(nn.Module):
  """4x4 convolutions of stride 2, batch norm on all but the first, leaky ReLU.

  Attributes:
    widths: channels at each resolution, from half the picture's own down.
    norm: batch norm; off where a penalty needs the gradient of each example.
    dtype: of the computation; parameters and output are float32.
  """

  widths: tuple[int, ...] = (64, 128, 256)
  norm: bool = True
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
    for level, features in enumerate(self.widths):
      x = nn.Conv(
        features,
        (4, 4),
        (2, 2),
        padding=1,
        use_bias=not (self.norm and level),
        kernel_init=INIT,
        dtype=self.dtype,
        name=f"conv_{level}",
      )(x)
      if self.norm and level:
        x = BatchNorm(tracked=False, name=f"norm_{level}")(x, None, True, axis)
      x = jax.nn.leaky_relu(x, LEAK)
    return project(x.reshape(len(x), -1), vec)
