"""From the folder of a comparison to the numbers of its report."""

import contextlib
import json
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from core import arrays
from core.errors import UserError
from core.workdir import read_json

Json = dict[str, Any]
# What a metric's name begins with -> its column, in the table's order.
COLUMNS = {
  "fd": ("FID", "FD-"),
  "kid": ("KID", "KD-"),
  "precision": ("precision",),
  "recall": ("recall",),
  "bpd": ("bpd",),
  "memorised": ("memorised-share",),
}
OTHERS = ("-infinity", "-subsets")  # FD-infinity is none of the above


def read(workdir: Path) -> Json:
  """All that the report says; the rows in order of their Fréchet distance.

  Raises:
    UserError: there is no comparison, or a file is damaged.
  """
  for name in ("config.json", "about.json"):
    if not (workdir / name).exists():
      raise UserError(f"no comparison in {workdir}: --mode=compare makes one.")
  config = read_json(workdir / "config.json")
  found = [row(workdir, config, name) for name in config["members"]]
  found = sorted((r for r in found if r), key=lambda r: value(r, "fd"))
  codecs = [codec(workdir, name) for name in config["codecs"]]
  return {
    "about": read_json(workdir / "about.json"),
    "data": config["data"],
    "budget": config["budget"] | {"parameters": config["parameters"]},
    "num_images": config["eval"]["num_images"],
    "curve": config["curve"],
    "grid": config["sample"]["num_images"],
    "rows": found,
    "pareto": pareto([(r["sampling"], value(r, "fd"), r["name"]) for r in found]),
    "codecs": [c for c in codecs if c],
    "failed": failures(workdir),
  }


def row(workdir: Path, config: Json, name: str) -> Json | None:
  """A member's numbers over its seeds; None before one is scored."""
  folders = {int(f.name.rpartition("-")[2]): f for f in seeds_of(workdir, name)}
  scored = {s: f for s, f in sorted(folders.items()) if (f / "eval.json").exists()}
  if not scored:
    return None
  plan = read_json(workdir / "plans" / name / "plan.json")
  evals = [read_json(f / "eval.json")["scores"] for f in scored.values()]
  scores = {
    s["metric"]: spread([r["value"] for e in evals for r in e if same(r, s)])
    for s in evals[0]
  }
  own = config["members"][name]
  timed = [sampling(f, own["eval"]["batch_size"]) for f in scored.values()]
  paid = plan["codec"]["flops"] if "codec" in plan else 0.0
  family = own["family"]
  return {
    "name": name,
    "family": f"{family} {own['gan']['family']}" if "hybrid" in family else family,
    "seeds": list(scored),
    "steps": plan["steps"],
    "batch_size": own["data"]["batch_size"],
    "parameters": plan["parameters"],
    "networks": plan["networks"],
    "flops": plan["flops"] + paid,
    "codec": plan.get("codec"),
    "seconds": spread([trained_seconds(f) for f in scored.values()]),
    "sampling": spread([t[0] for t in timed])["mean"],
    "nfe": spread([t[1] for t in timed])["mean"],
    "sampler": sampler(own),
    "likelihood": plan["likelihood"],
    "scores": scores,
    "columns": {k: m for k in COLUMNS if (m := metric(scores, COLUMNS[k]))},
    "alignment": alignments(evals),
    "warnings": sorted({r["warning"] for e in evals for r in e if "warning" in r}),
    "curve": curve(list(scored.values()), plan["steps"]),
    "command": command(workdir, name, plan, list(scored)),
    "folders": [f.name for f in scored.values()],
  }


def seeds_of(workdir: Path, name: str) -> list[Path]:
  """The folders of a member's runs."""
  return sorted(f for f in workdir.iterdir() if re.fullmatch(rf"{name}-\d+", f.name))


def same(a: Json, b: Json) -> bool:
  """Whether two records are of one score."""
  return a["metric"] == b["metric"]


def spread(values: Iterable[float | None]) -> Json:
  """Mean, standard deviation over seeds (None of one) and the values.

  A value that was not finite is None, and then so is the mean.
  """
  found = list(values)
  if None in found:
    return {"mean": None, "std": None, "values": found}
  std = float(np.std(found, ddof=1)) if len(found) > 1 else None
  return {"mean": float(np.mean(found)), "std": std, "values": found}


def metric(scores: Json, prefixes: Sequence[str]) -> str:
  """The name of the score that a column shows, or ''."""
  for name in scores:
    if name.startswith(tuple(prefixes)) and not any(o in name for o in OTHERS):
      return name
  return ""


def value(row: Json, column: str) -> float:
  """A row's mean in a column; infinity where there is none."""
  name = row["columns"].get(column)
  mean = row["scores"][name]["mean"] if name else None
  return math.inf if mean is None else mean


def alignments(evals: Sequence[Sequence[Json]]) -> dict[str, dict[str, Json]]:
  """How well samples fit their captions: score -> language -> over seeds."""
  found: dict[str, dict[str, list[float]]] = {}
  for record in (r for e in evals for r in e if "by_language" in r):
    own = found.setdefault(record["metric"], {})
    for language, score in record["by_language"].items():
      own.setdefault(language, []).append(score)
  return {m: {k: spread(v) for k, v in own.items()} for m, own in found.items()}


def sampling(folder: Path, size: int) -> tuple[float, float]:
  """Seconds and network evaluations a picture, without the batch that compiles.

  All batches take as long as `size` pictures, for the last one is filled up to that.
  """
  kept = arrays.read(folder / "samples" / "eval.npz", "seconds", "nfe")
  return float(np.median(kept["seconds"][1:])) / size, float(np.mean(kept["nfe"]))


def sampler(own: Json) -> str:
  """How a member draws, where there is a choice."""
  if own["family"] == "diffusion.ddpm":
    return f"{own['sample']['sampler']}, {own['sample']['steps']} steps"
  if own["family"] == "autoregressive.maskgit":
    return f"{own['sample']['steps']} steps"
  if "flow" in own and own["sample"]["temperature"] != 1:
    return f"temperature {own['sample']['temperature']}"
  return ""


def lines(folder: Path) -> list[Json]:
  """Of a run's metrics.jsonl."""
  text = (folder / "metrics.jsonl").read_text(encoding="utf-8")
  return [json.loads(line) for line in text.splitlines()]


def trained_seconds(folder: Path) -> float:
  """Of training alone, by the speed that was logged; without compilation and scores."""
  size = read_json(folder / "config.json")["data"]["batch_size"]
  seconds, before = 0.0, 0
  for line in lines(folder):
    if "images_per_second" in line:
      seconds += (line["step"] - before) * size / line["images_per_second"]
      before = line["step"]
  return seconds


def curve(folders: Sequence[Path], steps: int) -> list[Json]:
  """The kernel distance over the share of the steps, over seeds."""
  found: dict[int, list[float]] = {}
  for folder in folders:
    for line in lines(folder):
      for key in line:
        if key.startswith(("eval/KD-", "eval/KID")):
          found.setdefault(line["step"], []).append(line[key])
  return [{"share": k / steps, **spread(v)} for k, v in sorted(found.items())]


def pareto(points: Sequence[tuple[float, float, str]]) -> list[str]:
  """The names that no other beats in both numbers, of which less is better.

  Nobody knows it of one without a finite number.
  """
  return [
    name
    for x, y, name in sorted(points)
    if math.isfinite(y)
    and not any(a <= x and b <= y and (a, b) != (x, y) for a, b, _ in points)
  ]


def codec(workdir: Path, name: str) -> Json | None:
  """What a codec has cost; None before it is planned."""
  file = workdir / "plans" / name / "plan.json"
  if not file.exists() or not (workdir / name / "metrics.jsonl").exists():
    return None
  plan = read_json(file)
  told = {k: plan[k] for k in ("name", "steps", "parameters", "flops")}
  return told | {"seconds": trained_seconds(workdir / name)}


def failures(workdir: Path) -> dict[str, str]:
  """Name -> why a member's last attempt failed."""
  found = {}
  for file in sorted(workdir.glob("*/failed.json")):
    with contextlib.suppress(FileNotFoundError):  # another process tries it again
      found[file.parent.name] = read_json(file)["error"]
  return found


def command(workdir: Path, name: str, plan: Json, seeds: Sequence[int]) -> str:
  """What trains a row again for as many steps, whatever the speed of the machine."""
  about = read_json(workdir / "about.json")
  fields = {"order": (name,), "seeds": tuple(seeds)}
  fields |= {"budget.unit": "steps", f"members.{name}.train.steps": plan["steps"]}
  if "codec" in plan:
    fields[f"codecs.{plan['codec']['name']}.train.steps"] = plan["codec"]["steps"]
  for key, given in about["overrides"].items():
    if key not in ("order", "seeds") and not key.startswith("budget."):
      fields.setdefault(key, tuple(given) if isinstance(given, list) else given)
  flags = " ".join(f"--config.{k}={quoted(v)}" for k, v in fields.items())
  return (
    f"python main.py --config={about['config']} --workdir=runs/{name}"
    f" --mode=compare {flags}"
  )


def quoted(value: Any) -> str:
  """A value for a shell; a tuple without spaces."""
  text = str(value)
  if isinstance(value, tuple):
    text = text.replace(", ", ",")
  return text if re.fullmatch(r"[\w./@:+-]*", text) else '"' + text + '"'
