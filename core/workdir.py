"""The folder of a run: opened once, and refused when it belongs to another run."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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
  "optim.microbatches",
)


def open_workdir(path: str, config: ConfigDict) -> Path:
  """Creates the folder and its `config.json`, or checks the one that is there.

  Raises:
    UserError: the folder can't be written, or its run has another config.
  """
  workdir = Path(path)
  if jax.process_index() == 0:
    with explained(workdir):
      workdir.mkdir(parents=True, exist_ok=True)
      probe = workdir / ".writable"
      probe.touch()
      probe.unlink()
  new = json.loads(config.to_json_best_effort())
  file = workdir / "config.json"
  if file.exists():
    check_same(read_json(file), new, workdir)
  if jax.process_index() == 0:
    with explained(workdir):
      write_atomic(file, json.dumps(new, indent=2, ensure_ascii=False) + "\n")
  return workdir


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
  check_same(read_json(file), json.loads(config.to_json_best_effort()), workdir)
  return workdir


def check_same(old: dict[str, Any], new: dict[str, Any], workdir: Path) -> None:
  """Raises UserError naming each field that would change the model or the data."""
  old, new = dict(_flat(old)), dict(_flat(new))
  # These learning rates depend on where the run ends.
  decays = new.get("optim.schedule") in ("cosine", "linear")
  bound = ("train.steps",) if decays else ()
  changed = [
    f"{key}: {old.get(key, 'absent')!r} there, {new.get(key, 'absent')!r} given"
    for key in sorted(old.keys() | new.keys())
    if old.get(key) != new.get(key) and (key in bound or not key.startswith(FREE))
  ]
  if changed:
    raise UserError(
      f"{workdir} holds a run of another config ({'; '.join(changed)}); give that"
      " config, or another --workdir."
    )


def read_json(file: Path) -> dict[str, Any]:
  """The object in a JSON file.

  Raises:
    UserError: the file is damaged.
  """
  try:
    return json.loads(file.read_text(encoding="utf-8"))
  except ValueError as error:
    raise UserError(f"{file} is damaged ({error}); mend it or delete it.") from error


def write_atomic(file: Path, text: str) -> None:
  """Writes a file so that a kill at any moment leaves the old one or the new one.

  A link is followed; what is no ordinary file, such as a terminal, is written to.
  """
  file = file.resolve()
  if file.exists() and not file.is_file():
    file.write_text(text, encoding="utf-8")
    return
  partial = file.with_name(f".{file.name}.partial")
  try:
    partial.write_text(text, encoding="utf-8")
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


def _flat(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
  if isinstance(tree, dict):
    for key, value in tree.items():
      yield from _flat(value, f"{prefix}{key}.")
  else:
    yield prefix[:-1], tree
