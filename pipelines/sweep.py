"""Rows: runs that differ from one base config in a few fields, trained and scored.

Either the rows of a paper's table (`configs/ablations/`) or a study of one's own, from
flags (`pipelines/study.py`). WORKDIR/ROW-SEED is a row's run, WORKDIR/NAME one that
rows need, such as a codec. A row that differs from an earlier one in how it draws and
is scored alone has that one's weights. The table is made of the folder alone
(`eval/report/table.py`), anew whenever a row is done.
"""

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from core.errors import UserError, unknown
from core.workdir import (
  check_workdir,
  completed,
  explained,
  flat,
  open_workdir,
  read_json,
  resolved,
  write_atomic,
)
from pipelines import members, mend, stages, study, training
from pipelines.compare import tell
from pipelines.members import Member
from pipelines.study import Study

# Fields that play no part in training: rows that differ in these alone share a run.
DRAWING = ("sample.", "eval.", "vae.iwae_samples", "flow.draws")
# What a run that draws with another's weights reads of its folder.
WEIGHTS = ("checkpoints", "ema", "codec.json", "text.json")


def check_mode(config: ConfigDict, mode: str, stage: str, sweep: Sequence[str]) -> None:
  """Raises UserError if a sweep is asked for of what has no rows, or the reverse."""
  table = "rows" in config
  if table and mode != "sweep":
    raise UserError(
      "a file of configs/ablations/ is for --mode=sweep; its rows' runs are in"
      " WORKDIR/ROW-SEED, for any mode with their own config."
    )
  if sweep and mode != "sweep":
    raise UserError("--sweep is for --mode=sweep.")
  if mode != "sweep":
    return
  if stage or "stages" in config or "members" in config:
    raise UserError(
      "--mode=sweep is for the config of one run, or a file of configs/ablations/, and"
      " has no stages."
    )
  if table and sweep:
    raise UserError("a file of configs/ablations/ has rows of its own: no --sweep.")
  if not table and not sweep:
    raise UserError(
      "--mode=sweep needs a file of configs/ablations/, or rows, such as"
      ' --sweep="optim.learning_rate=1e-3,3e-4".'
    )


def run(
  config: ConfigDict, workdir: str, command: Mapping[str, Any], sweep: Sequence[str]
) -> dict[str, str]:
  """Trains and scores what is not done yet; returns the rows that failed, and why.

  Args:
    config: a table's, or that of one run.
    workdir: the folder of all rows.
    command: config, the file and variant, and overrides, by field.
    sweep: the rows of a study of one's own, as flags.

  Raises:
    UserError: a row does not fit the base, the folder holds another sweep, it can't be
      written, or another process has changed a row since.
  """
  from eval import report  # here, since all other modes need not wait for matplotlib

  if jax.process_count() > 1:
    raise UserError(
      "--mode=sweep runs in one process a machine: start it on each without"
      " TAOLU_DISTRIBUTED and the like; they share the work by the files in --workdir."
    )
  asked = study.of_flags(config, sweep) if sweep else study.of_table(config)
  study.configs(asked)  # refuses before anything is written
  path = Path(workdir)
  told = {**command, "sweep": list(sweep)}
  asked = record(asked, path, told)
  listed = members_of(asked, path, asked.order)

  def work(member: Member) -> bool:
    if told_anew(asked, path):
      return False
    finished = do(asked, member)
    report.write(path)
    return finished

  failed = members.run(listed, work, functools.partial(done, asked), trained)
  if changed := told_anew(asked, path):
    raise UserError(
      f"{', '.join(changed)} in {path} changed since this process began; give its"
      " command again."
    )
  return failed


def record(asked: Study, workdir: Path, command: Mapping[str, Any]) -> Study:
  """Writes config.json, or adds rows to the one that is there; about.json once.

  Rows without a result may have changed, and are then begun anew. Returns what the
  folder holds now, earlier rows first.

  Raises:
    UserError: the folder holds rows of another base, or others of these names that have
      a result, or another process is at work on rows while one changes.
  """
  with members.locked(workdir, wait=True), explained(workdir):
    file, new = workdir / "config.json", study.told(asked)
    if file.exists():
      old = read_json(file)
      members.check_holds(old, "rows", workdir)
      new["rows"] = old["rows"] | new["rows"]
      new["seeds"] = sorted({*old["seeds"], *new["seeds"]})
      names = {part: old[part] for part in ("rows", "shared")}
      changed = changes(old, new)
      refuse(mend.restart(workdir, changed, command, names, DRAWING), workdir)
    write_atomic(file, json.dumps(new, indent=2, ensure_ascii=False) + "\n")
    tell(workdir, command)
  return asked._replace(rows=study.tuples(new["rows"]))


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, str]:
  """What differs of the base, of runs that rows need, and of rows that are there.

  Field -> its change, in words. What a row does not name is as in the base.
  """
  parts = [{part: tree[part] for part in ("base", "shared")} for tree in (old, new)]
  there, given = (dict(flat(part)) for part in parts)
  there = completed(there, given)
  pairs = {name: (own, new["rows"][name]) for name, own in old["rows"].items()}
  for name, rows in pairs.items():
    for field in {**rows[0], **rows[1]}:
      for fields, row in zip((there, given), rows, strict=True):
        whole = fields.get(f"base.{field}", "absent")
        fields[f"rows.{name}.{field}"] = row.get(field, whole)
  found = mend.differences(there, given)
  return {key: told for key, told in found.items() if ".parallel." not in key}


def told_anew(asked: Study, workdir: Path) -> list[str]:
  """The rows that another process has changed since this one began."""
  with members.locked(workdir, wait=True):  # until who changes them is done
    now = study.tuples(read_json(workdir / "config.json")["rows"])
  return [name for name, fields in asked.rows.items() if now.get(name) != fields]


def refuse(changed: Sequence[str], workdir: Path) -> None:
  """Raises UserError if anything has changed."""
  if changed and all(told.startswith("rows.") for told in changed):
    raise UserError(
      f"{workdir} has results of rows that change ({'; '.join(changed[:3])}); give them"
      " other names, or another --workdir."
    )
  if changed:
    raise UserError(
      f"{workdir} holds another sweep ({'; '.join(changed[:3])}); give that config, or"
      " another --workdir."
    )


def members_of(asked: Study, workdir: Path, order: Sequence[str]) -> list[Member]:
  """The runs that rows need, then every row with the first seed, and so on.

  Rows in `order`, and those whose weights they have.
  """
  rows = study.configs(asked)
  first = owners(rows)
  chosen = [name for name in rows if name in order or name in map(first.get, order)]
  found = []
  for seed in asked.seeds:
    for name in chosen:
      own = rows[name].copy_and_resolve_references()
      own.seed = seed
      after = "" if first[name] == name else f"{first[name]}-{seed}"
      found.append(Member(f"{name}-{seed}", own, workdir / f"{name}-{seed}", after))
  return [*shared_by(asked, workdir, found), *found]


def shared_by(asked: Study, workdir: Path, rows: Sequence[Member]) -> list[Member]:
  """The runs that rows name as '@NAME', and those that these name, before them."""
  found: dict[str, Member] = {}
  left = list(rows)
  while left:
    member = left.pop()
    for name in members.needs(member):
      if name == member.after or name in found:
        continue
      if name not in asked.shared:
        raise unknown(f"run that {member.name} needs", f"@{name}", asked.shared)
      own = asked.shared[name].copy_and_resolve_references()
      own.seed = asked.seeds[0]
      found[name] = Member(name, own, workdir / name)
      left.append(found[name])
  return list(found.values())


def owners(rows: Mapping[str, ConfigDict]) -> dict[str, str]:
  """Row -> the first one that is trained in the same way, itself if there is none."""
  first: dict[str, str] = {}
  found = {}
  for name, config in rows.items():
    fields = flat(json.loads(config.to_json_best_effort()))
    key = json.dumps([(k, v) for k, v in fields if not k.startswith(DRAWING)])
    found[name] = first.setdefault(key, name)
  return found


def done(asked: Study, member: Member) -> bool:
  """Whether a row is trained to its end and scored, what rows need trained."""
  if member.name in asked.shared:
    return trained(member)
  scored, steps = member.workdir / "eval.json", member.config.train.steps
  if not scored.exists() or read_json(scored)["step"] != steps:
    return False
  try:
    check_workdir(str(member.workdir), member.config)
  except UserError:
    return False  # it is of another row, which its run then tells
  return True


def trained(member: Member) -> bool:
  """Whether a run has made all its steps."""
  return stages.trained_steps(member.workdir) >= member.config.train.steps


def do(asked: Study, member: Member) -> bool:
  """Trains and scores a row; False if it was asked to stop.

  Raises:
    UserError: its own run refuses.
  """
  own, path = resolved(member.config, member.workdir), str(member.workdir)
  if member.after:
    borrow(member, own)
  elif not trained(member):
    if own.text.encoder == "frozen":
      training.prepare(own)
    ready = None if member.name in asked.shared else own.copy_and_resolve_references()
    training.train(own, path, ready)
    if not trained(member):
      return False
  if member.name not in asked.shared:
    training.score(own, path, show=False)
  return True


def borrow(member: Member, own: ConfigDict) -> None:
  """Makes a folder that draws with the weights of the one beside it.

  Weights of its own, of before it was a row that trains as another, are put aside.
  """
  mine = member.workdir / "checkpoints"
  if mine.exists() and not mine.is_symlink():
    mend.put_aside(member.workdir)
  open_workdir(str(member.workdir), own)
  with explained(member.workdir):
    for name in WEIGHTS:
      link, there = member.workdir / name, member.workdir.parent / member.after / name
      if there.exists() and not link.exists():
        link.symlink_to(Path("..") / member.after / name)
