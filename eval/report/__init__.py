"""The report of a comparison, made of its folder alone."""

import json
from pathlib import Path

from core.workdir import write_atomic
from eval.report import page, rows


def write(workdir: Path) -> list[Path]:
  """Writes leaderboard.json, leaderboard.md and report.html; the same bytes each time.

  Raises:
    UserError: the folder holds no comparison, a file is damaged or can't be written.
  """
  found = rows.read(workdir)
  files = {
    "leaderboard.json": json.dumps(found, indent=2, ensure_ascii=False) + "\n",
    "leaderboard.md": page.markdown(found),
    "report.html": page.html(found, workdir),
  }
  for name, text in files.items():
    write_atomic(workdir / name, text)
  return [workdir / name for name in files]
