"""Pictures to the side that a feature net reads, as papers that report scores did it.

Every mode is linear and separable, so it is one matrix an axis: the same few lines
serve numpy on the host and JAX on the devices, for pictures of any size.
"""

import functools
from collections.abc import Callable
from typing import Literal, get_args

import numpy as np
from jaxtyping import Array, Float, Num

Mode = Literal["clean", "legacy_pytorch", "legacy_tensorflow"]
MODES = get_args(Mode)


def resize(
  images: Num[Array | np.ndarray, "b h w c"], size: int, mode: Mode
) -> Float[Array | np.ndarray, "b {size} {size} c"]:
  """Pictures in [0, 255] -> float32, not rounded: V x H^T for each channel.

  V and H are `matrix`; 'clean' is cut off at 0 and 255, which its cubic overshoots.
  Pictures that have the size come back unchanged.
  """
  b, h, w, c = images.shape
  x = images.astype(np.float32)
  if (h, w) != (size, size):
    x = (matrix(mode, h, size) @ x.reshape(b, h, w * c)).reshape(b, size, w, c)
    x = x.swapaxes(1, 2).reshape(b, w, size * c)
    x = (matrix(mode, w, size) @ x).reshape(b, size, size, c).swapaxes(1, 2)
  return x.clip(0, 255) if mode == "clean" else x


@functools.lru_cache(256)
def matrix(mode: Mode, old: int, new: int) -> Float[np.ndarray, "{new} {old}"]:
  """The weights of `old` pixels in each of `new`; every row adds up to 1.

  clean: cubic convolution (Keys 1981, a = -1/2) widened by the scale old/new where
    that is above 1, which is antialiasing; Pillow's bicubic filter on floats, and
    what Parmar et al. 2022 (arXiv:2104.11222) recommend.
  legacy_pytorch: bilinear between pixel centres without antialiasing, as pytorch-fid
    resizes.
  legacy_tensorflow: bilinear between upper left corners, as TensorFlow 1 did and
    most old tables were computed.
  """
  # The legacy modes rounded their coordinates to float32.
  kind = np.float64 if mode == "clean" else np.float32
  scale, at = kind(old / new), np.arange(new, dtype=kind)
  centre = (
    at * scale if mode == "legacy_tensorflow" else (at + kind(0.5)) * scale - kind(0.5)
  )
  if mode == "clean":
    wide, kernel, support = max(scale, 1.0), cubic, 2.0
  else:
    wide, kernel, support = 1.0, triangle, 1.0
    # Beyond the border the outermost pixel goes on.
    centre = centre.clip(0, old - 1)
  distance = (np.arange(old) - centre[:, None]) / wide
  weights = np.where(abs(distance) < support, kernel(abs(distance)), 0)
  return (weights / weights.sum(1, keepdims=True)).astype(np.float32)


Kernel = Callable[[Float[np.ndarray, "..."]], Float[np.ndarray, "..."]]


def triangle(d: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
  """1 - d, for d < 1."""
  return 1 - d


def cubic(d: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
  """Keys 1981, eq. 4 with a = -1/2: 1 - 5/2 d^2 + 3/2 d^3, and beyond d = 1 its tail.

  2 - 4 d + 5/2 d^2 - 1/2 d^3 for 1 <= d < 2.
  """
  near = 1 - 2.5 * d**2 + 1.5 * d**3
  return np.where(d < 1, near, 2 - 4 * d + 2.5 * d**2 - 0.5 * d**3)
