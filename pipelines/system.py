"""What several trained runs draw together, each from what the one before made."""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from core.errors import UserError
from core.family import Family, Samples, State, keys_at, sample_keys
from core.parallel import Parallel
from core.workdir import reopen_workdir, resolved
from pipelines import build, embeddings, similarity
from pipelines.opened import Opened


class Weights(struct.PyTreeNode):
  """What a stage draws with: its own state, and that of its codec, if any."""

  state: State
  codec: State | tuple[State, ...] | None


class Stage(NamedTuple):
  """A trained run that draws."""

  family: Family
  codec: Opened | None
  candidates: int = 1  # of a prior's vectors, see `embeddings.nearest`


def opened(
  config: ConfigDict, workdir: str
) -> tuple[ConfigDict, Family, Parallel, State]:
  """What draws, of a plain run or of a system, and the config to draw with.

  Raises:
    UserError: a run is missing, has another config or does not fit.
  """
  if "stages" not in config:
    folder = reopen_workdir(workdir, config)
    return config, *build.trained(config, folder)
  folders = {name: Path(workdir) / name for name in config.draw}
  configs = {n: resolved(config.stages[n], f) for n, f in folders.items()}
  for name, own in configs.items():
    reopen_workdir(str(folders[name]), own)
  runs = {name: build.trained(own, folders[name]) for name, own in configs.items()}
  if len(runs) == 1:
    return *configs.values(), *runs[config.draw[0]]
  parts, weights = {}, {}
  for name, (family, _, state) in runs.items():
    codec = build.codec(configs[name])
    parts[name] = Stage(family, codec, configs[name].sample.candidates)
    # Averages draw; the rest is for training.
    state = state.replace(params={}, opt={})
    weights[name] = Weights(state, codec.state if codec else None)
  together = front(config, configs)
  _, run, last = runs[config.draw[-1]]
  whole = State(step=last.step, params={}, opt={}, ema=weights, extra={})
  return together, composed(parts), run, whole


def front(config: ConfigDict, configs: Mapping[str, ConfigDict]) -> ConfigDict:
  """The config of what stages draw together: the last one's, which reads no picture.

  Prompts are those of the first stage.
  """
  found = ConfigDict(configs[config.draw[-1]].to_dict())
  found.data.low_size, found.data.codec = 0, ""
  found.text = configs[config.draw[0]].text
  found.stages, found.draw = ConfigDict(dict(configs)), config.draw
  found.family = " -> ".join(own.family for own in configs.values())
  return found


def composed(parts: Mapping[str, Stage]) -> Family:
  """The stages as one family, which draws.

  The condition is one for each stage; what one draws is the next one's picture or,
  of a prior, its vector. The film shows all pictures, at the last one's size;
  evaluations of the networks add up.
  """

  def sample(state: State, rng: Array, cond: Mapping[str, Any], n: int) -> Samples:
    keys, films, images, nfe = sample_keys(rng, n), [], None, 0
    pictures = True
    for i, (name, part) in enumerate(parts.items()):
      own = keys_at(keys, i)
      read, weights = cond[name], state.ema[name]
      if images is not None and pictures:
        read = read.replace(image=images)
      elif images is not None:
        read = read.replace(embedding=images.reshape(n, -1))
      draw = functools.partial(drawn, part, weights)
      pictures = part.codec is None or part.codec.codec.pictures
      if pictures:
        samples = draw(own, read, n)
        films.append(samples.frames)
      else:
        samples = embeddings.nearest(draw, own, read, n, part.candidates)
      images, nfe = samples.images, nfe + samples.nfe
    return Samples(images, film(films, images.shape[1:3]), nfe)

  return Family(init=_refuse, step=_refuse, sample=sample, evals={})


def drawn(part: Stage, weights: Weights, keys: Array, cond: Any, n: int) -> Samples:
  """What one stage draws, decoded."""
  cond = similarity.upper_half(keys, cond)
  samples = part.family.sample(weights.state, keys, cond, n)
  return part.codec.decoded(weights.codec, samples) if part.codec else samples


def film(
  films: Sequence[Float[Array, "_ n _ _ c"]], size: tuple[int, int]
) -> Float[Array, "_ n _ _ c"]:
  """The frames of all stages, one after the other, each of that size."""

  def enlarged(frames: Float[Array, "k n h w c"]) -> Float[Array, "k n h2 w2 c"]:
    k, n, *_, c = frames.shape
    return jax.image.resize(frames, (k, n, *size, c), "nearest")

  return jnp.concatenate([enlarged(frames) for frames in films])


def _refuse(*_: Any) -> NoReturn:
  raise UserError("a system is trained stage by stage.")
