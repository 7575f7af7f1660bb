"""Checkpoints: Orbax, asynchronous, atomic, of global arrays."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging
from jaxtyping import PyTree

from core.errors import UserError


class Checkpoints:
  """The checkpoints of one run, newest last.

  A checkpoint is written in the background under a temporary name and renamed
  when complete, so a killed process never leaves a torn one.

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
    try:
      self._manager = ocp.CheckpointManager(self.folder, options=options)
    finally:
      logging.set_verbosity(level)

  def latest(self) -> int | None:
    """The newest complete step, or None."""
    return self._manager.latest_step()

  def save(self, step: int, state: PyTree) -> None:
    """Starts writing; returns as soon as `state` may be changed."""
    if step != self.latest():
      with self._explained():
        self._manager.save(step, args=ocp.args.StandardSave(state))

  def restore(self, abstract: PyTree) -> PyTree:
    """The newest state, in the shapes and on the devices of `abstract`.

    Raises:
      UserError: there is none, or it does not fit.
    """
    step = self.latest()
    if step is None:
      raise UserError(
        f"no checkpoint in {self.folder}; train first: the same command with"
        " --mode=train."
      )
    try:
      return self._manager.restore(step, args=ocp.args.StandardRestore(abstract))
    # Orbax raises whatever a damaged file happens to break, a bare Exception too.
    except Exception as error:
      reason = (str(error).strip() or type(error).__name__).splitlines()[0]
      raise UserError(
        f"checkpoint {self.folder / str(step)} does not fit this config or is damaged"
        f" ({reason}); delete that folder to go back to the one before."
      ) from error

  def wait(self) -> None:
    """Blocks until all writing is done, and raises what went wrong in it."""
    with self._explained():
      self._manager.wait_until_finished()

  @contextlib.contextmanager
  def _explained(self) -> Iterator[None]:
    """A full disk as a sentence, in whichever form Orbax passes it on."""
    try:
      yield
    except Exception as error:
      if os.strerror(errno.ENOSPC).lower() not in str(error).lower():
        raise
      raise UserError(
        f"no space left for checkpoints in {self.folder}; free some and give the same"
        " command again: it goes on from the last complete one."
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
