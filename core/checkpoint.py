"""Checkpoints: Orbax, asynchronous, atomic, of global arrays."""

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from jax.experimental import multihost_utils
from jaxtyping import PyTree

from core.errors import UserError
from core.log import say

# What the system says when a folder can't be written.
UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES)


class Checkpoints:
  """The checkpoints of one run, newest last.

  A checkpoint is written in the background under a temporary name and renamed
  when complete, so a killed process never leaves a torn one. Each has a checksum of its
  state, since Orbax reads a changed number as it is.

  Args:
    workdir: the run's folder; checkpoints go to `workdir/checkpoints/STEP`.
    keep: how many of the newest to keep.
    keep_every: steps whose multiples are kept for ever; 0 for none.
    read_only: leave the folder as it is: a training run may be writing in it.
  """

  def __init__(
    self, workdir: Path, keep: int = 2, keep_every: int = 0, read_only: bool = False
  ):
    self.folder = workdir.resolve() / "checkpoints"
    if read_only:
      options = ocp.CheckpointManagerOptions(
        read_only=True, save_interval_steps=0, create=False
      )
    else:
      options = ocp.CheckpointManagerOptions(
        max_to_keep=keep,
        keep_period=keep_every or None,
        cleanup_tmp_directories=True,
      )
    level = logging.get_verbosity()
    if read_only:  # Orbax warns of what was asked for
      logging.set_verbosity(logging.ERROR)
    if self.folder.exists() and not self.folder.is_dir():
      raise UserError(f"{self.folder} is not a folder; move it away.")
    self._read_only = read_only
    try:
      with self._explained():
        self._manager = ocp.CheckpointManager(self.folder, options=options)
    finally:
      logging.set_verbosity(level)

  def latest(self) -> int | None:
    """The newest complete step, or None."""
    return self._manager.latest_step()

  def save(self, step: int, state: PyTree) -> None:
    """Starts writing; returns as soon as `state` may be changed."""
    if step != self.latest():
      total, _ = agreed(checksum(state))
      with self._explained():
        self._manager.save(
          step,
          args=ocp.args.StandardSave(state),
          custom_metadata={"checksum": total},
        )

  def restore(self, abstract: PyTree) -> PyTree:
    """The newest state, in the shapes and on the devices of `abstract`.

    Where the newest is damaged, the one before it: this is said, and the damaged one is
    moved to `workdir/damaged` (not if `read_only`), so that `latest` is what was read.

    Raises:
      UserError: there is none, or none that fits.
    """
    steps = sorted(self._manager.all_steps(), reverse=True)
    if not steps:
      raise UserError(
        f"no checkpoint in {self.folder}; train first: the same command with"
        " --mode=train."
      )
    reasons = {}
    for step in steps:
      state, reason = self._read(step, abstract)
      if state is not None:
        self._set_aside(reasons, step)
        return state
      reasons[step] = reason
    newest = steps[0]
    then = "go back to the one before" if len(steps) > 1 else "start over"
    raise UserError(
      f"checkpoint {self.folder / str(newest)} does not fit this config or is damaged"
      f" ({reasons[newest]}); delete that folder to {then}."
    )

  def _read(self, step: int, abstract: PyTree) -> tuple[PyTree | None, str]:
    """(state, "") or (None, what is wrong), the same for all processes."""
    state, reason = None, "another process could not read it"
    # Without Orbax's barriers: a process that fails would leave the others at one.
    alone = ocp.options.MultiprocessingOptions(
      primary_host=None, active_processes={jax.process_index()}
    )
    try:
      handler = ocp.StandardCheckpointHandler(multiprocessing_options=alone)
      with contextlib.closing(
        ocp.Checkpointer(handler, multiprocessing_options=alone)
      ) as reader:
        place = self.folder / str(step) / "default"
        state = reader.restore(place, args=ocp.args.StandardRestore(abstract))
    # Orbax raises whatever a damaged file happens to break, a bare Exception too.
    except Exception as error:
      reason = (str(error).strip() or type(error).__name__).splitlines()[0][:120]
    total, read = agreed(None if state is None else checksum(state))
    if not read:
      return None, reason
    noted = (self._manager.metadata(step).custom_metadata or {}).get("checksum", total)
    if noted != total:
      return None, "its checksum is another"
    return state, ""

  def _set_aside(self, reasons: dict[int, str], used: int) -> None:
    """Says which checkpoints are damaged, and takes them out of the way."""
    for step, reason in reasons.items():
      place = self.folder / str(step)
      if self._read_only:
        say(f"{place} is damaged ({reason}); that of step {used} is used")
        continue
      aside = self.folder.with_name("damaged") / str(step)
      say(
        f"{place} is damaged ({reason}); it is moved to {aside}, and training goes on"
        f" from step {used}"
      )
      if jax.process_index() == 0:
        with self._explained():
          shutil.rmtree(aside, ignore_errors=True)
          aside.parent.mkdir(exist_ok=True)
          place.rename(aside)
    if reasons and not self._read_only:
      agreed(0)  # the first process is done
      self._manager.reload()

  def wait(self) -> None:
    """Blocks until all writing is done, and raises what went wrong in it."""
    with self._explained():
      self._manager.wait_until_finished()

  @contextlib.contextmanager
  def _explained(self) -> Iterator[None]:
    """A full or read-only disk as a sentence, in whichever form Orbax passes it on."""
    try:
      yield
    except Exception as error:
      said = str(error).lower()
      found = [os.strerror(n) for n in UNWRITABLE if os.strerror(n).lower() in said]
      if not found:
        raise
      raise UserError(
        f"checkpoints can't be written to {self.folder} ({found[0]}); make room, or let"
        " it be written to, and give the same command again: it goes on from the last"
        " complete one."
      ) from error

  def close(self) -> None:
    """Waits, then frees the background threads."""
    with self._explained():
      self._manager.close()


def abstract_like(shapes: PyTree, shardings: PyTree) -> PyTree:
  """What to restore: shapes and dtypes of one tree, on the devices of another."""

  def place(leaf: Any, sharding: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

  return jax.tree.map(place, shapes, shardings)


def checksum(tree: PyTree) -> int:
  """This process's share of a 32-bit sum over the bits of all numbers in a tree.

  The shares add up, modulo 2**32, to the same sum wherever the arrays are.
  """
  total = 0
  for i, leaf in enumerate(jax.tree.leaves(tree)):
    if isinstance(leaf, jax.Array):
      parts = [s.data for s in leaf.addressable_shards if s.replica_id == 0]
    else:
      parts = [leaf] if jax.process_index() == 0 else []
    for part in map(np.asarray, parts):
      bits = np.ascontiguousarray(part).reshape(-1).view(f"u{part.dtype.itemsize}")
      # An odd factor, so that no change is lost and leaves can't change places.
      total += (2 * i + 1) * int(np.sum(bits, dtype=np.uint32))
  return total % 2**32


def agreed(share: int | None) -> tuple[int, bool]:
  """(the sum of all processes' shares modulo 2**32, whether each has one)."""
  mine = np.array([share or 0, share is not None], np.uint32)
  shares = multihost_utils.process_allgather(mine)
  shares = np.asarray(shares).reshape(-1, 2)
  return int(shares[:, 0].sum(dtype=np.uint32)), bool(shares[:, 1].all())
