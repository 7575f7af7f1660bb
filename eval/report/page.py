"""The report as a page for a browser, and as a table in Markdown."""

import base64
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from core import arrays
from eval.report import plots
from eval.report.rows import COLUMNS, value
from pipelines import pictures

Json = dict[str, Any]


def html(found: Json, workdir: Path) -> str:
  """One page that needs nothing else: pictures and plots are in it."""
  folder = Path(__file__).parent
  loader = jinja2.FileSystemLoader(folder)
  env = jinja2.Environment(
    loader=loader,
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
  )
  env.filters |= {"short": short, "spread": spread}
  rows = found["rows"]
  grids = [
    grid(workdir / row["folders"][0] / "samples" / "eval.npz", found["grid"])
    for row in rows
  ]
  return env.get_template("report.html").render(
    found=found,
    head=heads(found),
    table=[cells(row, found) for row in rows],
    captions=grids[0][1] if grids else [],
    grids=[picture for picture, _ in grids],
    speed=embedded(speed(found), "svg+xml") if found["pareto"] else "",
    curves=[embedded(svg, "svg+xml") for svg in curves(found)],
    budget=budget(found),
    over=over(found),
    net=features(found).removeprefix("-"),
    columns={column: names(found, column) for column in COLUMNS},
  )


def markdown(found: Json) -> str:
  """The table alone."""
  head = ["#", *heads(found)]
  lines = [head, ["---", "---", *["---:"] * (len(head) - 2)]]
  for i, row in enumerate(found["rows"], 1):
    lines.append([str(i), *cells(row, found)])
  table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
  failed = "".join(f"\n{k} failed: {v}\n" for k, v in found["failed"].items())
  about = found["about"]
  net = features(found).removeprefix("-")
  told = [
    f"{about['config']}, {about['date']}, {about['machine']},",
    f"commit {about['commit']}.",
    budget(found),
    f"Features of {net}." if net else "",
    over(found),
    "Bits a dimension (bpd) are exact (=) or a bound (≤)." * bool(names(found, "bpd")),
  ]
  return f"{' '.join(filter(None, told))}\n\n{table}\n{failed}"


def budget(found: Json) -> str:
  """What every member had to train with, in a sentence or two."""
  own = found["budget"]
  low, high = (short(n) for n in own["parameters"])
  what = {
    "flops": f"{short(own['amount'])} floating-point operations of training",
    "seconds": f"{short(own['amount'])} seconds of training",
    "steps": "as many steps as its config has",
  }[own["unit"]]
  text = f"Each member was given {what}, and has {low} to {high} parameters."
  share = f"{own['codec_share']:.0%}"
  if found["codecs"] and own["unit"] != "steps":
    text += f" {share} of that is its codec's, where it has one."
  return text


def over(found: Json) -> str:
  """What the table's numbers are of, as to seeds."""
  counts = sorted({len(row["seeds"]) for row in found["rows"]})
  if not counts:
    return ""
  if counts == [1]:
    return "One seed."
  few = "" if len(counts) == 1 else ", in some rows fewer"
  return f"Mean ± standard deviation over {counts[-1]} seeds{few}."


def heads(found: Json) -> list[str]:
  """The names of the table's columns."""
  named = [names(found, column).removesuffix(features(found)) for column in COLUMNS]
  own = ["parameters", "FLOPs", "training, s", "sampling, s a picture", "evaluations"]
  return ["member", *(name for name in named if name), *own, *languages(found)]


def names(found: Json, column: str) -> str:
  """What a column's score is called, or '' if no row has it."""
  named = (r["columns"].get(column) for r in found["rows"])
  return next((name for name in named if name), "")


def features(found: Json) -> str:
  """What all scores by a net's features end in: '-EfficientNetLite0', or ''."""
  return names(found, "precision").removeprefix("precision")


def languages(found: Json) -> list[str]:
  """The columns of how well samples fit captions, a language each."""
  first = next((r["alignment"] for r in found["rows"] if r["alignment"]), {})
  return [f"{m}, {code}" for m, own in list(first.items())[:1] for code in own]


def cells(row: Json, found: Json) -> list[str]:
  """A row of the table."""
  line = [row["name"]]
  for column in COLUMNS:
    if not names(found, column):
      continue
    name = row["columns"].get(column)
    cell = spread(row["scores"][name]) if name else "–"
    if column == "bpd" and name:
      cell = f"{'=' if row['likelihood'] == 'exact' else '≤'} {cell}"
    line.append(cell)
  line += [short(row["parameters"]), short(row["flops"]), spread(row["seconds"])]
  line += [short(row["sampling"]), short(row["nfe"])]
  own = list(row["alignment"].values())[:1]
  by = own[0] if own else {}
  codes = [head.rsplit(", ", 1)[1] for head in languages(found)]
  return line + [spread(by[code]) if code in by else "–" for code in codes]


def spread(of: Json) -> str:
  """'12.3 ± 0.4': mean and standard deviation over seeds."""
  if of["mean"] is None:
    return "not finite"
  text = short(of["mean"])
  return text if of["std"] is None else f"{text} ± {of['std']:.2g}"


def short(number: float | int) -> str:
  """Three digits: '0.0123', '12.3', '1,230', '1.23 M', '4.56e+12'."""
  size = abs(number)
  if size >= 1e9:
    return f"{number:.3g}"
  if size >= 1e6:
    return f"{number / 1e6:.3g} M"
  if size >= 1e3:
    return f"{float(f'{number:.3g}'):,.0f}"
  return f"{number:.3g}"


def grid(file: Path, count: int) -> tuple[str, list[str]]:
  """The first pictures of a run as one, and what each was drawn for."""
  kept = arrays.read(file, "images", "captions")
  images, captions = kept["images"][:count], kept["captions"][:count].tolist()
  columns = columns_of(len(images))
  out = io.BytesIO()
  side = images.shape[1]
  sheet = pictures.sheet(list(images), columns, side=side, gap=max(1, side // 16))
  if images.shape[-1] == 1:
    sheet = sheet.convert("L")  # a third of the bytes
  sheet.save(out, format="PNG", optimize=True)
  return embedded(out.getvalue(), "png"), captions


def columns_of(count: int) -> int:
  """Of a grid a little wider than high."""
  return max(1, min(count, math.isqrt(count) + 1))


def embedded(data: bytes | str, kind: str) -> str:
  """A picture as an address that holds it."""
  raw = data.encode() if isinstance(data, str) else data
  return f"data:image/{kind};base64,{base64.b64encode(raw).decode()}"


def speed(found: Json) -> str:
  """The plot of quality against speed."""
  points = [
    (i, row["name"], row["sampling"], value(row, "fd"))
    for i, row in enumerate(found["rows"], 1)
    if np.isfinite(value(row, "fd"))
  ]
  return plots.quality_against_speed(points, found["pareto"], names(found, "fd"))


def curves(found: Json) -> Sequence[str]:
  """The plot of each member's learning curve."""
  known = {row["name"]: row["curve"] for row in found["rows"]}
  quality = names(found, "kid") or "kernel distance"
  return [plots.learning_curve(name, known, quality) for name in known]
