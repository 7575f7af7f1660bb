"""What to change so that a training step fits a device, each tried by compiling it."""

from collections.abc import Callable, Iterator
from typing import Any

from ml_collections import ConfigDict

Change = dict[str, Any]  # field of the config -> its new value
Figures = dict[str, Any]


def tried(
  config: ConfigDict,
  devices: int,
  found: Figures,
  attempt: Callable[[ConfigDict], Figures],
) -> list[Figures]:
  """Changes to a config whose step does not fit, and what each came to.

  Each of `model.remat`, `optim.microbatches` and `parallel.fsdp` alone; if none is
  enough, all together, with more and more of the last two.

  Args:
    config: of the step.
    devices: how many there are, those along tensor counted once.
    found: its figures, of which `memory` is read.
    attempt: compiles the step of a config; its figures.

  Returns:
    For each a dict of `change`, `fits`, `peak` and, if it fits, `bound`.
  """
  alone = [
    {} if config.model.remat else {"model.remat": True},
    next(microbatches(config, devices), {}),
    next(shards(config, devices, found["memory"]), {}),
  ]
  results = [outcome(config, change, attempt) for change in alone if change]
  if any(result["fits"] for result in results):
    return results
  more = zip(
    fill(microbatches(config, devices)),
    fill(shards(config, devices, found["memory"])),
    strict=False,
  )
  before = [result["change"] for result in results]
  for parts, cut in more:
    change = alone[0] | parts | cut
    if change in before:
      break  # there is no more
    before.append(change)
    results.append(outcome(config, change, attempt))
    if results[-1]["fits"]:
      break
  return results


def outcome(
  config: ConfigDict, change: Change, attempt: Callable[[ConfigDict], Figures]
) -> Figures:
  """What a change comes to."""
  figures = attempt(changed(config, change))
  result = {
    "change": change,
    "fits": figures["fits"],
    "peak": figures["memory"]["peak"],
  }
  if figures["fits"]:
    result["bound"] = figures["bound"]
  return result


def changed(config: ConfigDict, change: Change) -> ConfigDict:
  """A copy of a config with other values; fsdp takes a mesh."""
  own = ConfigDict(config.to_dict())
  for field, value in change.items():
    section, name = field.split(".")
    own[section][name] = value
  if own.parallel.fsdp > 1:
    own.parallel.backend = "mesh"
  return own


def microbatches(config: ConfigDict, devices: int) -> Iterator[Change]:
  """Two, four, ... times as many, while they divide the batch."""
  parts = 2 * config.optim.microbatches
  while config.data.batch_size % (devices * parts) == 0:
    yield {"optim.microbatches": parts}
    parts *= 2


def shards(config: ConfigDict, devices: int, memory: Figures) -> Iterator[Change]:
  """More and more devices a copy of the state, the first as what is too much says."""
  state = memory["parameters"] + memory["optimizer"] + memory["averages"]
  excess, last = memory["peak"] - memory["limit"], config.parallel.fsdp
  ways = 2 * last
  while ways <= devices:
    spared = state * (1 - last / ways)
    if devices % ways == 0 and (spared > excess or 2 * ways > devices):
      yield {"parallel.fsdp": ways}
      excess = 0.0
    ways *= 2


def fill(changes: Iterator[Change]) -> Iterator[Change]:
  """The changes, and then the last of them for ever."""
  last: Change = {}
  for last in changes:
    yield last
  while True:
    yield last
