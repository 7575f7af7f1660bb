"""Members of a comparison whose config may still change, for they have no result."""

import itertools
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.log import say
from core.workdir import read_json, write_atomic
from pipelines import members, stages

OWN = re.compile(r"((members|codecs)\.([^.]+)\.).+")  # a field of one member or codec


def restart(
  workdir: Path, changed: Mapping[str, str], command: Mapping[str, Any]
) -> list[str]:
  """Starts those anew whose fields alone have changed; says so in a sentence each.

  Args:
    workdir: of the comparison.
    changed: field of the comparison -> its change, in words.
    command: of this call; its overrides of these members replace those of before.

  Returns:
    The changes that may not be: of other fields, and of what has a result. If there are
    any, nothing is started anew.

  Raises:
    UserError: another process is at work in the folder.
  """
  found = {key: OWN.fullmatch(key) for key in changed}
  bad = [
    changed[key]
    for key, match in found.items()
    if match is None or finished(workdir, match[2], match[3])
  ]
  if bad or not changed:
    return bad
  for lock in workdir.glob("*/.member"):
    with members.locked(lock.parent) as mine:
      if not mine:
        raise UserError(
          f"another process is at work on {lock.parent}: stop it before the config of a"
          " member is changed."
        )
  for part in dict.fromkeys(match[1] for match in found.values()):
    own = [changed[key] for key in changed if key.startswith(part)]
    _, name, _ = part.split(".")
    folders = runs(workdir, *part.split(".")[:2])
    for folder in folders:
      put_aside(folder)
    (workdir / "plans" / name / "plan.json").unlink(missing_ok=True)
    retell(workdir / "about.json", part, command)
    told = ", ".join(f.name for f in folders) or name
    say(
      f"{told}: without a result, begun anew ({'; '.join(own[:3])}); what was there is"
      f" in {workdir / 'replaced'}"
    )
  return []


def runs(workdir: Path, kind: str, name: str) -> list[Path]:
  """The folders of a member's runs, or that of a codec, as far as they are there."""
  shape = re.escape(name) + ("" if kind == "codecs" else r"-\d+")
  return sorted(f for f in workdir.iterdir() if re.fullmatch(shape, f.name))


def finished(workdir: Path, kind: str, name: str) -> bool:
  """Whether a member is scored with any seed, a codec trained."""
  folders = runs(workdir, kind, name)
  if kind == "members":
    return any((folder / "eval.json").exists() for folder in folders)
  plan = workdir / "plans" / name / "plan.json"
  return plan.exists() and any(
    stages.trained_steps(folder) >= read_json(plan)["steps"] for folder in folders
  )


def put_aside(folder: Path) -> None:
  """Moves what a run has left, but for the lock of who holds it, to `replaced`."""
  with members.locked(folder):
    entries = [entry for entry in folder.iterdir() if entry.name != ".member"]
    if not entries:
      return
    old = folder.parent / "replaced"
    names = (old / f"{folder.name}.{n}" for n in itertools.count(1))
    target = next(name for name in names if not name.exists())
    target.mkdir(parents=True)
    for entry in entries:
      entry.rename(target / entry.name)


def retell(about: Path, part: str, command: Mapping[str, Any]) -> None:
  """Writes this call's overrides of a member in the place of earlier ones."""
  if not about.exists():
    return  # this call writes it
  told = read_json(about)
  kept = {k: v for k, v in told["overrides"].items() if not k.startswith(part)}
  new = {k: v for k, v in command["overrides"].items() if k.startswith(part)}
  told["overrides"] = kept | new
  write_atomic(about, json.dumps(told, indent=2, default=list) + "\n")
