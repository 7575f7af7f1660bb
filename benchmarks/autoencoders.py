"""Autoencoders and VAEs side by side: a table, their reconstructions, their samples.

    python benchmarks/autoencoders.py OUT RUN...

Each RUN is a workdir that `--mode=eval` has scored, all of one data set. Prints a table
of all and makes OUT.png, a row of held-out pictures and then a row of what each RUN
makes of them, and OUT_samples.png, a row of what each RUN draws itself. A RUN without
reconstructions has no row among them.
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
}
SHOWN = 16  # pictures a row


def main(out: Path, *runs: Path) -> None:
  """Reads the runs, writes the files."""
  config = ConfigDict(json.loads((runs[0] / "config.json").read_text()))
  lines, rows, drawn = [["run", *COLUMNS], ["---"] * (1 + len(COLUMNS))], [], []
  for run in runs:
    found = json.loads((run / "eval.json").read_text())["scores"]
    lines.append([run.name, *(value(found, start) for start in COLUMNS.values())])
    for name, shown in (("reconstructed", rows), ("eval", drawn)):
      file = run / "samples" / f"{name}.npz"
      if file.exists():
        shown.append(arrays.read(file, "images")["images"][:SHOWN])
  for line in lines:
    print(f"| {' | '.join(line)} |")
  held_out = source.load(config.data, config.data.eval_split)
  rows.insert(0, np.stack([held_out.image(i) for i in range(SHOWN)]))
  sheet(rows).save(out.with_suffix(".png"))
  sheet(drawn).save(out.with_name(f"{out.name}_samples.png"))


def value(records: list[dict], start: str) -> str:
  """The metric whose name begins so, or a dash."""
  for record in records:
    if record["metric"].startswith(start) and record["metric"] != "bpd_iwae":
      return f"{record['value']:.3g}"
  return "–"


def sheet(rows: list[np.ndarray]) -> Image.Image:
  """One row of pictures each."""
  return pictures.sheet([tile for row in rows for tile in row], SHOWN, side=48)


if __name__ == "__main__":
  if len(sys.argv) < 3:
    sys.exit(__doc__)
  main(*map(Path, sys.argv[1:]))
