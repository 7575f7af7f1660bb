"""The report of a comparison or a sweep, made of its folder alone."""

import json
from pathlib import Path

from core.errors import UserError
from core.workdir import read_json, write_atomic
from eval.report import page, rows, table


def write(workdir: Path) -> list[Path]:
  """Writes leaderboard.json, leaderboard.md and report.html; the same bytes each time.

  Of a sweep table.json and table.md.

  Raises:
    UserError: the folder holds neither, a file is absent, damaged or can't be written.
  """
  file = workdir / "config.json"
  try:
    swept = file.exists() and "rows" in read_json(file)
    files = of_sweep(workdir) if swept else of_comparison(workdir)
  except FileNotFoundError as error:
    raise UserError(
      f"{error.filename} is absent, of which the report is made; put it back, or let"
      " its run be done again in a new --workdir."
    ) from error
  for name, text in files.items():
    write_atomic(workdir / name, text)
  return [workdir / name for name in files]


def of_comparison(workdir: Path) -> dict[str, str]:
  """The files of its report: name -> text."""
  found = rows.read(workdir)
  return {
    "leaderboard.json": as_json(found),
    "leaderboard.md": page.markdown(found),
    "report.html": page.html(found, workdir),
  }


def of_sweep(workdir: Path) -> dict[str, str]:
  """The files of its table: name -> text."""
  found = table.read(workdir)
  return {"table.json": as_json(found), "table.md": table.markdown(found)}


def as_json(found: rows.Json) -> str:
  """Text that people can read too."""
  return json.dumps(found, indent=2, ensure_ascii=False) + "\n"
