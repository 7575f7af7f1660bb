"""The patch critic of pix2pix and VQGAN."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from nets.batch_norm import BatchNorm
from nets.dcgan import INIT, LEAK
from nets.layers import Dense
from nets.sizes import check_size


class Critic(nn.Module):
  """4x4 convolutions of stride 2, two of stride 1: a logit for each patch.

  Isola et al. 2017 (arXiv:1611.07004), section 3.2 and appendix 6.1.2; of Esser et al.
  2021 (arXiv:2012.09841) with widths 64, 128, 256. Batch norm on all but the first and
  the last, leaky ReLU. A condition is told as in a projection critic, at every place.

  Attributes:
    widths: channels after each halving.
    dtype: of the computation; parameters and output are float32.
  """

  widths: tuple[int, ...] = (64, 128, 256)
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "b h w c"],
    vec: Float[Array, "b e"] | None = None,
    training: bool = True,
    axis: str | None = None,
  ) -> Float[Array, "b i j"]:
    check_size(x.shape[1], x.shape[2], len(self.widths), self.widths)
    strides = [2] * len(self.widths) + [1]
    widths = (*self.widths, 2 * self.widths[-1])
    for level, (features, stride) in enumerate(zip(widths, strides, strict=True)):
      x = nn.Conv(
        features,
        (4, 4),
        (stride, stride),
        padding=1 if stride == 2 else "SAME",
        use_bias=not level,
        kernel_init=INIT,
        dtype=self.dtype,
        name=f"conv_{level}",
      )(x)
      if level:
        x = BatchNorm(tracked=False, name=f"norm_{level}")(x, None, True, axis)
      x = jax.nn.leaky_relu(x, LEAK)
    last = nn.Conv(1, (4, 4), kernel_init=INIT, dtype=self.dtype, name="logit")
    logits = last(x)[..., 0].astype(jnp.float32)
    if vec is None:
      return logits
    own = Dense(x.shape[-1], use_bias=False, name="condition")(vec)
    return logits + jnp.einsum("bijc,bc->bij", x.astype(jnp.float32), own)
