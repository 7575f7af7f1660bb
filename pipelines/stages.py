"""A system: parts that are trained one after the other, each a run of its own.

Its config has no model. `stages` holds the config of each part, `order` says in which
order they are trained and `draw` which of them draw, each from what the one before
made: a generator of latents whose codec is another stage, or a cascade. A stage's run
is in WORKDIR/NAME, and `data.codec="@NAME"` in one stage is that of another.
"""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import jax
from ml_collections import ConfigDict

from core.checkpoint import Checkpoints
from core.errors import UserError, unknown
from core.log import say
from core.workdir import RUNS, explained, reopen_workdir, resolved, write_atomic


def runs(
  config: ConfigDict, workdir: str, mode: str, stage: str
) -> Iterator[tuple[ConfigDict, str]]:
  """The configs and workdirs that a mode is for, in turn.

  Of a plain config that is the config itself. Of a system training and preparing are
  for all stages, the others for what they make together; with `stage` for one of them.
  Training passes over a stage that is done, and ends where one was stopped.

  Raises:
    UserError: no such stage, a stage for a config without any, or one whose codec is
      not trained yet.
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
    missing = unfinished(config, Path(workdir), name)
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
    say(f"stage {name}")
    yield own, str(path)
    if mode == "train" and trained_steps(path) < own.train.steps:
      return  # it was asked to stop


def record(config: ConfigDict, workdir: Path) -> None:
  """Writes the config of the whole to `config.json`; stages check their own."""
  if jax.process_index() == 0:
    with explained(workdir):
      workdir.mkdir(parents=True, exist_ok=True)
    text = json.dumps(json.loads(config.to_json_best_effort()), indent=2)
    write_atomic(workdir / "config.json", text + "\n")


def trained_steps(path: Path) -> int:
  """Of the newest checkpoint; -1 without one."""
  if not (path / "checkpoints").exists():
    return -1
  checkpoints = Checkpoints(path, read_only=True)
  latest = checkpoints.latest()
  checkpoints.close()
  return -1 if latest is None else latest


def needs(config: ConfigDict, name: str) -> list[str]:
  """The stages whose runs a stage names in its own config."""
  own, found = config.stages[name], []
  for section, field in (path.split(".") for path in RUNS):
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


def check(config: ConfigDict) -> None:
  """Whether the stages of a system fit together.

  Raises:
    UserError: a stage in `order` or `draw` is missing, a stage needs one that comes
      later or that is not there, or one that draws does not start from what the one
      before makes.
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
  first = config.draw[0]
  if config.stages[first].data.low_size:
    raise UserError(
      f"stage {first} draws first and starts from a small picture; set its"
      " data.low_size to 0, or draw one before it."
    )
  for before, after in itertools.pairwise(config.draw):
    made, read = config.stages[before].data, config.stages[after].data
    # A prior draws the vector that the next one starts from.
    if config.stages[after].text.embedding and made.codec:
      continue
    if made.size != read.low_size or made.channels != read.channels:
      raise UserError(
        f"stage {after} starts from pictures of {read.low_size}x{read.low_size}x"
        f"{read.channels}, and stage {before} makes {made.size}x{made.size}x"
        f"{made.channels}; set data.low_size and data.channels of the one to"
        " data.size and data.channels of the other."
      )
