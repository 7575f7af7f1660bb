"""Resizing for feature nets, against Pillow and by hand."""

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from eval.features import METHODS, resized
from nets.pretrained.resize import matrix, resize


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
  ours = np.concatenate([resized(picture, size, "clean") for picture in pictures])
  theirs = np.stack([pillow(picture, size) for picture in pictures])
  np.testing.assert_allclose(ours, theirs, atol=1e-3)
  assert ours.dtype == np.float32


def test_legacy_by_hand() -> None:
  """Four pixels to three, and to eight."""
  ramp = np.array([0.0, 10.0, 20.0, 30.0])
  # Pixel centres: (i + 1/2) 4/3 - 1/2 = 1/6, 3/2, 17/6.
  got = matrix("bilinear", 4, 3) @ ramp
  np.testing.assert_allclose(got, [10 / 6, 15, 170 / 6], rtol=1e-6)
  # Corners: i 4/3.
  got = matrix("bilinear_tf1", 4, 3) @ ramp
  np.testing.assert_allclose(got, [0, 40 / 3, 80 / 3], rtol=1e-6)
  # The border goes on outwards.
  got = matrix("bilinear", 4, 8) @ ramp
  np.testing.assert_allclose(got, [0, 2.5, 7.5, 12.5, 17.5, 22.5, 27.5, 30], rtol=1e-6)
  got = matrix("bilinear_tf1", 4, 8) @ ramp
  np.testing.assert_allclose(got, [0, 5, 10, 15, 20, 25, 30, 30], rtol=1e-6)


def test_cubic_by_hand() -> None:
  """A pulse doubled with a = -3/4: the weights at distances of a quarter."""
  pulse = jnp.zeros((1, 8, 1, 1)).at[0, 3].set(1)
  near, far = [0.26171875, 0.87890625], [-0.03515625, -0.10546875]
  expected = [0, *far, *near, *near[::-1], *far[::-1], 0]
  got = resize(pulse, 16, 1, "bicubic")[0, 2:12, 0, 0]
  np.testing.assert_allclose(got, expected, atol=1e-6)


@pytest.mark.parametrize("method", [*METHODS.values(), "bicubic"])
def test_flat_pictures_stay_flat_and_equal_sizes_unchanged(method: str) -> None:
  for old, new in ((5, 13), (64, 7)):
    np.testing.assert_allclose(matrix(method, old, new).sum(1), 1, rtol=1e-6)
  pictures = random_pictures(9, 7)
  np.testing.assert_array_equal(resize(pictures, 9, 7, method), pictures)


def test_only_pillow_smooths_before_it_shrinks() -> None:
  """Stripes one pixel wide average to grey; without antialiasing they alias."""
  stripes = np.zeros((1, 64, 64, 1), np.uint8)
  stripes[:, :, ::2] = 255
  inner = (slice(None), slice(2, -2), slice(2, -2))
  assert np.ptp(resize(stripes, 13, 13, "pillow_bicubic")[inner]) < 30
  assert np.ptp(resize(stripes, 13, 13, "bilinear_tf1")[inner]) > 100
