"""The step and the sampler of a config, compiled for devices that are not here."""

import contextlib
import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from core import cli, flops, parallel, roofline
from core.chips import Chip
from core.errors import UserError, unknown
from core.family import Batch, Family, State
from core.parallel import Parallel
from core.roofline import Program
from core.workdir import named, resolved
from pipelines import build, codecs, sample, stages
from pipelines.opened import Opened, chained

Figures = dict[str, Any]
# A run's folder that stands for shapes alone may be a config instead.
SHAPED = ("data.codec", "text.embedding")


@contextlib.contextmanager
def parts(config: ConfigDict, stage: str) -> Iterator[dict[str, ConfigDict]]:
  """What there is to compile: the stages of a system, or the config itself as ''.

  Where a stage, or a config FILE.py[:variant] in `data.codec`, stands for the run of an
  autoencoder, a folder with its config alone takes that run's place.

  Raises:
    UserError: no such stage, or stages that do not fit.
  """
  with tempfile.TemporaryDirectory() as folder:
    if "stages" not in config:
      if stage:
        raise UserError(f"--stage={stage} is for systems (configs/pipelines/).")
      own = resolved(config, Path(folder) / "run")
      place(own, Path(folder))
      yield {"": own}
      return
    stages.check(config)
    if stage and stage not in config.order:
      raise unknown("--stage", stage, config.order)
    found = {}
    for name in config.order:
      path = Path(folder) / name
      found[name] = resolved(config.stages[name], path)
      write(found[name], path)
    yield {name: found[name] for name in ((stage,) if stage else config.order)}


def place(config: ConfigDict, folder: Path) -> None:
  """Puts a folder in the place of each config that a field names for a run."""
  for field in SHAPED:
    section, name = field.split(".")
    value = config[section][name]
    if value.split(":")[0].endswith(".py"):
      if not Path(value.split(":")[0]).is_file():
        raise UserError(f"no config file {field}={value}; look in configs/.")
      theirs = cli.load(value)
      theirs.data.size, theirs.data.channels = config.data.size, config.data.channels
      path = folder / name
      config[section][name] = str(path)
      write(resolved(theirs, path), path)


def write(config: ConfigDict, path: Path) -> None:
  """A run's folder that holds its config and nothing else."""
  path.mkdir()
  tree = json.loads(config.to_json_best_effort())
  (path / "config.json").write_text(json.dumps(named(tree, path)))


def step(config: ConfigDict, run: Parallel, chip: Chip) -> Figures:
  """The figures of a training step; see `roofline.measure`.

  Raises:
    UserError: the networks do not fit the data, or the batch the devices.
  """
  run.check_batch(config.data.batch_size, config.optim.microbatches)
  family, needed = made(config), counted(config)
  state, batch = shapes(config, family)
  lowered = run.lower_step(
    family.step,
    state,
    jax.eval_shape(lambda batch: run.cut(batch, run.parts), batch),
  )
  own = roofline.of_state(run, state)
  rows = sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(batch))
  resident = sum(own.values()) + rows / run.parts
  plain = counted(config, remat=False)
  found = roofline.measure(Program(lowered, needed, plain, resident), run, chip)
  found["memory"] |= own | {"batch": rows / run.parts}
  count = sum(a.size for a in jax.tree.leaves(state.params))
  return {"parameters": count} | found


def draw(config: ConfigDict, run: Parallel, chip: Chip) -> Figures:
  """The figures of drawing `sample.num_images`, one a device at least, in training."""
  size = config.sample.num_images + -config.sample.num_images % run.parts
  family, codec = made(config), opened(config)
  state, batch = shapes(config, family)
  put = lambda tree, shards: jax.tree.map(  # noqa: E731
    lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), tree, shards
  )
  rows = jax.tree.map(
    lambda a: jax.ShapeDtypeStruct((size, *a.shape[1:]), a.dtype, sharding=run.rows),
    batch["cond"],
  )
  if config.data.low_size:
    side, channels = config.data.low_size, config.data.channels
    small = jax.ShapeDtypeStruct(
      (size, side, side, channels), jnp.float32, sharding=run.rows
    )
    rows = rows.replace(image=small)
  decoder = codec.state if codec else None
  given = (
    put(state, run.shardings(state)),
    jax.ShapeDtypeStruct((), jnp.uint32, sharding=run.replicated),
    rows,
    put(decoder, run.shardings(decoder)),
  )
  compute = sample.drawing(config, family, run, size, codec)
  needed = flops.of(compute, *given)
  resident = sum(roofline.of_state(run, state).values())
  resident += roofline.per_device(run, decoder)
  program = Program(run.run(compute).lower(*given), needed, needed, resident)
  return {"pictures": size} | roofline.measure(program, run, chip)


def draws(config: ConfigDict, family: Family) -> bool:
  """Whether training draws pictures."""
  codec = opened(config)
  return family.sample is not None and not (codec and not codec.codec.pictures)


def made(config: ConfigDict) -> Family:
  """The family of a config, which here needs no weights of other runs."""
  own = ConfigDict(config.to_dict())
  own.sample.guide = ""
  return build.family(own)


def counted(config: ConfigDict, remat: bool | None = None) -> flops.Count:
  """The operations of a step of all devices; with `remat`, for that `model.remat`."""
  own = ConfigDict(config.to_dict())
  if remat is not None:
    own.model.remat = remat
  family = made(own)
  state, batch = shapes(own, family)
  return flops.of(family.step, state, batch, jax.eval_shape(jax.random.key, 0))


def shapes(config: ConfigDict, family: Family) -> tuple[State, Batch]:
  """The state and the global batch of a run, without their numbers."""
  one = build.example_batch(config)
  n = config.data.batch_size
  batch = jax.tree.map(
    lambda a: jax.ShapeDtypeStruct((n, *a.shape[1:]), a.dtype), dict(one)
  )
  return jax.eval_shape(family.init, jax.random.key(0), one), batch


def opened(config: ConfigDict) -> Opened | None:
  """`build.codec`, with the shapes of its state."""
  if not config.data.codec:
    return None
  theirs = codecs.config_of(config)
  family = made(theirs)
  state, _ = shapes(theirs, family)
  state = state.replace(params={}, opt={})
  found = Opened(codecs.of_family(config, family), state, "")
  inner = opened(theirs)
  return chained(inner, found) if inner else found


def run_on(config: ConfigDict, devices: Sequence[jax.Device]) -> Parallel:
  """The backend of a config on given devices."""
  return parallel.make(config.parallel, devices)
