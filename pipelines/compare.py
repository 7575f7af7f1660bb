"""All members of a comparison (`base.comparison`), trained and scored under one budget.

WORKDIR/NAME-SEED is a member's run, WORKDIR/CODEC a codec's. WORKDIR/plans/NAME says
what each is to do, before it is begun: the same for all seeds. The report is made of
the folder alone (`eval/report/`).
"""

import datetime
import functools
import json
import os
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from core.errors import UserError, unknown
from core.workdir import (
  completed,
  explained,
  flat,
  read_json,
  resolved,
  write_atomic,
)
from pipelines import budget, build, members, mend, stages, training
from pipelines.budget import Share
from pipelines.members import Member

# Fields of a comparison that may differ when it goes on, as may the devices.
FREE = ("order", "seeds")


def run(config: ConfigDict, workdir: str, command: Mapping[str, Any]) -> dict[str, str]:
  """Trains and scores what is not done yet; returns the members that failed, and why.

  Args:
    config: of the comparison.
    workdir: its folder.
    command: config, the file and variant, and overrides, by field.

  Raises:
    UserError: the config is at fault, the folder holds another comparison, or it can't
      be written.
  """
  check(config)
  path = Path(workdir)
  with explained(path):
    path.mkdir(parents=True, exist_ok=True)
  record(config, path, command)
  listed = members_of(config, path)
  work = functools.partial(do, config, path)
  return members.run(listed, work, functools.partial(done, path))


def check(config: ConfigDict) -> None:
  """Raises UserError for what no member could be compared with."""
  if jax.process_count() > 1:
    raise UserError(
      "--mode=compare runs in one process a machine: start it on each without"
      " TAOLU_DISTRIBUTED and the like; they share the work by the files in --workdir."
    )
  for name in config.order:
    if name not in config.members:
      raise unknown("member in order", name, config.members)
  for field in ("order", "seeds"):
    values = config[field]
    if not values or len(set(values)) < len(values):
      raise UserError(f"{field} must be different values, one at least, not {values}.")
  if not all(isinstance(seed, int) and seed >= 0 for seed in config.seeds):
    raise UserError(f"seeds must be whole numbers from 0, not {config.seeds}.")
  if config.budget.unit not in budget.UNITS:
    raise unknown("budget.unit", config.budget.unit, budget.UNITS)
  if not (config.budget.amount > 0 and 0 < config.budget.codec_share < 1):
    raise UserError("budget.amount must be above 0, and budget.codec_share in (0, 1).")
  if config.curve.points < 1:
    raise UserError(f"curve.points must be 1 or more, not {config.curve.points}.")
  if config.eval.num_images <= config.eval.batch_size:
    raise UserError(
      f"eval.num_images={config.eval.num_images} must be above eval.batch_size="
      f"{config.eval.batch_size}: the first batch, with its compilation, is not timed."
    )


def check_mode(config: ConfigDict, mode: str, stage: str) -> None:
  """Raises UserError if a comparison is asked for of another config, or the reverse."""
  if "members" not in config and mode != "compare":
    return
  if "members" not in config:
    raise UserError("--mode=compare is for a comparison: a file of configs/compare/.")
  if mode != "compare" or stage:
    raise UserError(
      "a comparison has no other mode than --mode=compare, and no stages; its members'"
      " runs are in WORKDIR/NAME-SEED, for any mode with their own config."
    )


def record(config: ConfigDict, workdir: Path, command: Mapping[str, Any]) -> None:
  """Writes config.json, or checks the one that is there; about.json once.

  Members without a result may have changed, and are then begun anew.

  Raises:
    UserError: the folder holds another comparison.
  """
  new = json.loads(config.to_json_best_effort())
  file = workdir / "config.json"
  with members.locked(workdir, wait=True):
    if file.exists():
      stored = read_json(file)
      members.check_holds(stored, "members", workdir)
      given = dict(flat(new))
      old = completed(dict(flat(stored)), given)
      changed = {
        key: told
        for key, told in mend.differences(old, given).items()
        if not (key in FREE or "parallel." in key)
      }
      names = {part: stored.get(part, ()) for part in ("members", "codecs")}
      if refused := mend.restart(workdir, changed, command, names):
        raise UserError(
          f"{workdir} holds another comparison ({'; '.join(refused[:3])}); give that"
          " config, or another --workdir."
        )
    write_atomic(file, json.dumps(new, indent=2) + "\n")
    tell(workdir, command)


def tell(workdir: Path, command: Mapping[str, Any]) -> None:
  """Writes about.json, once."""
  about = workdir / "about.json"
  if not about.exists():
    told = {**command, **surroundings()}
    write_atomic(about, json.dumps(told, indent=2, default=list) + "\n")


def surroundings() -> dict[str, Any]:
  """When, where and with what a comparison was begun."""
  device = jax.devices()[0]
  name = device.device_kind
  if device.platform == "cpu":
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.exists() else []
    named = [line.split(":")[1].strip() for line in lines if "model name" in line]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
    cores = cores or os.cpu_count()
    word = "core" if cores == 1 else "cores"
    name = f"{cores} {word} of {(named or [platform.machine()])[0]}"
  return {
    "date": datetime.date.today().isoformat(),
    "commit": commit(),
    "machine": name,
    "devices": len(jax.devices()),
    "jax": jax.__version__,
  }


def commit() -> str:
  """Of this code, with '-dirty' if it was changed since; 'unknown' without Git."""
  root = Path(__file__).resolve().parents[1]
  git = ["git", "-C", str(root), "describe", "--always", "--dirty", "--exclude=*"]
  try:
    found = subprocess.run(git, capture_output=True, text=True, check=False)
  except OSError:  # it is not installed
    return "unknown"
  return found.stdout.strip() or "unknown"


def members_of(config: ConfigDict, workdir: Path) -> list[Member]:
  """The codecs that are needed, then every member with the first seed, and so on."""
  found = []
  for seed in config.seeds:
    for name in config.order:
      own = config.members[name].copy_and_resolve_references()
      own.seed = seed
      found.append(Member(f"{name}-{seed}", own, workdir / f"{name}-{seed}"))
  needed = {name for member in found for name in members.needs(member)}
  codecs = []
  for name in sorted(needed):
    if name not in config.codecs:
      raise unknown("codec of a member", f"@{name}", config.codecs)
    own = config.codecs[name].copy_and_resolve_references()
    own.seed = config.seeds[0]
    codecs.append(Member(name, own, workdir / name))
  return codecs + found


def kind(member: Member) -> str:
  """The name without the seed: of what is planned once."""
  return member.name.rpartition("-")[0] or member.name


def plan_file(workdir: Path, name: str) -> Path:
  """Where the plan of a member or a codec is kept."""
  return workdir / "plans" / name / "plan.json"


def done(workdir: Path, member: Member) -> bool:
  """Whether a member is trained to its end and scored, a codec trained."""
  file = plan_file(workdir, kind(member))
  if not file.exists():
    return False
  steps = read_json(file)["steps"]
  if kind(member) == member.name:
    return stages.trained_steps(member.workdir) >= steps
  scored = member.workdir / "eval.json"
  return scored.exists() and read_json(scored)["step"] == steps


def do(config: ConfigDict, workdir: Path, member: Member) -> bool:
  """Plans, trains and scores a member; False if it was asked to stop.

  Raises:
    UserError: it does not fit into the comparison, or its own run refuses.
  """
  own = resolved(member.config, member.workdir)
  plan = planned(config, workdir, member, own)
  codec = kind(member) == member.name
  steps, path = plan["steps"], str(member.workdir)
  ready = None if codec else scored(config, own, plan)
  if stages.trained_steps(member.workdir) < steps:
    metrics = () if codec else ("kid",)
    training.train(fitted(config, own, steps, metrics), path, ready)
    if stages.trained_steps(member.workdir) < steps:
      return False
  if ready is not None:
    training.score(ready, path, show=False)
  return True


def scored(config: ConfigDict, own: ConfigDict, plan: Mapping[str, Any]) -> ConfigDict:
  """The config that a trained member is scored with."""
  bits = ("bpd",) if plan["likelihood"] else ()
  judged = ("clip",) if own.eval.clip and own.text.encoder != "none" else ()
  ready = fitted(config, own, plan["steps"], ())
  ready.eval.num_images = config.eval.num_images
  ready.eval.metrics = (*config.eval.metrics, *bits, *judged)
  return ready


def planned(
  config: ConfigDict, workdir: Path, member: Member, own: ConfigDict
) -> dict[str, Any]:
  """The plan of a member, made by whoever comes first.

  Raises:
    UserError: its parameters are out of the band, or its budget can't be kept.
  """
  name = kind(member)
  file = plan_file(workdir, name)
  with members.locked(file.parent, wait=True):
    if file.exists():
      return read_json(file)
    unit, amount = config.budget.unit, config.budget.amount
    share, codec = amount, None
    if name == member.name:
      share = config.budget.codec_share * amount
    for other in members.needs(member):
      codec = read_json(plan_file(workdir, other))
      share = (1 - config.budget.codec_share) * amount
    own = own.copy_and_resolve_references()
    made = budget.plan(own, Share(unit, share), name, codec)
    made["likelihood"] = likelihood(own)
    low, high = config.parameters
    if name != member.name and not low <= made["parameters"] <= high:
      raise UserError(
        f"{name} has {made['parameters']:,} parameters, and all members of this"
        f" comparison {low:,} to {high:,}: change its networks, in"
        f" members.{name}.model, or the band, in parameters."
      )
    write_atomic(file, json.dumps(made, indent=2) + "\n")
    return made


def likelihood(config: ConfigDict) -> str:
  """What a family's `bpd` is: exact, a bound on it, or '' where there is none.

  Only a product of conditionals tells it exactly; the others integrate over noise in
  the grey levels, over latents, noise levels or orders.
  """
  if config.data.codec or "bpd" not in build.family(config).evals:
    return ""
  product = config.family.startswith("autoregressive.")
  return "exact" if product and config.family != "autoregressive.permuted" else "bound"


def fitted(
  config: ConfigDict, own: ConfigDict, steps: int, metrics: tuple[str, ...]
) -> ConfigDict:
  """The config of a member that trains for so many steps, with `metrics` on the way.

  Warm-ups take no more than a tenth of the steps, of beta a third.
  """
  own = own.copy_and_resolve_references()
  own.train.steps = steps
  own.optim.warmup_steps = min(own.optim.warmup_steps, steps // 10)
  if "vae" in own:
    own.vae.warmup_steps = min(own.vae.warmup_steps, steps // 3)
  own.train.log_every = max(1, steps // 50)
  own.train.checkpoint_every = max(1, steps // 4)
  own.train.keep, own.train.sample_every = 1, 0
  own.train.eval_every = -(-steps // config.curve.points)
  own.eval.num_images = config.curve.num_images
  own.eval.train_metrics = metrics
  return own
