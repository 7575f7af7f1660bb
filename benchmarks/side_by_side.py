"""Runs side by side: a table of their scores, their reconstructions, their samples.

    python benchmarks/side_by_side.py OUT RUN...

Each RUN is a workdir that `--mode=eval` has scored, all of one data set. Prints a table
of all and makes OUT_samples.png, a row of what each RUN draws itself, and, if any of
them reconstructs, OUT.png, a row of held-out pictures and then a row of what each RUN
makes of them.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from core import arrays
from data import source
from pipelines import pictures

# Heading -> how the metric's name begins in eval.json.
COLUMNS = {
  "rFD": "rFD-",
  "PSNR": "PSNR",
  "SSIM": "SSIM",
  "LPIPS": "LPIPS-",
  "codes used": "codebook-usage",
  "perplexity": "codebook-perplexity",
  "bits/dim": "bpd",
  "FD of samples": "FD-",
  "KD of samples": "KD-",
}
SHOWN = 16  # pictures a row
NONE = "–"  # in the table


def main(out: Path, *runs: Path) -> None:
  """Reads the runs, writes the files."""
  if missing := [str(run) for run in runs if not (run / "eval.json").exists()]:
    sys.exit(f"no eval.json in {', '.join(missing)}: run --mode=eval there first.")
  config = ConfigDict(json.loads((runs[0] / "config.json").read_text()))
  found = [json.loads((run / "eval.json").read_text())["scores"] for run in runs]
  columns = {
    heading: [value(scores, start) for scores in found]
    for heading, start in COLUMNS.items()
  }
  # What nobody was scored by is left out.
  columns = {heading: row for heading, row in columns.items() if set(row) != {NONE}}
  rows, drawn = [], []
  for run in runs:
    for name, shown in (("reconstructed", rows), ("eval", drawn)):
      file = run / "samples" / f"{name}.npz"
      if file.exists():
        shown.append(arrays.read(file, "images")["images"][:SHOWN])
  print(f"| {' | '.join(['run', *columns])} |")
  print("| --- " * (1 + len(columns)) + "|")
  for line in zip([run.name for run in runs], *columns.values(), strict=True):
    print(f"| {' | '.join(line)} |")
  if rows:
    held_out = source.load(config.data, config.data.eval_split)
    rows.insert(0, np.stack([held_out.image(i) for i in range(SHOWN)]))
    sheet(rows).save(out.with_suffix(".png"))
  if drawn:
    sheet(drawn).save(out.with_name(f"{out.name}_samples.png"))


def value(records: list[dict], start: str) -> str:
  """The metric whose name begins so, or a dash."""
  for record in records:
    if record["metric"].startswith(start) and record["metric"] != "bpd_iwae":
      return f"{record['value']:.3g}"
  return NONE


def sheet(rows: list[np.ndarray]) -> Image.Image:
  """One row of pictures each."""
  return pictures.sheet([tile for row in rows for tile in row], SHOWN, side=48)


if __name__ == "__main__":
  if len(sys.argv) < 3:
    sys.exit(__doc__)
  main(*map(Path, sys.argv[1:]))
