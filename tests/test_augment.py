"""Augmentations against what they say, number by number, and where they do nothing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from core.errors import UserError
from gan import augment
from gan.augment import adaptive, adjust, diff_augment

ALL = ("color", "translation", "cutout")
N = 64


def pictures(c=3, n=N, side=8):
  return jax.random.normal(jax.random.key(1), (n, side, side, c))


def keys(n=N, seed=0):
  return jax.random.split(jax.random.key(seed), n)


@functools.cache
def compiled(policy):
  return jax.jit(functools.partial(diff_augment, policy=policy))


ADAPTIVE = jax.jit(adaptive)


def ada(x, p, seed=0):
  return np.asarray(ADAPTIVE(keys(len(x), seed), x, jnp.float32(p)))


def moved(x, **amounts):
  """ADA's geometry, of which these alone happen."""
  amounts = {name: jnp.asarray(amount) for name, amount in amounts.items()}
  return augment._warped(x, augment.Geometry(**amounts))


def recoloured(x, **amounts):
  return augment._recoloured(x, augment.Colours(**amounts))


def test_an_empty_policy_does_nothing():
  x = pictures()
  assert (compiled(())(keys(), x) == x).all()


def test_unknown_policy():
  with pytest.raises(UserError, match="did you mean 'cutout'"):
    augment.check_policy(("color", "cut_out"))
  with pytest.raises(UserError, match="gan.policy is empty"):
    augment.check_policy(())


def test_color_by_hand():
  x, key = pictures(n=1)[0], jax.random.key(3)
  brightness, saturation, contrast = jax.random.uniform(key, (3,))
  want = np.array(x + (brightness - 0.5))
  for i, j in np.ndindex(8, 8):
    mean = want[i, j].sum() / 3
    want[i, j] = (want[i, j] - mean) * 2 * saturation + mean
  mean = want.sum() / want.size
  want = (want - mean) * (contrast + 0.5) + mean
  np.testing.assert_allclose(augment._color(key, x), want, rtol=1e-5, atol=1e-5)


def test_color_of_grey_pictures_is_brightness_and_contrast():
  x = pictures(1)
  y = np.asarray(compiled(("color",))(keys(), x))
  slope = y.std((1, 2, 3)) / x.std((1, 2, 3))
  assert 0.5 <= slope.min() < 0.6
  assert 1.4 < slope.max() <= 1.5
  shift = y.mean((1, 2, 3)) - x.mean((1, 2, 3))
  assert -0.5 <= shift.min() < -0.4
  assert 0.4 < shift.max() <= 0.5


def test_translation_moves_exact_pixels():
  x = np.asarray(pictures(2, n=200, side=16))
  y = np.asarray(compiled(("translation",))(keys(200), x))
  seen = set()
  for before, after in zip(x, y, strict=True):
    wide = np.pad(before, ((2, 2), (2, 2), (0, 0)))
    fits = [
      (i, j)
      for i, j in np.ndindex(5, 5)
      if (wide[i : i + 16, j : j + 16] == after).all()
    ]
    assert len(fits) == 1
    seen.update(fits)
  # Up to 1/8 of the side each way, and all of it.
  assert len(seen) == 25


@pytest.mark.parametrize("side", [7, 8])
def test_cutout_is_a_square_of_half_the_side(side):
  y = np.asarray(compiled(("cutout",))(keys(400), jnp.ones((400, side, side, 3))))
  assert set(np.unique(y)) == {0, 1}
  assert (y == y[..., :1]).all()
  gone = y[..., 0] == 0
  rows, columns = gone.any(2), gone.any(1)
  assert (gone == rows[:, :, None] & columns[:, None]).all()
  for cut in (rows, columns):
    # One run, whole if it is inside; at the edges as much as is in the picture.
    assert (np.abs(np.diff(np.pad(cut, ((0, 0), (1, 1))), axis=1)).sum(1) == 2).all()
    inside = ~cut[:, 0] & ~cut[:, -1]
    assert (cut.sum(1)[inside] == 4).all()
    assert set(cut.sum(1)) == {2, 3, 4}


def test_adaptive_does_nothing_at_zero():
  for c in (1, 3):
    x = pictures(c)
    assert (ada(x, 0.0) == x).all()


@pytest.mark.parametrize("c", [1, 3])
def test_adaptive_changes_as_many_as_it_should(c):
  x = pictures(c, n=500, side=4)
  p = 0.1
  same = (ada(x, p) == x).all((1, 2, 3))
  # Half of the flips and quarter turns do nothing, as do whole shifts of 4 pixels by
  # less than half of one; a shift of 1/8 of 4 pixels never rounds to 1.
  left = (1 - p / 2) ** 2 * (1 - 3 * p / 4) * (1 - p) ** (6 if c == 1 else 8)
  assert same.mean() == pytest.approx(left, abs=0.07)


def test_adaptive_amounts():
  """The paper's, of each number by itself."""
  n, sides = 5000, jnp.array([16, 32])
  p = jnp.float32(1)
  g = jax.vmap(lambda key: augment._geometry(key, p, sides))(keys(n))
  c = jax.vmap(lambda key: augment._colours(key, p))(keys(n, seed=1))
  g, c = jax.device_get((g, c))
  for found, values in (
    (g.flip, [0, 1]),
    (g.quarters, [0, 1, 2, 3]),
    (c.luma_flip, [0, 1]),
    (g.pixels[:, 0], [-2, -1, 0, 1, 2]),
    (g.pixels[:, 1], range(-4, 5)),
  ):
    assert set(found) == set(values)
    # Half as often at the ends of what is rounded.
    middle = np.mean(found == 1) * (len(values) - (found.min() < 0))
    assert middle == pytest.approx(1, abs=0.15)
  evenly = [g.before, g.after, c.hue]
  for angle in evenly:
    assert np.abs(angle).max() == pytest.approx(np.pi, abs=0.01)
    assert np.std(angle) == pytest.approx(np.pi / np.sqrt(3), rel=0.03)
  normal = [np.log2(g.scale), np.log2(g.wider), *g.shift.T, c.brightness]
  normal += [np.log2(c.contrast), np.log2(c.saturation)]
  for found, std in zip(normal, (0.2, 0.2, 2, 4, 0.2, 0.5, 1), strict=True):
    assert found.mean() == pytest.approx(0, abs=0.06 * std)
    assert found.std() == pytest.approx(std, rel=0.05)
  # No number serves twice.
  of_all = [g.flip, g.quarters, *g.pixels.T, c.luma_flip, *evenly, *normal]
  assert np.abs(np.corrcoef(of_all) - np.eye(len(of_all))).max() < 0.06


def test_adaptive_probabilities():
  """Of each by itself, at p = 0.5; of the two rotations together it is p."""
  p, n = jnp.float32(0.5), 5000
  g = jax.vmap(lambda key: augment._geometry(key, p, jnp.array([64, 64])))(keys(n))
  c = jax.vmap(lambda key: augment._colours(key, p))(keys(n, seed=1))
  once = 1 - np.sqrt(0.5)
  turned = np.stack([g.before != 0, g.after != 0])
  found = [g.flip != 0, g.quarters != 0, (g.pixels != 0).any(-1), g.scale != 1]
  found += [g.wider != 1, (g.shift != 0).any(-1), *turned, turned.any(0)]
  found += [a != b for a, b in zip(c, augment.Colours(), strict=True)]
  # Half of the flips do nothing, a quarter of the turns, 1 in 256 of the shifts.
  want = [0.25, 0.375, 0.498, 0.5, 0.5, 0.5, once, once, 0.5, 0.5, 0.5, 0.25, 0.5, 0.5]
  np.testing.assert_allclose([np.mean(a) for a in found], want, atol=0.025)


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
@pytest.mark.parametrize("flip", [0, 1])
def test_flips_and_quarter_turns_move_exact_pixels(flip, turns):
  x = pictures(n=1)[0]
  y = moved(x, flip=flip, quarters=turns)
  want = np.rot90(x[:, ::-1] if flip else x, turns)
  assert (y == want).all()


def test_whole_pixels_are_reflected():
  x = pictures(n=1)[0]
  y = moved(x, pixels=(2.0, -1.0))
  wide = np.pad(x, ((0, 1), (2, 0), (0, 0)), mode="reflect")
  assert (y == wide[1:, :8]).all()


def test_scale_of_a_straight_slope():
  # A picture that is linear in its place, so bilinear look-ups are exact inside.
  place = jnp.arange(9.0) - 4
  x = jnp.stack(jnp.meshgrid(place, place), axis=-1)  # column, row
  y = moved(x, scale=2.0, wider=1.25, shift=(0.5, 0.25))
  want = (x - jnp.array([0.5, 0.25])) / jnp.array([2.5, 1.6])
  np.testing.assert_allclose(y, want, atol=1e-5)


def test_rotation_of_a_straight_slope():
  place = jnp.arange(9.0) - 4
  x = jnp.stack(jnp.meshgrid(place, place), axis=-1)
  y = moved(x, before=0.3, after=0.2)
  c, s = np.cos(0.5), np.sin(0.5)
  want = jnp.stack([c * x[..., 0] - s * x[..., 1], s * x[..., 0] + c * x[..., 1]], -1)
  # Away from the corners, which turn out of the picture.
  np.testing.assert_allclose(y[2:-2, 2:-2], want[2:-2, 2:-2], atol=1e-5)


def test_colours_against_their_matrices():
  x = pictures(n=1)[0]
  b, c, hue, s = 0.3, 1.4, 0.7, 1.8
  amounts = {"brightness": b, "contrast": c, "hue": hue, "saturation": s}
  y = recoloured(x, luma_flip=1, **amounts)
  v = np.ones((3, 1)) / np.sqrt(3)
  luma = v @ v.T
  cross = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / np.sqrt(3)
  turn = np.cos(hue) * np.eye(3) + np.sin(hue) * cross + (1 - np.cos(hue)) * luma
  matrix = (luma + s * (np.eye(3) - luma)) @ turn @ (np.eye(3) - 2 * luma)
  want = (np.asarray(x) + b) * c @ matrix.T
  np.testing.assert_allclose(y, want, rtol=1e-4, atol=1e-5)


def test_luma_flip_of_grey_pictures():
  x = pictures(1, n=1)[0]
  assert (recoloured(x, luma_flip=1) == -x).all()


def test_results_do_not_depend_on_how_a_batch_is_cut():
  x = pictures()
  order = np.random.default_rng(0).permutation(N)[: N // 2]
  for run in (compiled(ALL), lambda k, x: ADAPTIVE(k, x, jnp.float32(0.7))):
    whole, part = run(keys(), x), run(keys()[order], x[order])
    np.testing.assert_allclose(part, whole[order], atol=1e-5)
    # Pictures that are the same are changed differently.
    same = run(keys(), jnp.broadcast_to(x[:1], x.shape))
    assert np.std(same, axis=0).min() > 0.05


@pytest.mark.parametrize("name", ["diff_augment", "adaptive"])
def test_gradients(name):
  run = compiled(ALL) if name == "diff_augment" else functools.partial(ADAPTIVE, p=0.8)
  check_grads(
    lambda x: run(keys(2), x), (pictures(n=2),), 2, modes=["rev"], atol=1e-2, rtol=1e-2
  )


def test_controller():
  p = jnp.float32(0.5)
  up, down = (adjust(p, jnp.float32(r), 64, 0.6, 500.0) for r in (0.7, 0.5))
  assert up == pytest.approx(0.5 + 64 / 500_000)
  assert down == pytest.approx(0.5 - 64 / 500_000)
  assert adjust(jnp.float32(0.0), jnp.float32(0.0), 64) == 0
  assert adjust(jnp.float32(1.0), jnp.float32(1.0), 64) == 1
  # Half a million pictures are the way from 0 to 1.
  steps = jax.lax.fori_loop(
    0, 500, lambda i, p: adjust(p, jnp.float32(1.0), 1000), jnp.float32(0.0)
  )
  assert steps == pytest.approx(1, abs=1e-3)
