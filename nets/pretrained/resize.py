"""Resizing as other implementations do it, each as one matrix for each side.

None of them smooths before it makes an image smaller.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def bilinear(
  x: Float[Array, "b h w c"], height: int, width: int
) -> Float[Array, "b {height} {width} c"]:
  """Of the two nearest pixels a side, with the centers of the pixels matched.

  Output i lies at (i + 1/2) n / m - 1/2 among n inputs, for m outputs. PyTorch's
  `interpolate(mode="bilinear", align_corners=False)`, as pytorch-fid uses it.
  """
  return _apply(x, *(_taps(_centers(n, m), n, 2) for n, m in _sizes(x, height, width)))


def bilinear_tf1(
  x: Float[Array, "b h w c"], height: int, width: int
) -> Float[Array, "b {height} {width} c"]:
  """Of the two nearest pixels a side, with the corners of the images matched.

  Output i lies at i n / m: TensorFlow 1's `resize_bilinear`, inside the graph of the
  original Inception network, and torch-fidelity's. It shifts the image.
  """
  steps = ((np.arange(m) * np.float32(n / m), n) for n, m in _sizes(x, height, width))
  return _apply(x, *(_taps(at, n, 2) for at, n in steps))


def bicubic(
  x: Float[Array, "b h w c"], height: int, width: int
) -> Float[Array, "b {height} {width} c"]:
  """Of the four nearest pixels a side, with the centers of the pixels matched.

  Keys' kernel with a = -3/4 (Keys 1981, eq. 4): PyTorch's
  `interpolate(mode="bicubic", align_corners=False)`.
  """
  return _apply(x, *(_taps(_centers(n, m), n, 4) for n, m in _sizes(x, height, width)))


def _sizes(x: jax.Array, height: int, width: int) -> tuple:
  return (x.shape[1], height), (x.shape[2], width)


def _centers(n: int, m: int) -> np.ndarray:
  return (np.arange(m, dtype=np.float32) + 0.5) * np.float32(n / m) - 0.5


def _taps(at: np.ndarray, n: int, taps: int) -> np.ndarray:
  """The matrix [m, n] that reads n pixels at `at`; beyond the border, the last pixel.

  Two taps are linear (and stay inside), four are cubic.
  """
  at = np.maximum(at, 0) if taps == 2 else at
  low = np.floor(at).astype(int)
  matrix = np.zeros((len(at), n))
  for offset in range(1 - taps // 2, 1 + taps // 2):
    d = np.abs(at - (low + offset)).astype(np.float64)
    if taps == 2:
      weight = 1 - d
    else:
      a = -0.75
      near = (a + 2) * d**3 - (a + 3) * d**2 + 1
      far = a * (d**3 - 5 * d**2 + 8 * d - 4)
      weight = np.where(d <= 1, near, far)
    np.add.at(matrix, (range(len(at)), np.clip(low + offset, 0, n - 1)), weight)
  return matrix.astype(np.float32)


def _apply(x: jax.Array, rows: np.ndarray, columns: np.ndarray) -> jax.Array:
  # Full precision, where a TPU would round pixels to 8 bits.
  return jnp.einsum(
    "ih,jw,bhwc->bijc", rows, columns, x, precision=jax.lax.Precision.HIGHEST
  )
