"""Pictures that a user gives: to be enlarged by super-resolution, or edited."""

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from ml_collections import ConfigDict

from core.errors import UserError
from core.family import Family, Given
from core.parallel import Parallel
from data import images as formats
from data.dataset import Dataset
from pipelines import embeddings, pictures, sample


def drawer(
  config: ConfigDict,
  family: Family,
  run: Parallel,
  prompts: Sequence[str],
  labels: Sequence[int],
  files: Sequence[str],
  mask: str,
  load: Callable[[], Dataset],
) -> sample.Sampler:
  """state -> `sample.per_prompt` pictures of each prompt, from `files` if any.

  Super-resolution enlarges them, what reads vectors of pictures draws others like them
  or, with `sample.edit` interpolate, like what lies between two of them; all others
  edit them as `sample.edit` says.

  Raises:
    UserError: what the functions below refuse, or a mask that nothing is for.
  """
  each, inpaint = config.sample.per_prompt, config.sample.edit == "inpaint"
  starts = sample.starts_from_picture(config)
  wanted = bool(mask) or (inpaint and bool(files) and not starts)
  if wanted and not (inpaint and mask and files and not starts):
    raise UserError(
      "--mask=FILE and --config.sample.edit=inpaint need one another, and --image, with"
      " a generator that does no super-resolution."
    )
  if starts and not files:
    does = (
      "enlarges pictures" if config.data.low_size else "draws what is like pictures"
    )
    raise UserError(
      f"this generator {does}: give --image=FILE, one for all prompts or one for each."
    )
  if starts:
    check_start(config, len(files), len(prompts))
  if files and not starts:
    images = read(config, files), read_mask(config, mask)
    return editor(config, family, run, prompts, labels, *images, each)
  if files and len(prompts) == 1:
    prompts, labels = list(prompts) * len(files), list(labels) * len(files)
  small = small_pictures(config, files, prompts, load)
  between = starts and config.sample.edit == "interpolate"
  if not between:
    return sample.sampler(config, family, run, prompts, labels, each, small)
  rows = [0] * (each - 1) + [1]
  given = ([a[i] for i in rows] for a in (prompts, labels))
  return sample.sampler(config, family, run, *given, 1, small[rows], between)


def editor(
  config: ConfigDict,
  family: Family,
  run: Parallel,
  prompts: Sequence[str],
  labels: Sequence[int],
  images: Float[np.ndarray, "n h w c"],
  mask: Float[np.ndarray, "h w 1"],
  each: int,
) -> sample.Sampler:
  """state -> `each` edits of each picture under its prompt; compiled once.

  Raises:
    UserError: the family has no such edit; as many prompts as pictures are needed, or
      one; interpolation needs two pictures and one prompt.
  """
  sample.check_edit(config, family)
  between = config.sample.edit == "interpolate"
  if between:
    check_between(len(images), len(prompts))
    each += -each % run.parts
    images = images[[0] * (each - 1) + [1]]
  elif len(prompts) == 1:
    prompts, labels = list(prompts) * len(images), list(labels) * len(images)
  if not between and len(prompts) != len(images):
    raise UserError(
      f"{len(images)} --image and {len(prompts)} prompts do not pair up; give one"
      " --prompt for all, or one for each."
    )
  rows = images if between else images.repeat(each, axis=0)
  captions, labels = ([a for a in b for _ in range(each)] for b in (prompts, labels))
  n, size = len(rows), len(rows) + -len(rows) % run.parts
  rows = np.concatenate([rows, *[rows[:1]] * (size - n)])
  given = Given(rows, np.broadcast_to(mask, (size, *mask.shape)))
  draw = sample.batch_sampler(config, family, run, size, given=given)
  return lambda state: draw(state, 0, captions, labels)


def check_start(config: ConfigDict, images: int, prompts: int) -> None:
  """Whether `sample.edit` is for a generator that starts from a picture.

  Raises:
    UserError: it is not, or `check_between` refuses.
  """
  edit, like = config.sample.edit, embeddings.like_pictures(config)
  if edit == "interpolate" and like:
    check_between(images, prompts)
  elif edit != "image_to_image":
    known = "'image_to_image' or 'interpolate'" if like else "'image_to_image'"
    raise UserError(
      f"sample.edit={edit!r} is not for a generator that starts from a picture: set it"
      f" to {known}."
    )


def check_between(images: int, prompts: int) -> None:
  """Raises UserError unless there are two pictures and one prompt, to interpolate."""
  if (images, prompts) != (2, 1):
    raise UserError(
      "sample.edit='interpolate' needs two --image and one --prompt: here are"
      f" {images} pictures, {prompts} prompts."
    )


def names(
  config: ConfigDict, prompts: Sequence[str], files: Sequence[str]
) -> list[str]:
  """What the pictures of each prompt are called, and those made of each of `files`.

  A prompt, or the edit, the picture's own name and the prompt, so that no edit takes
  the place of another's files.
  """
  if not files:
    return list(prompts)
  edit = "enlarge" if config.data.low_size else config.sample.edit
  if embeddings.like_pictures(config) and edit != "interpolate":
    edit = "vary"
  stems = [Path(file).stem for file in files]
  if edit == "interpolate":
    stems = [" ".join(stems)]
  count = max(len(prompts), len(stems))
  pairs = zip(itertools.cycle(stems), itertools.cycle(prompts), strict=False)
  return [f"{edit} {stem} {text}" for stem, text in itertools.islice(pairs, count)]


def small_pictures(
  config: ConfigDict,
  files: Sequence[str],
  prompts: Sequence[str],
  load: Callable[[], Dataset],
) -> Float[np.ndarray, "n h w c"] | None:
  """What drawing starts from, one a prompt; None where it starts from no picture.

  Files, or held-out pictures: one of that caption, else any.

  Raises:
    UserError: neither one file nor one for each prompt.
  """
  count = len(prompts)
  if not sample.starts_from_picture(config):
    return None
  if not files:
    data, captioned = load(), {}
    for i in range(len(data)):
      for text in (t for own in data.captions(i).values() for t in own):
        captioned.setdefault(text, i)
    rows = [captioned.get(prompt, i % len(data)) for i, prompt in enumerate(prompts)]
    return pictures.from_uint8([data.image(i) for i in rows])
  found = read(config, files)
  if len(found) not in (1, count):
    raise UserError(
      f"{len(found)} --image and {count} prompts do not pair up; give one picture for"
      " all, or one for each."
    )
  return found.repeat(count // len(found), axis=0)


def read(config: ConfigDict, files: Sequence[str]) -> Float[np.ndarray, "n h w c"]:
  """Picture files, squared to `data.size` or the size super-resolution starts from.

  Raises:
    UserError: a file is missing, unreadable or too small.
  """
  side, channels = config.data.low_size or config.data.size, config.data.channels
  return pictures.from_uint8([squared("image", file, side, channels) for file in files])


def read_mask(config: ConfigDict, file: str) -> Float[np.ndarray, "h w 1"]:
  """A mask from a picture file, 1 where it is white; '' is 1 everywhere.

  Raises:
    UserError: the file is missing, unreadable, too small or nowhere white.
  """
  size = config.data.size
  if not file:
    return np.ones((size, size, 1), np.float32)
  white = squared("mask", file, size, 1) > 127
  if not white.any():
    raise UserError(
      f"--mask={file} is nowhere white, so nothing would be drawn; make white what is"
      " to be drawn anew."
    )
  return white.astype(np.float32)


def squared(
  flag: str, file: str, side: int, channels: int
) -> UInt8[np.ndarray, "h w c"]:
  """A picture file at the size of a run's pictures; masks are read as grey.

  Raises:
    UserError: it is unreadable, too small, or coloured and theirs are grey.
  """
  where = f"--{flag}={file}"
  try:
    picture = formats.decode(file)
  except formats.Unreadable as error:
    raise UserError(f"{where} can't be read ({error}); give a picture.") from error
  if flag == "mask":
    picture = picture.convert("L")
  if min(picture.size) < side:
    raise UserError(
      f"{where} is {picture.width}x{picture.height} pixels, and this run reads"
      f" {side}x{side}; give a larger one."
    )
  try:
    return formats.fit(picture, side, channels, where)
  except UserError as error:
    raise UserError(
      f"{where} has colours, and this run's pictures are grey; make it grey."
    ) from error
