"""Members and rows whose config may still change, for they have no result."""

import contextlib
import itertools
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.log import say
from core.workdir import read_json, write_atomic
from pipelines import members, stages

# Parts of a config of many runs -> names of the runs, which may hold dots.
Names = Mapping[str, Iterable[str]]
SCORED = ("members", "rows")  # the others are trained alone


def restart(
  workdir: Path,
  changed: Mapping[str, str],
  command: Mapping[str, Any],
  names: Names,
  drawing: tuple[str, ...] = (),
) -> list[str]:
  """Starts those anew whose fields alone have changed; says so in a sentence each.

  Args:
    workdir: of the comparison or the sweep.
    changed: field of its config -> its change, in words.
    command: of this call; its overrides of these members replace those of before.
    names: what may change.
    drawing: what fields begin with that play no part in training; a run of which these
      alone have changed keeps what it has.

  Returns:
    The changes that may not be: of other fields, and of what has a result. If there are
    any, nothing is started anew.

  Raises:
    UserError: another process is at work in the folder.
  """
  found = {key: owner(key, names) for key in changed}
  bad = [
    changed[key] for key, own in found.items() if own is None or finished(workdir, *own)
  ]
  if bad or not changed:
    return bad
  with contextlib.ExitStack() as held:
    for lock in sorted(workdir.glob("*/.member")):
      if not held.enter_context(members.locked(lock.parent)):
        raise UserError(
          f"another process is at work on {lock.parent}: stop it before the config of a"
          " member is changed."
        )
    for kind, name in dict.fromkeys(found.values()):
      part = f"{kind}.{name}."
      own = [key for key in changed if found[key] == (kind, name)]
      retell(workdir / "about.json", part, command)
      if all(key.removeprefix(part).startswith(drawing) for key in own):
        continue
      (workdir / "plans" / name / "plan.json").unlink(missing_ok=True)
      moved = [f.name for f in runs(workdir, kind, name) if put_aside(f)]
      if moved:
        say(
          f"{', '.join(moved)}: without a result, begun anew"
          f" ({'; '.join(changed[key] for key in own[:3])}); what was there is in"
          f" {workdir / 'replaced'}"
        )
  return []


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, str]:
  """Field -> its change in words, of two configs as fields by their whole names."""
  return {
    key: f"{key}: {there!r} there, {here!r} given"
    for key in sorted(old.keys() | new.keys())
    if (there := old.get(key, "absent")) != (here := new.get(key, "absent"))
  }


def owner(key: str, names: Names) -> tuple[str, str] | None:
  """The part and the name of the run whose field it is; of two that fit, the longer."""
  found = [
    (kind, name)
    for kind, own in names.items()
    for name in own
    if key.startswith(f"{kind}.{name}.")
  ]
  return max(found, key=lambda own: len(own[1]), default=None)


def runs(workdir: Path, kind: str, name: str) -> list[Path]:
  """The folders of a member's runs, or that of a codec, as far as they are there."""
  shape = re.escape(name) + (r"-\d+" if kind in SCORED else "")
  return sorted(f for f in workdir.iterdir() if re.fullmatch(shape, f.name))


def finished(workdir: Path, kind: str, name: str) -> bool:
  """Whether a member or row is scored with any seed, a codec trained."""
  folders = runs(workdir, kind, name)
  if kind in SCORED:
    return any((folder / "eval.json").exists() for folder in folders)
  if kind == "shared":
    configs = [f / "config.json" for f in folders if (f / "config.json").exists()]
    return any(
      stages.trained_steps(file.parent) >= read_json(file)["train"]["steps"]
      for file in configs
    )
  plan = workdir / "plans" / name / "plan.json"
  return plan.exists() and any(
    stages.trained_steps(folder) >= read_json(plan)["steps"] for folder in folders
  )


def put_aside(folder: Path) -> bool:
  """Moves what a run has left to `replaced`; False if there is nothing.

  Its lock stays, and links to another run's weights go.
  """
  entries = [entry for entry in folder.iterdir() if entry.name != ".member"]
  if not entries:
    return False
  old = folder.parent / "replaced"
  names = (old / f"{folder.name}.{n}" for n in itertools.count(1))
  target = next(name for name in names if not name.exists())
  target.mkdir(parents=True)
  for entry in entries:
    if entry.is_symlink():
      entry.unlink()
    else:
      entry.rename(target / entry.name)
  return True


def retell(about: Path, part: str, command: Mapping[str, Any]) -> None:
  """Writes this call's overrides of a member in the place of earlier ones."""
  if not about.exists():
    return  # this call writes it
  told = read_json(about)
  kept = {k: v for k, v in told["overrides"].items() if not k.startswith(part)}
  new = {k: v for k, v in command["overrides"].items() if k.startswith(part)}
  told["overrides"] = kept | new
  write_atomic(about, json.dumps(told, indent=2, default=list) + "\n")
