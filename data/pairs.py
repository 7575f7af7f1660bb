"""Choose, clean and store pictures with captions at any scale, for data.name=shards.

    python -m data.pairs --input=SHARDS --output=FOLDER [--size=256] [FILTER ...]
      [--runner=DirectRunner] [OPTION OF BEAM ...]

SHARDS is a folder of tar files as img2dataset writes them, or a pattern such as
'gs://bucket/laion/*.tar' (in quotes). FOLDER gets shards of the samples that pass all
filters, without duplicates, and report.json, which counts what was dropped and why.
Other flags go to Apache Beam, whose runner may be this machine, Dataflow, Flink or
Spark. The output does not depend on the runner, nor on how it cuts the work.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from typing import Any

from core import tool
from core.errors import UserError
from data.selection import Rules


def run(argv: Sequence[str]) -> None:
  """Does what the command line says.

  Raises:
    UserError: a flag is wrong, Beam is missing, there are no shards, the output is in
      use, or nothing is left.
  """
  flags, others = parser().parse_known_args(argv)
  rules = rules_of(flags)
  logging.getLogger().setLevel(logging.ERROR)  # Beam's warnings are not for users
  try:
    from data import preparation
  except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] != "apache_beam":
      raise
    raise UserError(
      "data.pairs needs Apache Beam, in an environment of its own: make "
      ".venv-pairs/installed, then use .venv-pairs/bin/python."
    ) from error
  if unknown := preparation.unknown(others):
    raise UserError(
      f"{unknown[0]} is no flag of data.pairs, Beam or its runners; see python -m "
      "data.pairs --help."
    )
  pattern = flags.input if "*" in flags.input else f"{flags.input.rstrip('/')}/*.tar"
  files = preparation.find(pattern)
  if not files:
    raise UserError(f"No shards match {pattern}: give a folder of .tar files.")
  for kind in ("tar", "array_record"):
    if preparation.find(f"{flags.output.rstrip('/')}/*.{kind}"):
      raise UserError(
        f"{flags.output} holds .{kind} files already: empty it, or give another "
        "--output."
      )
  found = preparation.run(
    files, flags.output, rules, flags.shard_size, flags.format, others
  )
  print(table(found))
  if not found["kept"]:
    raise UserError(
      f"nothing is left of {found['read']:,} samples: loosen the filters above."
    )


def parser() -> argparse.ArgumentParser:
  """The command line."""
  parser = tool.Parser("python -m data.pairs", __doc__)
  add, usual = parser.add_argument, Rules()
  add("--input", required=True, help="a folder of .tar files, or a pattern")
  add("--output", required=True, help="a folder, which must hold no shards yet")
  add("--format", default="tar", choices=("tar", "array_record"), help="of the output")
  add("--shard_size", type=int, default=10_000, help="pictures in a shard, about")
  add("--size", type=int, default=0, help="shorter side stored, at most; 0: as it is")
  add("--min_side", type=int, default=usual.min_side, help="shorter side, in pixels")
  add(
    "--max_aspect", type=float, default=usual.max_aspect, help="longer side by shorter"
  )
  add("--min_caption", type=int, default=usual.min_caption, help="in characters")
  add("--max_caption", type=int, default=usual.max_caption, help="in characters")
  add(
    "--captions",
    default="",
    help="fields of the .json that hold captions, with commas; default: its 'captions',"
    " or the lines of the .txt",
  )
  score = {"action": "append", "default": [], "metavar": "FIELD=NUMBER"}
  add(
    "--at_least", **score, help="of a number in the .json: similarity=0.3; repeatable"
  )
  add("--at_most", **score, help="likewise: punsafe=0.1; repeatable")
  add(
    "--near_bits",
    type=int,
    default=usual.near_bits,
    help="near duplicates differ in so many of the 64 bits of their perceptual hash, "
    "and hardly in colour; -1 keeps them; default %(default)s",
  )
  return parser


def rules_of(flags: argparse.Namespace) -> Rules:
  """What the flags say is kept.

  Raises:
    UserError: a flag is out of its range.
  """
  for name, least, most in (
    ("shard_size", 1, None), ("size", 0, None), ("min_side", 1, None),
    ("max_aspect", 1, None), ("min_caption", 1, None),
    ("max_caption", flags.min_caption, None), ("near_bits", -1, 15),
  ):  # fmt: skip
    value = getattr(flags, name)
    if not value >= least or (most is not None and value > most):
      to = f" to {most}" if most is not None else " or more"
      raise UserError(f"--{name} must be {least}{to}, not {value}.")
  known = {name: getattr(flags, name) for name in Rules._fields if hasattr(flags, name)}
  known["captions"] = tuple(name for name in flags.captions.split(",") if name)
  for name in ("at_least", "at_most"):
    known[name] = tuple(bound(name, text) for text in getattr(flags, name))
  return Rules(**known)


def bound(flag: str, text: str) -> tuple[str, float]:
  """'similarity=0.3' -> its two parts."""
  field, _, number = text.rpartition("=")
  try:
    if not field:
      raise ValueError
    return field, float(number)
  except ValueError:
    raise UserError(
      f"--{flag}={text} must be a field and a number, such as similarity=0.3."
    ) from None


def table(found: dict[str, Any]) -> str:
  """The report as lines."""
  rows = [("read", found["read"])]
  rows += [(f"- {reason}", number) for reason, number in found["dropped"].items()]
  rows += [("kept", found["kept"]), ("shards", found["shards"])]
  width = max(len(name) for name, _ in rows)
  lines = [f"{name:<{width}}  {number:>12,}" for name, number in rows]
  return "\n".join(lines + [f"torn: {name}" for name in found["torn"]])


if __name__ == "__main__":
  sys.exit(tool.status(run, sys.argv[1:]))
