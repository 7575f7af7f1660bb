"""Samples of prompts: compiled once, and the same whatever their number."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from ml_collections import ConfigDict

from core import checks
from core.errors import UserError, unknown
from core.family import Family, Given, Samples, State, example_keys
from core.parallel import Parallel
from data.batches import choose
from data.dataset import Dataset
from pipelines import build, embeddings, inputs, similarity
from pipelines.opened import Opened
from text.cond import Cond

Sampler = Callable[[State], Samples]


def sampler(
  config: ConfigDict,
  family: Family,
  run: Parallel,
  prompts: Sequence[str],
  labels: Sequence[int],
  each: int,
  images: Float[np.ndarray, "n h w c"] | None = None,
  between: bool = False,
) -> Sampler:
  """state -> `each` samples of each prompt, in order of prompts; compiled once.

  `images`, one a prompt, are what super-resolution starts from, or what is drawn shall
  be like. The noise of sample i depends on `config.sample.seed` and on i alone; see
  `batch_sampler` for `between`.
  """
  captions = [p for p in prompts for _ in range(each)]
  labels = [label for label in labels for _ in range(each)]
  images = None if images is None else images.repeat(each, axis=0)
  n = len(captions)
  # So that the devices share the work evenly.
  size = n + -n % run.parts
  draw = batch_sampler(config, family, run, size, between=between)
  return lambda state: draw(state, 0, captions, labels, images)


def batch_sampler(
  config: ConfigDict,
  family: Family,
  run: Parallel,
  size: int,
  film: bool = True,
  given: Given | None = None,
  vectors: bool = False,
  between: bool = False,
) -> Callable[..., Samples]:
  """(state, first, captions, labels, images=None) -> samples first, first + 1, ...

  Compiled once for `size` of them, or fewer. The noise of sample i depends on
  `config.sample.seed` and on i alone. Without `film` there are no frames. With `given`,
  `size` pictures, they are not drawn anew but edited, by `config.sample.edit`; of a
  generator of latents, it is their latents that are. A prior, which draws vectors, is
  refused but with `vectors`. With `between` all have the noise of the first, and are
  like what lies between the first and the last of `images` (`embeddings.between`).

  Raises:
    UserError: a family that draws nothing, a negative prompt for a generator that reads
      no captions, or an unknown edit.
  """
  if family.sample is None:
    raise UserError(
      f"{config.family} draws no pictures, it tells how well they fit captions: use"
      " --mode=eval, or name its workdir in eval.clip of a generator's run."
    )
  check_negative(config)
  codec = build.codec(config)
  if codec and not (codec.codec.pictures or vectors):
    raise UserError(
      f"what generates latents of {config.data.codec} draws vectors, not pictures; it"
      " draws as a stage of a system, before one that has text.embedding."
    )
  if given is not None:
    check_alone(config)

  compute = drawing(config, family, run, size, codec, film, given, vectors, between)
  fn = run.run(compute)

  def draw(
    state: State,
    first: int,
    captions: Sequence[str],
    labels: Sequence[int],
    images: Float[np.ndarray, "n h w c"] | None = None,
  ) -> Samples:
    n, pad = len(captions), size - len(captions)
    if images is not None:
      images = np.concatenate([images, *[images[:1]] * pad])
    cond = inputs.conditions(
      config,
      [*captions, *captions[:1] * pad],
      [*labels, *labels[:1] * pad],
      images,
    )
    if between:
      cond = embeddings.between(cond, n)
    cond = with_negative(config, cond, size)
    cond = run.put(slice_of_process(cond))
    out = fn(state, np.uint32(first), cond, codec.state if codec else None)
    images, frames, nfe = jax.device_get(out)
    return Samples(images[:n], frames[:, :n], nfe[:n])

  return draw


def check_edit(config: ConfigDict, family: Family) -> None:
  """Raises UserError unless the family has the edit `sample.edit`."""
  if not family.edits:
    raise UserError(f"{config.family} does nothing with pictures: leave --image out.")
  checks.check_edit(config, family.edits)


def check_negative(config: ConfigDict) -> None:
  """Raises UserError if `sample.negative_prompt` is of no use, also of a stage."""
  if "stages" in config:
    for own in config.stages.values():
      check_negative(own)
    return
  negative, text = config.sample.negative_prompt, config.text
  if not negative:
    return
  if text.encoder not in ("bytes", "frozen"):
    raise UserError(
      f"sample.negative_prompt={negative!r} needs a generator of captions, and"
      f" text.encoder is {text.encoder!r}; set it to ''."
    )
  if config.sample.guide or config.sample.guidance_scale == 1:
    raise UserError(
      f"sample.negative_prompt={negative!r} is what guidance leads away from: set"
      " sample.guidance_scale above 1, and sample.guide to ''."
    )


def with_negative(
  config: ConfigDict, cond: Cond | dict[str, Cond], size: int
) -> Cond | dict[str, Cond]:
  """The conditions with what `sample.negative_prompt` says, of each stage its own."""
  if "stages" in config:
    parts = config.stages
    return {k: with_negative(parts[k], own, size) for k, own in cond.items()}
  negative = config.sample.negative_prompt
  if not negative:
    return cond
  return cond.replace(negative=inputs.conditions(config, [negative] * size, [0] * size))


def drawing(
  config: ConfigDict,
  family: Family,
  run: Parallel,
  size: int,
  codec: Opened | None,
  film: bool = True,
  given: Given | None = None,
  vectors: bool = False,
  same: bool = False,
) -> Callable[[State, jax.Array, Cond, Any], Samples]:
  """(state, first, cond, state of the codec) -> samples; see `batch_sampler`.

  With `same` all have the noise of the first.
  """

  def compute(state: State, first: jax.Array, cond: Cond, decoder: Any) -> Samples:
    ids = jnp.arange(size, dtype=jnp.uint32)
    ids = first + (jnp.zeros_like(ids) if same else ids)
    keys = example_keys(jax.random.key(config.sample.seed), ids)
    # The keys are cut over the devices, and so is what is drawn from them.
    keys = jax.lax.with_sharding_constraint(keys, run.rows)

    def shown(samples: Samples) -> Samples:
      if not film:
        samples = samples._replace(frames=samples.frames[:0])
      return codec.decoded(decoder, samples) if codec else samples

    def drawn(keys: jax.Array, cond: Cond, n: int) -> Samples:
      if "stages" not in config:  # a system's stages ask for themselves
        cond = similarity.upper_half(keys, cond)
      return shown(family.sample(state, keys, cond, n))

    if given is not None:
      known = jax.tree.map(jnp.asarray, given)
      known = codec.encoded(decoder, known) if codec else known
      return shown(family.edits[config.sample.edit](state, keys, cond, known))
    if vectors:
      return embeddings.nearest(drawn, keys, cond, size, config.sample.candidates)
    return drawn(keys, cond, size)

  return compute


def starts_from_picture(config: ConfigDict) -> bool:
  """Whether a generator enlarges a picture, or draws what is like one."""
  return config.data.low_size > 0 or embeddings.like_pictures(config)


def slice_of_process(tree: object) -> object:
  """This process's rows of a batch that every process holds."""
  count, index = jax.process_count(), jax.process_index()

  def cut(a: np.ndarray) -> np.ndarray:
    rows = a.shape[0] // count
    return a[index * rows : (index + 1) * rows]

  return jax.tree.map(cut, tree)


def check_alone(config: ConfigDict) -> None:
  """Raises UserError where several stages draw: together they read no pictures."""
  if "stages" in config:
    raise UserError(
      f"{', '.join(config.draw)} draw together from texts alone: leave --image out, or"
      " give --stage=NAME of one that edits or enlarges pictures."
    )


def prompts_for(
  config: ConfigDict, given: Sequence[str], load: Callable[[], Dataset]
) -> list[str]:
  """The prompts given, else the config's, else all classes or some captions.

  An unconditional generator takes none: its pictures go by the name 'any'. The
  data are loaded only where they are needed.

  Raises:
    UserError: prompts for an unconditional generator, or none to be found.
  """
  if config.text.encoder == "none" and not config.text.embedding_of_caption:
    if given:
      raise UserError("this generator is unconditional; leave --prompt out.")
    return ["any"]
  if given or config.sample.prompts:
    return list(given or config.sample.prompts)
  if config.text.encoder == "label":
    return list(load().classes)
  data, captions = load(), {}
  for i in range(len(data)):
    captions[choose(data.captions(i), tuple(config.data.languages), i, 0)] = None
    if len(captions) > config.sample.num_images:
      break
  captions.pop("", None)
  if not captions:
    raise UserError(
      f"the data of {config.data.path or config.data.name} have no captions; to learn"
      " without, set text.encoder='none' (and gan.mismatch=0 of a GAN); to draw from"
      " what was trained with captions, set sample.prompts."
    )
  return list(captions)[: config.sample.num_images]


def labels_for(
  config: ConfigDict, prompts: Sequence[str], load: Callable[[], Dataset]
) -> list[int]:
  """The class of each prompt, given by number or by name; 0 where none is used.

  Raises:
    UserError: a prompt is neither.
  """
  if config.text.encoder != "label":
    return [0] * len(prompts)
  classes = load().classes
  names = {name: i for i, name in enumerate(classes)}
  names |= {str(i): i for i in range(len(classes))}
  for prompt in prompts:
    if prompt not in names:
      raise unknown("prompt", prompt, names)
  return [names[prompt] for prompt in prompts]
