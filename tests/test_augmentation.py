"""What a diffusion learns from with EDM's augmentation, against scipy by the labels."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from configs.diffusion import edm
from core import warp
from core.errors import UserError
from core.family import Spec
from diffusion import augmentation

N, HEIGHT, WIDTH = 400, 6, 8
X = np.random.default_rng(0).uniform(-1, 1, (N, HEIGHT, WIDTH, 2)).astype(np.float32)


@functools.cache
def augmented(p):
  keys = jax.random.split(jax.random.key(0), N)
  made = jax.jit(functools.partial(augmentation.augmented, p=p))
  return jax.device_get(made(keys, X))


def turned(angle):
  return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


def test_labels_tell_what_was_done():
  # Row by row as the code of Karras et al. 2022 multiplies its matrices, from new
  # places (x, y) to old ones.
  found, labels = augmented(1.0)
  for x, y, own in zip(X[:40], found, labels.astype(np.float64), strict=False):
    # The labels of a stretch are those of the reverse, too.
    want = [moved(x, own, sign) for sign in (1, -1)]
    off = [np.abs(y - either).max() for either in want]
    assert min(off) < 2e-4


def moved(x, labels, sign):
  mirrored, upside, scale, cos, sin, along, across, *shift = labels
  wider = 2 ** (0.2 * sign * np.hypot(along, across))
  direction = np.arctan2(across, along)
  back = turned(np.arctan2(sin, cos + 1)) / 2 ** (0.2 * scale)
  back = back @ turned(-direction) @ np.diag([1 / wider, wider]) @ turned(direction)
  back = np.diag([1 - 2 * mirrored, 1 - 2 * upside]) @ back
  middle = np.array([(WIDTH - 1) / 2, (HEIGHT - 1) / 2])
  places = np.stack(np.meshgrid(np.arange(WIDTH), np.arange(HEIGHT)), -1) - middle
  places = (places - shift * np.array([WIDTH, HEIGHT]) / 8) @ back.T + middle
  where = [places[..., 1], places[..., 0]]
  channels = np.moveaxis(x, -1, 0)
  found = [ndimage.map_coordinates(c, where, order=1, mode="mirror") for c in channels]
  return np.stack(found, -1)


def test_without_a_probability_half_are_mirrored_exactly():
  found, labels = augmented(0.0)
  mirrored = labels[:, 0] == 1
  assert 0.4 < mirrored.mean() < 0.6
  np.testing.assert_array_equal(found[mirrored], X[mirrored][:, :, ::-1])
  np.testing.assert_array_equal(found[~mirrored], X[~mirrored])
  assert (labels[:, 1:] == 0).all()


def test_how_often_and_how_much():
  labels = augmented(0.3)[1]
  share = (labels != 0).mean(0)
  # Upside down is one of two; mirrored does not depend on p.
  want = [0.5, 0.15, *[0.3] * 7]
  want[6] = 0.15  # half of the stretches are along the rows
  np.testing.assert_allclose(share, want, atol=0.08)
  some = augmented(1.0)[1]
  radius = np.hypot(some[:, 3] + 1, some[:, 4])
  np.testing.assert_allclose(radius, 1, atol=1e-5)
  stretch = np.hypot(some[:, 5], some[:, 6])
  for normal in (some[:, 2], some[:, 7], some[:, 8]):
    np.testing.assert_allclose([normal.mean(), normal.std()], [0, 1], atol=0.15)
  np.testing.assert_allclose(np.mean(stretch**2), 1, atol=0.2)


def test_a_picture_at_its_own_places_is_itself():
  at = warp.centred(HEIGHT, WIDTH) + warp.middle(HEIGHT, WIDTH)
  np.testing.assert_array_equal(warp.looked_up(jnp.asarray(X[0]), at), X[0])


def test_refusals():
  config = edm.get_config("tiny")
  augmentation.check(config, Spec((8, 8, 1)))
  with pytest.raises(UserError, match="here are latents"):
    augmentation.check(config, Spec((8, 8, 4), pixels=False))
  config.data.flip = True
  with pytest.raises(UserError, match=r"data\.flip mirrors others"):
    augmentation.check(config, Spec((8, 8, 1)))
