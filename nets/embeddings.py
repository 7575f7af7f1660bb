"""Embeddings of the noise level and of positions."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from core import noise
from nets.layers import Dense


def sinusoidal(
  x: Float[Array, "*shape"], dim: int, max_period: float = 10_000.0
) -> Float[Array, "*shape {dim}"]:
  """[cos(x w), sin(x w)] with w_i = max_period^(-i / (dim / 2)), i < dim / 2.

  Vaswani et al. 2017 (arXiv:1706.03762), section 3.5, with the cosines first as
  in DDPM's successors. Range [-1, 1]; `dim` is even.
  """
  half = dim // 2
  freqs = jnp.exp(-math.log(max_period) / half * jnp.arange(half))
  angles = x[..., None].astype(jnp.float32) * freqs
  return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def positions_2d(height: int, width: int, dim: int) -> Float[np.ndarray, "l {dim}"]:
  """Fixed 2-D positions, row by row: half of `dim` tells the row, half the column.

  Each half is `sinusoidal`, as in MAE and DiT (Peebles & Xie 2022,
  arXiv:2212.09748, section 3.2). `dim` is a multiple of 4; l = height * width.
  """
  quarter = dim // 4
  freqs = np.exp(-math.log(10_000.0) / quarter * np.arange(quarter))
  rows, cols = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
  parts = []
  for place in (rows, cols):
    angles = place.reshape(-1, 1) * freqs
    parts += [np.cos(angles), np.sin(angles)]
  return np.concatenate(parts, axis=-1).astype(np.float32)


class NoiseEmbedding(nn.Module):
  """MLP(sinusoidal(25 logsnr)): [b] -> [b, dim].

  25 stretches the usual range of logsnr, [-20, 20], over 1000 steps, as VDM does
  (Kingma et al. 2021, arXiv:2107.00630, appendix B); beyond it, and at the
  infinities of a zero terminal SNR, the value is clipped.

  With another `clock` than 'logsnr' it is MLP(sinusoidal(i)), i in [0, 999] the
  timestep of the schedule of that name which has this logsnr, for networks that were
  trained on timesteps: 'scaled_linear' is Stable Diffusion's. See `noise.timestep`.
  """

  dim: int
  frequencies: int = 256
  dtype: DTypeLike = jnp.float32
  clock: str = "logsnr"

  @nn.compact
  def __call__(self, logsnr: Float[Array, " b"]) -> Float[Array, "b d"]:
    if self.clock == "logsnr":
      x = 25 * jnp.clip(logsnr, -20, 20)
    else:
      x = noise.timestep(logsnr, self.clock)
    x = sinusoidal(x, self.frequencies)
    x = jax.nn.silu(Dense(self.dim, dtype=self.dtype)(x))
    return Dense(self.dim, dtype=self.dtype)(x)


def fourier(
  x: Float[Array, "*shape c"], exponents: tuple[int, ...]
) -> Float[Array, "*shape f"]:
  """sin(2^n pi x) for each exponent n, then cos(2^n pi x): f = 2 len(exponents) c.

  Kingma et al. 2021 (arXiv:2107.00630), appendix C: with n = 7, 8 a network sees
  differences as small as one of 256 levels. Range [-1, 1].
  """
  # Multiplying by 2^n and taking the rest are exact, so no digit is lost.
  angles = [jnp.pi * jnp.mod(2.0**n * x, 2) for n in exponents]
  waves = [wave(a) for wave in (jnp.sin, jnp.cos) for a in angles]
  return jnp.concatenate(waves, axis=-1)
