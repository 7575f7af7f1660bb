"""Quality against network evaluations, for the samplers of a diffusion or a flow.

    python benchmarks/samplers.py WORKDIR OUT [pictures] [evaluations ...]

WORKDIR is a trained run of classes. Every sampler of `STUDIES` draws the same pictures,
the same noise and classes (each in turn), unguided and not thresholded, for about so
many evaluations of the network a picture (5, 10, 20 and 40 unless told; rk45 has
tolerances instead). They are scored against `data.eval_split`, with a first line for
as many real training pictures; the solvers of the flow also by the root mean square
error, in [-1, 1], of the first batch to the flow solved by rk45 at tolerance `FINE`.

OUT gets results.jsonl, a line a setting as it goes: those already there, for the same
weights and count, are not done again. From all that is there it makes table.md,
samplers.png (the plot) and samples.png (a row a sampler, a column a budget).
"""

import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

try:
  from matplotlib.figure import Figure
except ImportError:
  sys.exit("samplers draws with matplotlib, which is not installed; pip install it.")

import numpy as np
from jaxtyping import Float
from ml_collections import ConfigDict
from PIL import Image

from core import hosts, parallel
from core.workdir import read_config
from data import source
from eval import features, images, scores
from pipelines import build, pictures, sample

Record = dict[str, Any]


class Study(NamedTuple):
  """A sampler: its fields of `config.sample`, and its evaluations a step.

  Attributes:
    fields: but for `steps`, or the tolerance.
    stages: evaluations of every step but the last, which takes one.
    flow: it solves the probability-flow ODE, so there is a true answer.
  """

  fields: Record
  stages: int = 1
  flow: bool = True


# For the grid logsnr; the schedule's own ends would waste steps where nothing happens.
ENDS = {"sigma_min": 0.02, "sigma_max": 80.0}
CHURN = {"churn": 5.0, "churn_min": 0.05, "churn_max": 50.0}
STUDIES = {
  "ddpm, time": Study({"sampler": "ddpm", "grid": "time"}, flow=False),
  "ddim, quadratic": Study({"sampler": "ddim", "grid": "quadratic"}),
  "euler, time": Study({"sampler": "euler", "grid": "time"}),
  "heun, time": Study({"sampler": "heun", "grid": "time"}, 2),
  "heun + churn, time": Study({"sampler": "heun", "grid": "time"} | CHURN, 2, False),
  "rk4, time": Study({"sampler": "rk4", "grid": "time"}, 4),
  "dpmpp_2m, logsnr": Study({"sampler": "dpmpp_2m", "grid": "logsnr"} | ENDS),
  "dpmpp_2m, time": Study({"sampler": "dpmpp_2m", "grid": "time"}),
  "dpmpp_2m_sde, logsnr": Study(
    {"sampler": "dpmpp_2m_sde", "grid": "logsnr"} | ENDS, flow=False
  ),
  "pc, time": Study({"sampler": "pc", "grid": "time"}, 2, False),
  "rk45, logsnr": Study({"sampler": "rk45", "grid": "logsnr"} | ENDS),
}
# Of rk45, for a budget that comes near; it can't do with fewer than 9 evaluations.
TOLERANCES = {10: 1e-1, 20: 1e-2, 40: 1e-3, 80: 1e-4}
FINE = 1e-4  # from sigma / alpha = 20,000 to 0.001
BATCH, SHOWN = 100, (3, 5, 8)  # SHOWN: the pictures of samples.png


def settings(budgets: list[int]) -> Iterator[tuple[str, int, Record]]:
  """(study, budget, fields of `config.sample`), the cheap ones first."""
  for budget in budgets:
    for name, study in STUDIES.items():
      if study.fields["sampler"] != "rk45":
        steps = (budget - 1) // study.stages + 1
        yield name, budget, study.fields | {"steps": steps}
      elif budget in TOLERANCES:
        tolerance = TOLERANCES[budget]
        yield name, budget, study.fields | {"rtol": tolerance, "atol": tolerance}


class Drawer:
  """Pictures of a run by any sampler, always of the same noise and classes."""

  def __init__(self, workdir: Path):
    self.config = read_config(workdir)
    _, self.run, self.state = build.trained(self.config, workdir)

  def __call__(
    self, fields: Record, count: int
  ) -> tuple[Float[np.ndarray, "n h w c"], float]:
    """(pictures, mean evaluations of one)."""
    config = self.config.copy_and_resolve_references()
    plain = {"guidance_scale": 1.0, "threshold": "none", "lens": "own"}
    config.sample.update(plain | fields)
    family, size = build.family(config), min(BATCH, count)
    draw = sample.batch_sampler(config, family, self.run, size, film=False)
    found, nfe = [], []
    for first in range(0, count, size):
      labels = [i % config.text.classes for i in range(first, min(first + size, count))]
      batch = draw(self.state, first, [""] * len(labels), labels)
      found.append(batch.images)
      nfe.append(batch.nfe)
    return np.concatenate(found), float(np.concatenate(nfe).mean())


def scorer(
  config: ConfigDict, run: parallel.Parallel
) -> Callable[[images.ImageSet], list[scores.Score]]:
  """Pictures -> their Fréchet and kernel distance to the test data."""
  net = features.load(config.eval.features, config.eval.resize)
  extract = features.Extractor(net, run, config.eval.resize, BATCH)
  split = config.data.eval_split
  reference = extract.cached(images.of_dataset(source.load(config.data, split), split))

  def score(given: images.ImageSet) -> list[scores.Score]:
    return scores.score(("fd", "kid"), net, extract(given), reference)[0]

  return score


def rmse(a: Float[np.ndarray, "n h w c"], b: Float[np.ndarray, "n h w c"]) -> float:
  """The root mean square difference."""
  return float(np.sqrt(np.mean((a - b) ** 2, dtype=np.float64)))


def fine(draw: Drawer, file: Path) -> Float[np.ndarray, "n h w c"]:
  """The first batch by the flow solved accurately; kept in `file`."""
  if not file.exists():
    fields = {"sampler": "rk45", "grid": "logsnr", "sigma_min": 1e-3, "sigma_max": 2e4}
    found, nfe = draw(fields | {"rtol": FINE, "atol": FINE}, BATCH)
    print(f"fine solution: {nfe:.1f} evaluations", flush=True)
    np.save(file, found)
  return np.load(file)


def measure(workdir: Path, out: Path, count: int, budgets: list[int]) -> list[Record]:
  """All records for these weights and this count, doing those that are missing."""
  draw, file = Drawer(workdir), out / "results.jsonl"
  config, step = draw.config, int(draw.state.step)
  lines = file.read_text().splitlines() if file.exists() else []
  same = {"step": step, "count": count, "seed": config.sample.seed}
  known = [r for r in map(json.loads, lines) if same.items() <= r.items()]
  exact, score = fine(draw, out / f"fine_{step}.npy"), scorer(config, draw.run)

  def add(name: str, budget: int, fields: Record, given: images.ImageSet, **more: Any):  # noqa: ANN202
    record = {"name": name, "budget": budget, "fields": fields, **same, **more}
    for found in score(given):
      record[found.metric] = found.value
      if found.error is not None:
        record[f"{found.metric} error"] = found.error
    known.append(record)
    with file.open("a") as log:
      log.write(f"{json.dumps(record)}\n")

  done = lambda *key: any(key == (r["name"], r["budget"], r["fields"]) for r in known)  # noqa: E731
  if not done("real", 0, {}):
    real = images.of_dataset(source.load(config.data, config.data.train_split), "train")
    add("real", 0, {}, real.first(count))
  for name, budget, fields in settings(budgets):
    if done(name, budget, fields):
      continue
    began = time.perf_counter()
    drawn, nfe = draw(fields, count)
    more = {"nfe": nfe}
    if STUDIES[name].flow:
      more["rmse"] = rmse(drawn[:BATCH], exact[: len(drawn)])
    pixels = pictures.to_uint8(drawn)
    np.save(out / f"{name} {budget} {step}.npy", pixels[list(SHOWN)])
    add(name, budget, fields, images.of_array(name, pixels), **more)
    print(f"{name} {budget}: {time.perf_counter() - began:.0f} s {more}", flush=True)
  return known


def metrics_of(records: list[Record]) -> dict[str, int]:
  """Names of the columns of scores, and the digits after the point."""
  names = [name for name in records[0] if name.startswith(("FD", "FID", "KD", "KID"))]
  digits = {name: 1 if name.startswith("F") else 4 for name in names}
  return {name: n for name, n in digits.items() if not name.endswith("error")}


def write_table(records: list[Record], file: Path) -> None:
  """A row a setting."""
  metrics = metrics_of(records)
  head = ["sampler, grid", "steps or tolerance", "evaluations", *metrics, "RMSE"]
  lines = [head, ["---", *["---:"] * (len(head) - 1)]]
  order = ["real", *STUDIES]
  for r in sorted(records, key=lambda r: (order.index(r["name"]), r["budget"])):
    fields = r["fields"]
    row = [r["name"], f"{fields.get('steps', fields.get('rtol', '')):}"]
    row.append(f"{r['nfe']:.1f}".removesuffix(".0") if "nfe" in r else "")
    for name, digits in metrics.items():
      error = r.get(f"{name} error")
      value = f"{r[name]:.{digits}f}"
      row.append(value if error is None else f"{value} ± {error:.{digits}f}")
    row.append(f"{r['rmse']:.4f}" if "rmse" in r else "")
    lines.append(row)
  file.write_text("".join(f"| {' | '.join(line)} |\n" for line in lines))


def plot(records: list[Record], file: Path) -> None:
  """Every score, and the error, against evaluations; random samplers are dashed."""
  panels = [*metrics_of(records), "rmse"]
  figure = Figure(figsize=(5 * len(panels), 5), layout="constrained")
  real = next(r for r in records if r["name"] == "real")
  for axes, panel in zip(figure.subplots(1, len(panels)), panels, strict=True):
    for i, (name, study) in enumerate(STUDIES.items()):
      own = sorted(
        (r["nfe"], r[panel]) for r in records if r["name"] == name and panel in r
      )
      style = "-" if study.flow else "--"
      if own:
        axes.plot(
          *zip(*own, strict=True),
          style,
          marker="o",
          ms=4,
          label=name,
          c=f"C{i}" if i < 10 else "black",
        )
    if panel in real:
      axes.axhline(real[panel], color="grey", ls=":", label="real training pictures")
    axes.set(xscale="log", yscale="log", xlabel="network evaluations", title=panel)
    axes.grid(which="both", alpha=0.2)
    axes.set_xticks([5, 10, 20, 40], ["5", "10", "20", "40"])
  figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside right")
  figure.savefig(file, dpi=80)


def show(records: list[Record], exact: np.ndarray, out: Path) -> None:
  """The same pictures by every sampler, a column a budget; last the fine solution."""
  budgets = sorted({r["budget"] for r in records if r["budget"]})
  step, blank = records[0]["step"], None
  strip = lambda tiles: np.concatenate(list(tiles), axis=1)[..., 0]  # noqa: E731
  truth = strip(pictures.to_uint8(exact[list(SHOWN)]))
  figure = Figure(figsize=(2 + 2.4 * len(budgets), 0.85 * (1 + len(STUDIES))))
  axes = figure.subplots(len(STUDIES) + 1, len(budgets), squeeze=False)
  for row, name in zip(axes, [*STUDIES, "fine solution"], strict=True):
    for place, budget in zip(row, budgets, strict=True):
      place.set(xticks=[], yticks=[], frame_on=False)
      file = out / f"{name} {budget} {step}.npy"
      tiles = strip(np.load(file)) if file.exists() else blank
      if name == "fine solution" and budget == budgets[-1]:
        tiles = truth
      if tiles is not None:
        place.imshow(tiles, cmap="gray", vmin=0, vmax=255)
      if row is axes[0]:
        place.set_title(f"about {budget}")
    row[0].set_ylabel(name, rotation=0, ha="right", va="center")
  figure.tight_layout(pad=0.3)
  figure.savefig(out / "samples.png", dpi=80)
  with Image.open(out / "samples.png") as picture:
    picture.convert("L").save(out / "samples.png", optimize=True)


def main(workdir: str, out: str, count: str = "1000", *budgets: str) -> None:
  """Measures what is missing, then writes table and pictures."""
  hosts.initialize()
  parallel.keep_freed_memory()
  folder = Path(out)
  folder.mkdir(parents=True, exist_ok=True)
  wanted = [int(budget) for budget in budgets] or [5, 10, 20, 40]
  records = measure(Path(workdir), folder, int(count), wanted)
  write_table(records, folder / "table.md")
  plot(records, folder / "samplers.png")
  show(records, np.load(folder / f"fine_{records[0]['step']}.npy"), folder)


if __name__ == "__main__":
  main(*sys.argv[1:])
