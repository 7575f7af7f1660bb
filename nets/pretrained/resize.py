"""Pictures to another size, exactly as the implementations that scores come from.

Every method is linear and separable, so it is one matrix an axis: the same few lines
serve numpy on the host and JAX on the devices, for pictures of any size.
"""

import functools
from typing import Literal

import numpy as np
from jaxtyping import Array, Float, Num

Method = Literal["pillow_bicubic", "bicubic", "bilinear", "bilinear_tf1"]


def resize(
  x: Num[Array | np.ndarray, "b h w c"], height: int, width: int, method: Method
) -> Float[Array | np.ndarray, "b {height} {width} c"]:
  """V x H^T for each channel in float32, V and H from `matrix`."""
  b, h, w, c = x.shape
  x = x.astype(np.float32)
  if h != height:
    x = (matrix(method, h, height) @ x.reshape(b, h, w * c)).reshape(b, height, w, c)
  if w != width:
    x = x.swapaxes(1, 2).reshape(b, w, height * c)
    x = (matrix(method, w, width) @ x).reshape(b, width, height, c).swapaxes(1, 2)
  return x


@functools.lru_cache(256)
def matrix(method: Method, old: int, new: int) -> Float[np.ndarray, "{new} {old}"]:
  """How much each of `old` pixels weighs in each of `new`; every row adds up to 1.

  pillow_bicubic: Pillow's on floats: cubic with a = -1/2, widened by old / new where
    that is above 1 (antialiasing), cut off at the border.
  bicubic, bilinear: PyTorch's `interpolate(align_corners=False)`: cubic with
    a = -3/4, or linear, between pixel centres; the border's pixel goes on outwards.
  bilinear_tf1: TensorFlow 1's `resize_bilinear`, inside the graph of the original
    Inception network: between upper left corners, so it shifts the picture.
  """
  antialiased = method == "pillow_bicubic"
  # All but Pillow round their coordinates to float32.
  kind = np.float64 if antialiased else np.float32
  scale, at, half = kind(old / new), np.arange(new, dtype=kind), kind(0.5)
  centre = at * scale if method == "bilinear_tf1" else (at + half) * scale - half
  beyond = 0 if antialiased else 2
  pixels = np.arange(-beyond, old + beyond)
  d = abs(pixels - centre[:, None].astype(np.float64))
  if antialiased:
    weights = cubic(d / max(scale, 1.0), -0.5)
  else:
    weights = cubic(d, -0.75) if method == "bicubic" else np.maximum(1 - d, 0)
  folded = np.zeros((old, new))
  np.add.at(folded, pixels.clip(0, old - 1), weights.T)
  return (folded / folded.sum(0)).T.astype(np.float32)


def cubic(d: Float[np.ndarray, "..."], a: float) -> Float[np.ndarray, "..."]:
  """The kernel of Keys 1981 (eq. 4 for a = -1/2) at distance d >= 0.

  (a + 2) d^3 - (a + 3) d^2 + 1 below 1, a (d^3 - 5 d^2 + 8 d - 4) below 2, else 0.
  """
  near = (a + 2) * d**3 - (a + 3) * d**2 + 1
  far = a * (d**3 - 5 * d**2 + 8 * d - 4)
  return np.where(d < 1, near, np.where(d < 2, far, 0))
