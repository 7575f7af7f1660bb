"""Many runs, one after the other: resumable, and shared by any number of processes.

Each is a run of its own in a folder beside the others'. Processes on any machines that
see the folders may work on the same list: a lock file keeps two from the same member,
what one has done the others pass over, and what a process that died had begun goes on
from its last checkpoint in another.
"""

import contextlib
import fcntl
import gc
import json
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from core.errors import UserError
from core.log import say
from core.workdir import RUNS, explained, read_json, release, write_atomic

WAIT = 5.0  # seconds between looks at members that other processes hold
# What a folder's config.json is of, by a part that it alone has.
HOLDS = {
  "members": "a comparison (--mode=compare)",
  "rows": "a sweep (--mode=sweep)",
  "stages": "a system",
}


class Member(NamedTuple):
  """A run among others: its name, its config and its folder, `config.seed` included.

  A field of the config may name another member's folder, as '@FOLDER', and so may
  `after`, without the sign: the member comes after that one.
  """

  name: str
  config: ConfigDict
  workdir: Path
  after: str = ""


def run(
  members: Sequence[Member],
  work: Callable[[Member], bool],
  done: Callable[[Member], bool],
  ready: Callable[[Member], bool] | None = None,
) -> dict[str, str]:
  """Does the work of each member that is not done; returns name -> why it failed.

  A failed member is written down in its folder, said, and passed over; the next call
  tries it again. When all that is left is in other processes' hands, it waits for them,
  and takes over what one that died leaves.

  Args:
    members: in the order in which they are begun.
    work: does all there is to do; False if it was asked to stop, which ends the call.
    done: whether there is nothing to do, from the member's folder alone.
    ready: whether those that come after a member may use it although it failed; `done`
      unless told.

  Raises:
    UserError: the folders can't be written, or cannot be locked.
  """
  before = {m.name: failed_at(m) for m in members}
  failed: dict[str, str] = {}
  ready = ready or done
  left, said = list(members), ""
  while left:
    moved = False
    for member in tuple(left):
      others = [m for m in members if m.workdir.name in needs(member)]
      # Another process may have tried again, with more luck.
      lost = [m.name for m in others if m.name in failed and not ready(m)]
      waiting = {m.name for m in left}.intersection(m.name for m in others)
      if not done(member):
        if waiting and not lost:
          continue
        with locked(member.workdir) as mine:
          if not mine:
            continue
          # Another process may have done it, or failed, since the last look; one that
          # was killed as it tried again has left no word of the failure before.
          fresh = not done(member) and failed_at(member) in (0, before[member.name])
          if fresh and lost:
            note(member, f"it needs {lost[0]}, which failed")
          elif fresh:
            say(f"member {member.name}")
            if not attempt(member, work):
              return failed
      left.remove(member)
      moved = True
      if failed_at(member) not in (0, before[member.name]):
        why = read_json(member.workdir / "failed.json")["error"]
        failed[member.name] = str(why)
    if left and not moved:
      names = ", ".join(m.name for m in left)
      if names != said:
        say(f"waiting for what other processes run: {names}")
      said = names
      time.sleep(WAIT)
  return failed


def check_holds(stored: Mapping[str, Any], part: str, workdir: Path) -> None:
  """Raises UserError unless a folder's config has the part that tells what it is of."""
  if part not in stored:
    found = next((told for own, told in HOLDS.items() if own in stored), "a run")
    raise UserError(
      f"{workdir} holds {found}, not {HOLDS[part]}; give another --workdir."
    )


def needs(member: Member) -> list[str]:
  """The folders of the members that a member comes after."""
  fields = (path.split(".") for path in RUNS)
  values = [member.config.get(part, {}).get(name, "") for part, name in fields]
  named = [value[1:] for value in values if value.startswith("@")]
  return [*named, member.after] if member.after else named


def attempt(member: Member, work: Callable[[Member], bool]) -> bool:
  """Does a member's work; False if it was asked to stop. A failure is written down."""
  (member.workdir / "failed.json").unlink(missing_ok=True)
  try:
    return work(member)
  except UserError as error:
    note(member, str(error))
  except Exception as error:  # one member's fault must not end the others
    note(member, f"{type(error).__name__}: {error}", traceback.format_exc())
  finally:
    release(member.workdir)
    # Each member compiles programs that no other has a use for.
    jax.clear_caches()
    gc.collect()
  return True


def note(member: Member, why: str, trace: str = "") -> None:
  """Writes down and says that a member failed."""
  why = why.strip().split("\n")[0]
  text = json.dumps({"error": why, **({"traceback": trace} if trace else {})}, indent=2)
  write_atomic(member.workdir / "failed.json", text + "\n")
  say(f"member {member.name} failed: {why}")


def failed_at(member: Member) -> int:
  """When a member last failed, by its folder, in nanoseconds; 0 for never."""
  file = member.workdir / "failed.json"
  return file.stat().st_mtime_ns if file.exists() else 0


@contextlib.contextmanager
def locked(folder: Path, wait: bool = False) -> Iterator[bool]:
  """Whether this process has the folder, until the block ends or the process does.

  Args:
    folder: made if it is not there.
    wait: until the other process lets it go, rather than to say no.

  Raises:
    UserError: the folder can't be written, or its file system has no locks.
  """
  with explained(folder):
    folder.mkdir(parents=True, exist_ok=True)
    lock = (folder / ".member").open("w")
  with lock:
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
      yield False
      return
    except OSError as error:
      raise UserError(
        f"the file system of {folder} has no locks ({error.strerror}), so two processes"
        " could do the same work; give a --workdir on another one."
      ) from error
    yield True
