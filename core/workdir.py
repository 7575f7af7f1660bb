"""The folder of a run: opened once, and refused when it belongs to another run."""

import contextlib
import fcntl
import json
import os
import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

import jax
from ml_collections import ConfigDict

from core.errors import UserError

# Fields that change neither the model nor the data it sees, so that a run may
# resume with other values: how long, how often, where, on what.
FREE = (
  "train.",
  "sample.",
  "eval.",
  "parallel.",
  "data.dir",
  "model.remat",
  "model.scan",
  "flow.draws",
  "vae.iwae_samples",
  "optim.microbatches",
)
# Whoever draws from a run and scores it may choose these as well: of which captions.
ASKED = (*FREE, "data.languages")
# Fields that older runs lack, and what was done before there were any.
ADDED = {
  "text.embedding_of_caption": False,
  "text.similarity_cells": 0,
  "sample.candidates": 1,
  "parallel.tensor": 1,
  "diffusion.augment": 0.0,
  "autoregressive.order": "masked",
}
# How many fields that differ a refusal names.
NAMED = 6
# Fields that name the folder of another run. '@NAME' is the folder NAME beside the
# run's own; `config.json` has it so wherever it can, so that both may be moved.
RUNS = ("data.codec", "text.embedding", "distil.teacher", "sample.guide", "eval.clip")


def cache_folder() -> Path:
  """Where what can be made again is kept: TAOLU_CACHE, or ~/.cache/taolu."""
  return Path(os.environ.get("TAOLU_CACHE") or "~/.cache/taolu").expanduser()


def open_workdir(path: str, config: ConfigDict) -> Path:
  """Creates the folder and its `config.json`, or checks the one that is there.

  This process keeps the folder until it ends.

  Raises:
    UserError: the folder can't be written, another process trains in it, or its run
      has another config or none.
  """
  workdir = Path(path)
  if jax.process_index() == 0:
    with explained(workdir):
      workdir.mkdir(parents=True, exist_ok=True)
      probe = workdir / ".writable"
      probe.touch()
      probe.unlink()
    hold(workdir)
  new = named(json.loads(config.to_json_best_effort()), workdir)
  file = workdir / "config.json"
  if file.exists():
    check_same(read_json(file), new, workdir)
  elif any((workdir / "checkpoints").glob("*")):
    raise UserError(
      f"{workdir} holds checkpoints but no config.json, so nobody knows of what; put"
      " it back, or give another --workdir."
    )
  if jax.process_index() == 0:
    with explained(workdir):
      write_atomic(file, json.dumps(new, indent=2, ensure_ascii=False) + "\n")
  return workdir


def check_workdir(path: str, config: ConfigDict) -> None:
  """Raises UserError if the run in the folder, if any, has another config."""
  file = Path(path) / "config.json"
  if file.exists():
    new = json.loads(config.to_json_best_effort())
    check_same(read_json(file), new, Path(path))


def reopen_workdir(path: str, config: ConfigDict) -> Path:
  """The folder of a run that was trained with this config.

  Raises:
    UserError: there is no run, or it has another config.
  """
  workdir = Path(path)
  file = workdir / "config.json"
  if not file.exists():
    raise UserError(
      f"no run in {workdir}; train first: the same command with --mode=train."
    )
  new = json.loads(config.to_json_best_effort())
  check_same(read_json(file), new, workdir, ASKED)
  return workdir


def read_config(workdir: Path) -> ConfigDict:
  """The config of a run, or a system, with what was done before of fields in ADDED.

  Raises:
    UserError: the file is damaged.
  """
  config = ConfigDict(read_json(workdir / "config.json"))
  for own in (config, *config.get("stages", {}).values()):
    for field, before in ADDED.items():
      section, name = field.split(".")
      if section in own and name not in own[section]:
        own[section][name] = before
  return resolved(config, workdir)


def resolved(config: ConfigDict, workdir: Path) -> ConfigDict:
  """A copy of the config of a run in `workdir`, with the folders that '@NAME' names."""
  config = config.copy_and_resolve_references()
  for section, name in (field.split(".") for field in RUNS):
    part = config.get(section, {})
    if part.get(name, "").startswith("@"):
      part[name] = os.path.normpath(workdir.parent / part[name][1:])
  return config


def named(tree: dict[str, Any], workdir: Path) -> dict[str, Any]:
  """A config as nested dicts, with '@NAME' for the folder NAME beside `workdir`."""
  tree, home = dict(tree), workdir.absolute().parent
  for section, name in (field.split(".") for field in RUNS):
    value = tree.get(section, {}).get(name, "")
    place = Path(os.path.normpath(Path(value).absolute()))
    if value and not value.startswith("@") and place.parent == home:
      tree[section] = tree[section] | {name: f"@{place.name}"}
  return tree


_held: dict[Path, TextIO] = {}


def hold(workdir: Path) -> None:
  """Locks the folder for as long as this process lives.

  Raises:
    UserError: another process holds it.
  """
  place = workdir.resolve()
  if place in _held:
    return
  lock = (place / ".lock").open("w")
  try:
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError as error:
    lock.close()
    raise UserError(
      f"another process is training in {workdir}; wait for it, or give another"
      " --workdir."
    ) from error
  except OSError:  # a file system without locks
    lock.close()
    return
  _held[place] = lock


def release(workdir: Path) -> None:
  """Lets go of a folder that this process holds; does nothing to another."""
  if lock := _held.pop(workdir.resolve(), None):
    lock.close()


def completed(old: Mapping[str, Any], new: Iterable[str]) -> dict[str, Any]:
  """Fields by their whole names; of those of `new`, what ADDED says is added.

  A whole name may begin with what the config is a part of, such as 'members.edm.'.
  """
  before = {}
  for key in new:
    field = ".".join(key.split(".")[-2:])
    if field in ADDED:
      before[key] = ADDED[field]
  return before | dict(old)


def check_same(
  old: dict[str, Any],
  new: dict[str, Any],
  workdir: Path,
  free: tuple[str, ...] = FREE,
) -> None:
  """Raises UserError naming fields that would change the model or the data.

  Fields whose names begin with one of `free` do not; what an older config lacks of
  ADDED is as it was before.
  """
  if "stages" in old and "stages" not in new:
    raise UserError(
      f"{workdir} holds a system of several stages; give its config, or another"
      " --workdir."
    )
  old, new = (dict(flat(named(tree, workdir))) for tree in (old, new))
  old = completed(old, new)
  for tree in (old, new):
    if tree.get("data.path"):
      tree["data.path"] = os.path.normpath(tree["data.path"])
    if tree.get("text.encoder") != "frozen":  # then they say nothing
      for key in [key for key in tree if key.startswith("text.frozen")]:
        del tree[key]
  # These learning rates depend on where the run ends.
  decays = new.get("optim.schedule") in ("cosine", "linear")
  bound = ("train.steps",) if decays else ()
  changed = [
    f"{key}: {old.get(key, 'absent')!r} there, {new.get(key, 'absent')!r} given"
    for key in sorted(old.keys() | new.keys(), key=lambda key: (key not in bound, key))
    if old.get(key) != new.get(key) and (key in bound or not key.startswith(free))
  ]
  if changed:
    ends = any(field.startswith("train.steps:") for field in changed)
    why = " (its learning rate falls to 0 where it was to end)" if ends else ""
    more = [f"{len(changed) - NAMED} more"] if len(changed) > NAMED else []
    raise UserError(
      f"{workdir} holds a run of another config"
      f" ({'; '.join([*changed[:NAMED], *more])}); give that config{why}, or another"
      " --workdir."
    )


def read_json(file: Path) -> dict[str, Any]:
  """The object in a JSON file.

  Raises:
    UserError: the file is damaged.
  """
  try:
    found = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(found, dict):
      raise ValueError("it holds no object")
    return found
  except ValueError as error:
    # Without its config a run with checkpoints is nobody's.
    kept = (file.parent / "checkpoints").exists()
    other = ", put back a copy of it, or give another --workdir"
    do = f"mend it{other if kept else ' or delete it'}"
    raise UserError(f"{file} is damaged ({error}); {do}.") from error


def write_atomic(file: Path, text: str) -> None:
  """Writes a text file so that a kill leaves the old one or the new one.

  A link is followed; what is no ordinary file, such as a terminal, is written to.

  Raises:
    UserError: it can't be written.
  """
  file = file.resolve()
  if file.exists() and not file.is_file():
    with explained(file):
      file.write_text(text, encoding="utf-8")
    return
  with written(file) as partial:
    partial.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def written(file: Path) -> Iterator[Path]:
  """A name to write to; it becomes `file` when all went well, else it is removed.

  Raises:
    UserError: `file` can't be written.
  """
  with explained(file):
    file.parent.mkdir(parents=True, exist_ok=True)
    # Several hosts may write at once, with the same process numbers.
    partial = file.with_name(f".{uuid.uuid4().hex}_{file.name}")
    try:
      yield partial
      os.replace(partial, file)
    finally:
      partial.unlink(missing_ok=True)


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
  """Turns an operating-system error into a sentence about `path`."""
  try:
    yield
  except OSError as error:
    raise UserError(
      f"cannot write to {path} ({error.strerror}); make room or give another place."
    ) from error


def flat(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
  """Of nested dicts, the dotted name and value of each leaf."""
  if isinstance(tree, dict):
    for key, value in tree.items():
      yield from flat(value, f"{prefix}{key}.")
  else:
    yield prefix[:-1], tree
