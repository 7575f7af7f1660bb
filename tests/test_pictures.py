"""Arrays to pictures, pixel by pixel."""

import numpy as np
import pytest
from PIL import Image

from configs import base
from core.errors import UserError
from core.family import Samples
from pipelines import draw, given, pictures

GAP, GREY = 2, (211, 211, 211)  # CSS lightgrey


def flat(*values, channels=3, side=2):
  """One picture of one value each, [n, side, side, channels] in [-1, 1]."""
  shape = (len(values), side, side, channels)
  values = np.asarray(values, np.float32) / 127.5 - 1
  return np.broadcast_to(values.reshape(-1, 1, 1, 1), shape).copy()


def test_every_byte_survives():
  values = np.arange(256)
  back = pictures.to_uint8((values / 127.5 - 1).astype(np.float32))
  assert back.dtype == np.uint8
  np.testing.assert_array_equal(back, values)


def test_values_are_rounded_and_clipped():
  values = np.array([-7.0, -1.0, 1.0, 3.0, 0.0, 0.4 / 127.5, -0.6 / 127.5], np.float32)
  np.testing.assert_array_equal(
    pictures.to_uint8(values), [0, 0, 255, 255, 128, 128, 127]
  )
  # To the nearest: never further than half a step.
  x = np.linspace(-1, 1, 10_001)
  off = np.abs(pictures.to_uint8(x) - (x + 1) * 127.5)
  assert off.max() <= 0.5 + 1e-9


def test_a_grid_is_filled_row_by_row():
  sheet = np.asarray(pictures.grid(flat(10, 20, 30, 40, 50), columns=2, side=4))
  want = np.full((3 * (4 + GAP) + GAP, 2 * (4 + GAP) + GAP, 3), GREY, np.uint8)
  for i, value in enumerate((10, 20, 30, 40, 50)):
    top, left = (GAP + k * (4 + GAP) for k in divmod(i, 2))
    want[top : top + 4, left : left + 4] = value
  np.testing.assert_array_equal(sheet, want)


@pytest.mark.parametrize(
  ("prompts", "each", "columns"),
  [(30, 2, 6), (10, 4, 4), (8, 4, 4), (2, 8, 8), (32, 1, 5), (1, 64, 8)],
)
def test_pictures_of_a_prompt_stay_in_a_row(prompts, each, columns):
  assert draw.columns_of(prompts, each) == columns


@pytest.mark.parametrize("channels", [1, 3])
def test_tiles_are_enlarged_by_a_whole_factor(channels):
  image = np.random.default_rng(0).uniform(-1, 1, (1, 3, 3, channels))
  sheet = np.asarray(pictures.grid(image, columns=1, side=8))
  tile = pictures.to_uint8(image[0]).repeat(3, 0).repeat(3, 1)  # 9 is the next above 8
  np.testing.assert_array_equal(
    sheet[GAP:-GAP, GAP:-GAP], np.broadcast_to(tile, (9, 9, 3))
  )


def test_a_film_runs_from_left_to_right_a_row_each():
  frames = np.stack([flat(10, 60), flat(20, 70), flat(30, 80)])  # [k=3, n=2, ...]
  sheet = np.asarray(pictures.film(frames, side=2))
  centres = sheet[GAP :: 2 + GAP, GAP :: 2 + GAP, 0]
  np.testing.assert_array_equal(centres[:2, :3], [[10, 20, 30], [60, 70, 80]])


def test_a_gif_has_every_frame_and_dwells_on_the_last(tmp_path):
  file = tmp_path / "new" / "forming.gif"
  stages = [pictures.grid(flat(v), 1) for v in (0, 60, 120, 180)]
  pictures.save_gif(stages, file)
  with Image.open(file) as gif:
    assert gif.n_frames == 4
    assert gif.info["loop"] == 0
    seen = []
    for i, value in enumerate((0, 60, 120, 180)):
      gif.seek(i)
      seen.append(gif.info["duration"])
      assert gif.convert("RGB").getpixel((8, 8)) == (value,) * 3
  assert seen == [250, 250, 250, 2000]


def test_a_gif_of_one_frame(tmp_path):
  file = tmp_path / "one.gif"
  pictures.save_gif([pictures.grid(flat(9), 1)], file)
  with Image.open(file) as gif:
    assert getattr(gif, "n_frames", 1) == 1


def test_a_png_keeps_every_pixel(tmp_path):
  file = tmp_path / "new" / "grid.png"
  sheet = pictures.grid(np.random.default_rng(0).uniform(-1, 1, (3, 4, 4, 3)), 2)
  pictures.save(sheet, file)
  with Image.open(file) as png:
    np.testing.assert_array_equal(np.asarray(png), np.asarray(sheet))


def test_a_file_that_cannot_be_written_is_a_sentence(tmp_path):
  (tmp_path / "file").touch()
  sheet = pictures.grid(flat(0), 1)
  for save, picture in [(pictures.save, sheet), (pictures.save_gif, [sheet])]:
    with pytest.raises(UserError, match="cannot write to"):
      save(picture, tmp_path / "file" / "under.png")


def test_what_is_made_of_one_picture_leaves_that_of_another(tmp_path):
  config = base.get_config()
  config.sample.edit = "reconstruct"
  samples = Samples(flat(10, 20, 30, 40), flat(1, 2, 3, 4)[None], np.ones(4))
  for files in (["in/a.png"], ["b.png", "c.png"]):
    names = given.names(config, ["any"], files)
    assert len(draw.write(samples, ["any"], names, 7, tmp_path)) == len(files)
  made = {file.stem for file in tmp_path.glob("*[!m].png")}
  assert made == {
    f"0{i}_reconstruct_{a}_any" for i, a in ((0, "a"), (0, "b"), (1, "c"))
  }
  # Two of each picture, in order.
  want = pictures.grid(flat(30, 40), 2, side=128)
  with Image.open(tmp_path / "01_reconstruct_c_any.png") as found:
    np.testing.assert_array_equal(found, want)
  with np.load(tmp_path / "samples.npz") as saved:
    assert list(saved["prompts"]) == ["any"] * 4
  assert given.names(config, ["coat", "bag"], []) == ["coat", "bag"]
  pairs = given.names(config, ["coat", "bag"], ["a.png", "a.png"])
  assert pairs == ["reconstruct a coat", "reconstruct a bag"]
  config.sample.edit = "interpolate"
  assert given.names(config, ["bag"], ["a.png", "b.png"]) == ["interpolate a b bag"]


@pytest.mark.parametrize(
  ("images", "prompts", "message"),
  [(1, 1, "two --image and one --prompt: here are 1 pictures"), (2, 3, "3 prompts")],
)
def test_an_interpolation_is_between_two_pictures(images, prompts, message):
  given.check_between(2, 1)
  with pytest.raises(UserError, match=message):
    given.check_between(images, prompts)


@pytest.mark.parametrize(
  ("size", "colour", "message"),
  [
    ((20, 40), "grey", "is 20x40 pixels, and this run reads 32x32; give a larger one"),
    ((40, 40), "red", "has colours, and this run's pictures are grey; make it grey"),
  ],
)
def test_a_given_picture_that_does_not_fit_is_refused(tmp_path, size, colour, message):
  file = str(tmp_path / "given.png")
  Image.new("RGB", size, colour).save(file)
  with pytest.raises(UserError, match=message):
    given.squared("image", file, 32, 1)
  if colour == "red":
    assert given.squared("mask", file, 32, 1).shape == (32, 32, 1)


@pytest.mark.parametrize("colour", ["black", "white"])
def test_a_mask_is_white_somewhere(tmp_path, colour):
  file, config = str(tmp_path / "mask.png"), base.get_config()
  Image.new("L", (40, 40), colour).save(file)
  if colour == "white":
    assert (given.read_mask(config, file) == 1).all()
    return
  with pytest.raises(UserError, match="nowhere white"):
    given.read_mask(config, file)
