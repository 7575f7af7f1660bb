"""What a run draws: in training a grid, by request a file for each prompt."""

import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from core import arrays
from core.errors import UserError
from core.family import Family, Samples, State
from core.parallel import Parallel
from data.dataset import Dataset, words
from pipelines import build, embeddings, given, pictures, rerank, sample, texts


def preview(
  config: ConfigDict,
  family: Family,
  run: Parallel,
  load: Callable[[], Dataset],
  folder: Path,
) -> Callable[[State], dict[str, float]]:
  """A training hook that writes a grid, always of the same noise and prompts.

  As nearly square as it gets with all pictures of a prompt in one row, or all of one
  prompt. `load` gives the evaluation split. A family that draws nothing, or vectors,
  has none.

  Raises:
    UserError: what `sample` and `given` refuse.
  """
  codec = build.codec(config)
  if family.sample is None or (codec and not codec.codec.pictures):
    return lambda state: {}
  prompts = sample.prompts_for(config, [], load)
  labels = sample.labels_for(config, prompts, load)
  small = given.small_pictures(config, [], prompts, load)
  each = -(-config.sample.num_images // len(prompts))
  draw = sample.sampler(config, family, run, prompts, labels, each, small)

  def grid(state: State) -> dict[str, float]:
    images = draw(state).images
    if jax.process_index() == 0:
      file = folder / f"step_{int(state.step):07d}.png"
      columns = columns_of(len(prompts), each)
      pictures.save(pictures.grid(images, columns), file)
    return {}

  return grid


def columns_of(prompts: int, each: int) -> int:
  """Of a grid of `each` pictures of so many prompts, see `preview`."""
  side = math.isqrt(prompts * each)
  return side if prompts == 1 else each * max(1, side // each)


def request(
  config: ConfigDict,
  family: Family,
  run: Parallel,
  load: Callable[[], Dataset],
  prompts: Sequence[str],
  images: Sequence[str],
  mask: str,
) -> Callable[[State, Path], list[Path]]:
  """(state, folder) -> the files written of what a user asks for.

  With `sample.rerank` so many are drawn of each prompt, and the best are kept.

  Args:
    config: reads `sample`, and what the data are.
    family: what draws.
    run: the devices.
    load: gives the evaluation split, where it is needed.
    prompts: or none, for those of the config.
    images: files to edit or enlarge, if any.
    mask: a file, or ''.

  Raises:
    UserError: what `sample`, `given` and `rerank` refuse.
  """
  if images:
    sample.check_alone(config)
  rerank.check(config, edits=bool(images))
  reads_captions = config.text.encoder in ("bytes", "frozen")
  if images and reads_captions and embeddings.like_pictures(config):
    prompts = prompts or [""]  # a variation of a picture needs no caption
  prompts = sample.prompts_for(config, prompts, load)
  labels = sample.labels_for(config, prompts, load)
  texts.report(config, [*prompts, config.sample.negative_prompt])
  choose = None
  if config.sample.rerank:
    named = prompts
    if config.text.encoder == "label":
      named = [words(load().classes[label]) for label in labels]
    choose = rerank.chooser(config, run, named)
    config = ConfigDict(config.to_dict())
    config.sample.per_prompt = config.sample.rerank
  draw = given.drawer(config, family, run, prompts, labels, images, mask, load)
  names = given.names(config, prompts, images)

  def files(state: State, folder: Path) -> list[Path]:
    samples, found = draw(state), {}
    if choose:
      samples, found["scores"] = choose(samples)
    if jax.process_index() != 0:
      return []
    return write(samples, prompts, names, int(state.step), folder, **found)

  return files


def write(
  samples: Samples,
  prompts: Sequence[str],
  names: Sequence[str],
  step: int,
  folder: Path,
  **found: np.ndarray,
) -> list[Path]:
  """Writes what was drawn, as many pictures for each name, in order.

  For each name a grid, a film strip and a GIF of the pictures forming, and for all
  `samples.npz`: images uint8 [n, h, w, c], frames uint8 [k, n, h, w, c], prompts [n],
  step, nfe [n], and what else was `found` of them.

  Raises:
    UserError: a picture is not finite, or the folder can't be written.
  """
  if not np.isfinite(samples.images).all():
    raise UserError(
      "some of the pictures are not finite; look at the training loss, lower"
      " sample.guidance_scale or sample.rtol, or take another sample.sampler."
    )
  n, files = len(samples.images), []
  each = n // len(names)
  for i, name in enumerate(names):
    rows = slice(i * each, (i + 1) * each)
    images, frames = samples.images[rows], samples.frames[:, rows]
    stem = folder / f"{i:02d}_{slug(name)}"
    files.append(stem.with_suffix(".png"))
    pictures.save(pictures.grid(images, each, side=128), files[-1])
    pictures.save(pictures.film(frames), stem.with_name(f"{stem.name}_film.png"))
    stages = [pictures.grid(frame, each, side=128) for frame in frames]
    pictures.save_gif(stages, stem.with_suffix(".gif"))
  arrays.write(
    folder / "samples.npz",
    images=pictures.to_uint8(samples.images),
    frames=pictures.to_uint8(samples.frames),
    prompts=np.repeat(np.asarray(prompts), n // len(prompts)),
    step=np.asarray(step),
    nfe=samples.nfe,
    **found,
  )
  return files


def slug(name: str) -> str:
  """A name as part of a file's: letters of any script, digits, underscores."""
  return re.sub(r"\W+", "_", name).strip("_")[:60] or "sample"
