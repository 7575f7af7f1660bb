"""Resizing before a feature net, against Pillow and by hand."""

import numpy as np
import pytest
from PIL import Image

from eval.resize import MODES, matrix, resize


def random_pictures(h: int, w: int) -> np.ndarray:
  return np.random.default_rng(0).integers(0, 256, (2, h, w, 3)).astype(np.uint8)


def pillow(picture: np.ndarray, size: int) -> np.ndarray:
  """Bicubic on floats, channel by channel."""
  planes = [
    Image.fromarray(picture[..., c].astype(np.float32)).resize(
      (size, size), Image.Resampling.BICUBIC
    )
    for c in range(3)
  ]
  return np.stack([np.asarray(plane) for plane in planes], axis=-1).clip(0, 255)


@pytest.mark.parametrize(("h", "w", "size"), [(8, 8, 29), (40, 31, 24), (33, 60, 17)])
def test_clean_is_pillow_on_floats(h: int, w: int, size: int) -> None:
  pictures = random_pictures(h, w)
  ours = resize(pictures, size, "clean")
  theirs = np.stack([pillow(picture, size) for picture in pictures])
  np.testing.assert_allclose(ours, theirs, atol=1e-3)
  assert ours.dtype == np.float32


def test_legacy_by_hand() -> None:
  """Four pixels to three, and to eight."""
  ramp = np.array([0.0, 10.0, 20.0, 30.0])
  # Pixel centres: (i + 1/2) 4/3 - 1/2 = 1/6, 3/2, 17/6.
  got = matrix("legacy_pytorch", 4, 3) @ ramp
  np.testing.assert_allclose(got, [10 / 6, 15, 170 / 6], rtol=1e-6)
  # Corners: i 4/3.
  got = matrix("legacy_tensorflow", 4, 3) @ ramp
  np.testing.assert_allclose(got, [0, 40 / 3, 80 / 3], rtol=1e-6)
  # The border goes on outwards.
  got = matrix("legacy_pytorch", 4, 8) @ ramp
  np.testing.assert_allclose(got, [0, 2.5, 7.5, 12.5, 17.5, 22.5, 27.5, 30], rtol=1e-6)
  got = matrix("legacy_tensorflow", 4, 8) @ ramp
  np.testing.assert_allclose(got, [0, 5, 10, 15, 20, 25, 30, 30], rtol=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_flat_pictures_stay_flat_and_equal_sizes_unchanged(mode: str) -> None:
  for old, new in ((5, 13), (64, 7)):
    np.testing.assert_allclose(matrix(mode, old, new).sum(1), 1, rtol=1e-6)
  pictures = random_pictures(9, 9)
  np.testing.assert_array_equal(resize(pictures, 9, mode), pictures)


def test_only_clean_smooths_before_it_shrinks() -> None:
  """Stripes one pixel wide average to grey; without antialiasing they alias."""
  stripes = np.zeros((1, 64, 64, 1), np.uint8)
  stripes[:, :, ::2] = 255
  inner = (slice(None), slice(2, -2), slice(2, -2))
  assert np.ptp(resize(stripes, 13, "clean")[inner]) < 30
  assert np.ptp(resize(stripes, 13, "legacy_tensorflow")[inner]) > 100
