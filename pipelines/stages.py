"""A system: parts that are trained one after the other, each a run of its own.

Its config has no model. `stages` holds the config of each part, `order` says in which
order they are trained and `draw` which of them draw, each from what the one before
made: a generator of latents whose codec is another stage, or a cascade. A stage's run
is in WORKDIR/NAME, and `data.codec="@NAME"` in one stage is that of another.
"""

import contextlib
import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import jax
from ml_collections import ConfigDict

from core.checkpoint import Checkpoints
from core.errors import UserError, unknown
from core.log import say
from core.workdir import (
  RUNS,
  check_workdir,
  explained,
  read_json,
  reopen_workdir,
  resolved,
  write_atomic,
)
from pipelines import embeddings

# Fields that name a run whose weights lie before a stage's own, which fit no others.
BENEATH = ("data.codec", "text.embedding")


def runs(
  config: ConfigDict, workdir: str, mode: str, stage: str
) -> Iterator[tuple[ConfigDict, str]]:
  """The configs and workdirs that a mode is for, in turn.

  Of a plain config that is the config itself. Of a system training and preparing are
  for all stages, the others for what they make together; with `stage` for one of them.
  Training passes over a stage that is done, and ends where one was stopped.

  Raises:
    UserError: no such stage, a stage for a config without any, one whose codec is not
      trained yet, or what `record` and `check_beneath` refuse.
  """
  if "stages" not in config:
    if stage:
      raise UserError(f"--stage={stage} is for systems (configs/pipelines/).")
    yield resolved(config, Path(workdir or ".")), workdir
    return
  check(config)
  if not workdir:
    raise UserError(f"--mode={mode} of a system needs --workdir=DIR.")
  if stage and stage not in config.order:
    raise unknown("--stage", stage, config.order)
  if mode in ("sample", "eval") and not stage:
    yield config, workdir
    return
  if mode == "train":
    record(config, Path(workdir))
  for name in (stage,) if stage else config.order:
    path = Path(workdir) / name
    own = resolved(config.stages[name], path)
    builds = mode in ("train", "prepare")
    missing = unfinished(config, Path(workdir), name) if builds else ""
    if mode == "prepare" and missing:
      say(f"stage {name} is prepared once {missing} is trained")
      continue
    if missing:
      raise UserError(
        f"stage {name} needs {missing}, which is not trained to the end; train it"
        f" first: the same command with --stage={missing}."
      )
    if mode == "train" and trained_steps(path) >= own.train.steps:
      reopen_workdir(str(path), own)
      say(f"stage {name}: its {own.train.steps} steps are done")
      continue
    if mode == "train":
      check_beneath(config, Path(workdir), name)
    say(f"stage {name}")
    yield own, str(path)
    if mode == "train" and trained_steps(path) < own.train.steps:
      return  # it was asked to stop


@contextlib.contextmanager
def told(config: ConfigDict, own: ConfigDict, path: str) -> Iterator[None]:
  """Says in a UserError which stage of a system it is of."""
  try:
    yield
  except UserError as error:
    if "stages" not in config or own is config:
      raise
    raise UserError(f"stage {Path(path).name}: {error}") from error


def record(config: ConfigDict, workdir: Path) -> None:
  """Writes the config of the whole to `config.json`.

  Raises:
    UserError: the folder has a plain run, a stage that this config has not, or one of
      another config.
  """
  file = workdir / "config.json"
  if file.exists():
    theirs = read_json(file).get("order")
    if theirs is None:
      raise UserError(f"{workdir} holds a run of no system; give another --workdir.")
    if others := [name for name in theirs if name not in config.order]:
      raise UserError(
        f"{workdir} holds a system with stage {others[0]}, and this config has"
        f" {', '.join(config.order)}; give that system, or another --workdir."
      )
  for name in config.order:
    check_workdir(str(workdir / name), resolved(config.stages[name], workdir / name))
  if jax.process_index() == 0:
    with explained(workdir):
      workdir.mkdir(parents=True, exist_ok=True)
    text = json.dumps(json.loads(config.to_json_best_effort()), indent=2)
    write_atomic(file, text + "\n")


def trained_steps(path: Path) -> int:
  """Of the newest checkpoint; -1 without one."""
  if not (path / "checkpoints").exists():
    return -1
  checkpoints = Checkpoints(path, read_only=True)
  latest = checkpoints.latest()
  checkpoints.close()
  return -1 if latest is None else latest


def needs(config: ConfigDict, name: str, fields: tuple[str, ...] = RUNS) -> list[str]:
  """The stages whose runs a stage names in its own config, in those fields."""
  own, found = config.stages[name], []
  for section, field in (path.split(".") for path in fields):
    value = own.get(section, {}).get(field, "")
    if value.startswith("@"):
      found.append(value[1:])
  return found


def unfinished(config: ConfigDict, workdir: Path, name: str) -> str:
  """The first stage that a stage needs and that is not trained to its end, or ''."""
  for other in needs(config, name):
    if trained_steps(workdir / other) < config.stages[other].train.steps:
      return other
  return ""


def check_beneath(config: ConfigDict, workdir: Path, name: str) -> None:
  """Raises UserError if training a stage would change what another was trained with."""
  steps = trained_steps(workdir / name)
  for other in config.order:
    if name not in needs(config, other, BENEATH) or trained_steps(workdir / other) < 0:
      continue
    if steps < 0:
      raise UserError(
        f"stage {other} was trained with stage {name}, which is gone from {workdir};"
        " put it back, or give another --workdir."
      )
    raise UserError(
      f"stage {other} was trained with stage {name} as it is at step {steps}, so that"
      f" cannot be trained further; set stages.{name}.train.steps to {steps}, or give"
      " another --workdir."
    )


def check(config: ConfigDict) -> None:
  """Whether the stages of a system fit together.

  Raises:
    UserError: a stage in `order` or `draw` is missing, a stage needs one that comes
      later, that is not there or is of other pictures, or one that draws does not
      start from what the one before makes, a picture of its size or a vector of its
      dual encoder.
  """
  for field in ("order", "draw"):
    for name in config[field]:
      if name not in config.stages:
        raise unknown(field, name, config.stages)
  if not config.draw or set(config.draw) - set(config.order):
    raise UserError("draw must name stages of order, such as ('generator',).")
  for i, name in enumerate(config.order):
    for other in needs(config, name):
      if other not in config.order[:i]:
        raise UserError(
          f"stage {name} needs the run of stage {other!r}, which is not trained before"
          f" it; known, in order: {', '.join(config.order)}."
        )
    for other in needs(config, name, BENEATH):
      own, theirs = config.stages[name].data, config.stages[other].data
      for field in ("size", "channels"):
        if own[field] != theirs[field]:
          raise UserError(
            f"stages.{name}.data.{field} is {own[field]}, and stages.{other}.data."
            f"{field}, of what lies beneath it, {theirs[field]}; give both the same."
          )
  first = config.draw[0]
  if config.stages[first].data.low_size:
    raise UserError(
      f"stage {first} draws first and starts from a small picture; set its"
      " data.low_size to 0, or draw one before it."
    )
  if len(config.draw) > 1 and embeddings.like_pictures(config.stages[first]):
    raise UserError(
      f"stage {first} draws first and starts from the vector of a picture; draw a prior"
      " before it, or it alone."
    )
  for before, after in itertools.pairwise(config.draw):
    made, read = config.stages[before].data, config.stages[after].data
    if embeddings.like_pictures(config.stages[after]):
      wanted, found = config.stages[after].text.embedding, coded_by(config, before)
      if not found or (found.startswith("@") and found != wanted):
        raise UserError(
          f"stage {after} starts from a vector of text.embedding={wanted}, and stage"
          f" {before} draws none: set its data.codec to {wanted}, or to a stage of its"
          " components."
        )
      continue
    if made.size != read.low_size or made.channels != read.channels:
      raise UserError(
        f"stage {after} starts from pictures of {read.low_size}x{read.low_size}x"
        f"{read.channels}, and stage {before} makes {made.size}x{made.size}x"
        f"{made.channels}; set data.low_size and data.channels of the one to"
        " data.size and data.channels of the other."
      )


def coded_by(config: ConfigDict, name: str) -> str:
  """The run that is the first of the codecs of what a stage draws, or ''."""
  found = config.stages[name].data.codec
  while found.startswith("@") and (inner := config.stages[found[1:]].data.codec):
    found = inner
  return found
