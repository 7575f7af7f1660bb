"""The report of a comparison or a sweep, made of its folder alone."""

import json
from pathlib import Path

from core.workdir import read_json, write_atomic
from eval.report import page, rows, table


def write(workdir: Path) -> list[Path]:
  """Writes leaderboard.json, leaderboard.md and report.html; the same bytes each time.

  Of a sweep table.json and table.md.

  Raises:
    UserError: the folder holds neither, a file is damaged or can't be written.
  """
  file = workdir / "config.json"
  if file.exists() and "rows" in read_json(file):
    return of_sweep(workdir)
  found = rows.read(workdir)
  files = {
    "leaderboard.json": json.dumps(found, indent=2, ensure_ascii=False) + "\n",
    "leaderboard.md": page.markdown(found),
    "report.html": page.html(found, workdir),
  }
  for name, text in files.items():
    write_atomic(workdir / name, text)
  return [workdir / name for name in files]


def of_sweep(workdir: Path) -> list[Path]:
  """Writes table.json and table.md."""
  found = table.read(workdir)
  text = json.dumps(found, indent=2, ensure_ascii=False) + "\n"
  write_atomic(workdir / "table.json", text)
  write_atomic(workdir / "table.md", table.markdown(found))
  return [workdir / "table.json", workdir / "table.md"]
