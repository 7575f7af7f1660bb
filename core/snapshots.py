"""Averages of the weights kept while training, and one of any length made of them.

`workdir/ema/STEP.npz` holds in float32 all averages that are tracked: for each leaf of
`State.ema` an array named by its path, `updates` (of the weights, so far) and the
lengths, `stds`. It is written before the checkpoint of its step, if there is one, so
no run that goes on from a checkpoint lacks one.
"""

from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import PyTree
from ml_collections import ConfigDict

from core import arrays, ema
from core.errors import UserError
from core.family import State
from core.log import say
from core.step import updates_done
from core.train import Hook


def hooks(config: ConfigDict, workdir: Path) -> list[Hook]:
  """What writes the snapshots of `train.snapshot_every`; none for 0."""
  if not config.train.snapshot_every:
    return []
  stds = np.array(list(ema.lengths(config.optim).values()))

  def write(state: State) -> dict[str, float]:
    found = {path: fetch(leaf) for path, leaf in leaves(state.ema)}
    if jax.process_index() == 0:
      arrays.write(
        workdir / "ema" / f"{int(state.step)}.npz",
        compress=False,
        updates=np.array(int(updates_done(state))),
        stds=stds,
        **found,
      )
    return {}

  return [Hook(config.train.snapshot_every, write, required=True)]


def reconstruct(config: ConfigDict, workdir: Path, state: State, std: float) -> State:
  """`state` with an average of relative length `std` as the one to draw with.

  It is made of the snapshots up to the state's step and of the state's own averages,
  and `state.extra["ema_std"]` says so. One snapshot is in memory at a time, beside a
  sum in float64.

  Raises:
    UserError: the run tracks no power averages, or kept too few; a snapshot is
      damaged; the network has running means, which are of one length only.
  """
  if config.optim.ema != "power":
    raise UserError(
      f"sample.ema_std={std} needs a run with optim.ema='power', and {workdir} has"
      f" optim.ema={config.optim.ema!r}; leave it out, or train a new one."
    )
  if state.extra.get("tracked", {}).get("batch_stats"):
    raise UserError(
      f"sample.ema_std={std} makes new weights, and the running means of"
      f" {config.family} (of batch norm, or of StyleGAN2's w) belong to those of the"
      " first optim.ema_std; leave it out."
    )
  folder, step, now = workdir / "ema", int(state.step), int(updates_done(state))
  # By the number of updates: between skipped steps the averages are the same.
  files = {
    int(_read(file, "updates")["updates"]): file
    for file in folder.glob("*.npz")
    if file.stem.isdecimal() and int(file.stem) < step
  }
  times = [t for t in sorted(files) if 0 < t < now] + [now]
  if len(times) < 2:
    raise UserError(
      f"sample.ema_std={std} needs snapshots from before step {step}, and {folder} has"
      " none; train a new run with train.snapshot_every, or leave it out."
    )
  tracked = ema.lengths(config.optim)
  gammas = np.array([ema.std_to_gamma(length) for length in tracked.values()])
  weights, off = ema.posthoc_weights(
    np.repeat(np.array(times, np.float64), len(gammas)),
    np.tile(gammas, len(times)),
    now,
    ema.std_to_gamma(std),
  )
  say(f"EMA of length {std:g} from {len(times)} snapshots, its profile {off:.1%} off")
  drawn = {name: tree for name, tree in state.ema.items() if "@" not in name}
  sums = {path: np.zeros(leaf.shape) for path, leaf in leaves(drawn)}
  own = {path: leaf for path, leaf in leaves(state.ema)}
  for t, row in zip(times, weights.reshape(len(times), -1), strict=True):
    found = {p: fetch(own[p]) for p in own} if t == now else _read(files[t], *own)
    for path in sums:
      name, _, rest = path.partition("/")
      for suffix, weight in zip(tracked, row, strict=True):
        sums[path] += weight * found[f"{name}{suffix}/{rest}"]

  def place(path: tuple, leaf: jax.Array) -> jax.Array:
    total = sums[_name(path)].astype(leaf.dtype)
    return jax.make_array_from_callback(leaf.shape, leaf.sharding, total.__getitem__)

  made = jax.tree_util.tree_map_with_path(place, drawn)
  return state.replace(ema=made, extra=state.extra | {"ema_std": np.float32(std)})


def leaves(tree: PyTree) -> Iterator[tuple[str, jax.Array]]:
  """(path, leaf) of a tree: 'generator@0.1/params/Dense_0/kernel'."""
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    yield _name(path), leaf


def fetch(leaf: jax.Array) -> np.ndarray:
  """The whole of an array in float32, wherever its parts are; all processes call it."""
  whole = multihost_utils.process_allgather(leaf, tiled=True)
  return np.asarray(whole, np.float32)


def _name(path: tuple) -> str:
  return jax.tree_util.keystr(path, simple=True, separator="/")


def _read(file: Path, *names: str) -> dict[str, np.ndarray]:
  try:
    return arrays.read(file, *names)
  except (OSError, KeyError, arrays.Damaged) as error:
    raise UserError(
      f"snapshot {file} is damaged ({error}); delete it to do without."
    ) from error
