"""The table of a sweep, beside the paper's: of its folder alone, however far it is."""

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.workdir import read_json
from eval.report.page import short
from eval.report.rows import OTHERS, failures, spread, trained_seconds

Json = dict[str, Any]
# A score's short name, where the run's own name begins otherwise.
PREFIXES = {
  "fd": ("FID", "FD-"),
  "kid": ("KID", "KD-"),
  "is": ("IS",),
  "rfd": ("rFID", "rFD-"),
}
LABELS = {"fd": "FID", "kid": "KID", "is": "IS", "rfd": "rFID", "bpd": "bits"}
# Scores of which more is better.
HIGHER = (
  "is",
  "precision",
  "recall",
  "density",
  "coverage",
  "psnr",
  "ssim",
  "recognised",
  "cosine",
)
# What is said of an ordering of the paper's.
YES, NO, NEAR = "reproduced", "the other way", "within the spread"
ONE_YES, ONE_NO = "reproduced by one seed", "the other way by one seed"
OPEN, BAD = "not run yet", "not finite"
VERDICTS = (YES, ONE_YES, NEAR, NO, ONE_NO, BAD, OPEN)


def read(workdir: Path) -> Json:
  """All that the table says.

  Raises:
    UserError: a file is damaged or missing.
  """
  if not (workdir / "about.json").exists():
    raise UserError(
      f"{workdir} has no about.json: give the whole folder of the sweep, or start it"
      " again with --mode=sweep."
    )
  config = read_json(workdir / "config.json")
  rows = [row(workdir, config, name) for name in config["rows"]]
  return {
    "about": read_json(workdir / "about.json"),
    "source": config["source"],
    "paper": config["paper"],
    "rows": rows,
    "orderings": [judged(rows, config["paper"], *own) for own in orderings(config)],
    "failed": failures(workdir),
  }


def row(workdir: Path, config: Json, name: str) -> Json:
  """A row's numbers over the seeds that are scored; without any, no numbers."""
  folders = {seed: workdir / f"{name}-{seed}" for seed in config["seeds"]}
  scored = {s: f for s, f in folders.items() if (f / "eval.json").exists()}
  evals = [read_json(folder / "eval.json") for folder in scored.values()]
  records = [e["scores"] for e in evals]
  scores = {
    s["metric"]: spread([r["value"] for e in records for r in e if same(r, s)])
    for s in (records[0] if records else ())
  }
  logged = [f for f in scored.values() if (f / "metrics.jsonl").exists()]
  return {
    "name": name,
    "fields": config["rows"][name],
    "seeds": list(scored),
    "steps": evals[0]["step"] if evals else None,
    "scores": scores,
    "seconds": spread([trained_seconds(f) for f in logged]) if logged else None,
  }


def same(a: Json, b: Json) -> bool:
  """Whether two records are of one score."""
  return a["metric"] == b["metric"]


def orderings(config: Json) -> list[tuple[str, str, str]]:
  """(score, better row, worse row): of every two of the paper's numbers, and told."""
  found = []
  for score, numbers in config["paper"].items():
    sign = -1 if score in HIGHER else 1
    ranked = sorted(numbers, key=lambda name: sign * numbers[name])
    pairs = itertools.combinations(ranked, 2)
    found += [(score, a, b) for a, b in pairs if numbers[a] != numbers[b]]
  return [*found, *(tuple(own) for own in config["orderings"])]


def judged(
  rows: Sequence[Json],
  paper: Mapping[str, Mapping[str, float]],
  score: str,
  better: str,
  worse: str,
) -> Json:
  """Whether the run has an ordering of the paper's.

  It has if the means differ that way by more than twice the error of their difference,
  sqrt(s_a^2 / n_a + s_b^2 / n_b) with the deviations over n seeds.
  """
  named = {r["name"]: r for r in rows}
  a, b = (found(named[name]["scores"], score) for name in (better, worse))
  told = {
    "score": score,
    "better": better,
    "worse": worse,
    "paper": [paper.get(score, {}).get(name) for name in (better, worse)],
    "difference": None,
    "error": None,
  }
  if a is None or b is None:
    return told | {"verdict": OPEN}
  if a["mean"] is None or b["mean"] is None:
    return told | {"verdict": BAD}
  sign = -1 if score in HIGHER else 1
  told["difference"] = gap = sign * (b["mean"] - a["mean"])
  if a["std"] is None or b["std"] is None:
    return told | {"verdict": ONE_YES if gap > 0 else ONE_NO if gap < 0 else NEAR}
  told["error"] = error = math.sqrt(
    sum(s["std"] ** 2 / len(s["values"]) for s in (a, b))
  )
  if abs(gap) <= 2 * error:
    return told | {"verdict": NEAR}
  return told | {"verdict": YES if gap > 0 else NO}


def found(scores: Mapping[str, Json], score: str) -> Json | None:
  """What a row has of a score, by its short name; None if it has none."""
  for name, own in scores.items():
    if any(other in name for other in OTHERS):
      continue
    if name == score or name.startswith(PREFIXES.get(score, (f"{score}-",))):
      return own
  return None


def markdown(table: Json) -> str:
  """The table as text: rows, orderings, what failed."""
  about, rows, paper = table["about"], table["rows"], table["paper"]
  columns = list(dict.fromkeys(name for r in rows for name in r["scores"]))
  heads = ["row", "fields", "seeds"]
  heads += [f"{LABELS.get(score, score)}, paper" for score in paper]
  lines = [f"# {table['source'] or 'Sweep of ' + about['config']}", ""]
  lines += [
    f"{about['config']}, {about['date']}, commit {about['commit']}, {about['machine']}."
    " Means ± deviations over seeds. Only numbers of one column compare.",
    "",
    *grid(
      [*heads, *columns, "training, s"],
      [
        [r["name"], changed(r["fields"]), str(len(r["seeds"]))]
        + [number(numbers.get(r["name"])) for numbers in paper.values()]
        + [value(r["scores"].get(name)) for name in columns]
        + [value(r["seconds"])]
        for r in rows
      ],
    ),
  ]
  if told := table["orderings"]:
    counts = {v: sum(own["verdict"] == v for own in told) for v in VERDICTS}
    said = ", ".join(f"{n} {v}" for v, n in counts.items() if n)
    heads = ["score", "better", "worse", "paper", "difference", "here"]
    lines += ["", f"Of {len(told)} orderings of the paper's: {said}.", ""]
    lines += grid(heads, [cells(own) for own in told])
  lines += [f"\n{name} failed: {why}" for name, why in table["failed"].items()]
  return "\n".join(lines) + "\n"


def cells(own: Json) -> list[str]:
  """An ordering's line."""
  known = None not in own["paper"]
  numbers = " against ".join(number(n) for n in own["paper"]) if known else "told"
  gap = "" if own["difference"] is None else short(own["difference"])
  gap += "" if own["error"] is None else f" ± {own['error']:.2g}"
  score = LABELS.get(own["score"], own["score"])
  return [score, own["better"], own["worse"], numbers, gap, own["verdict"]]


def grid(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
  """A Markdown table; a bar in a cell is no border."""
  lines = [list(heads), ["---"] * len(heads), *rows]
  return ["| " + " | ".join(c.replace("|", "\\|") for c in r) + " |" for r in lines]


def changed(fields: Json) -> str:
  """What a row says, in one cell."""
  return ", ".join(f"{k}={v}" for k, v in fields.items()) or "as the base"


def number(paper: float | None) -> str:
  """One of the paper's, with its own digits."""
  return "" if paper is None else f"{paper:g}"


def value(own: Json | None) -> str:
  """Mean ± deviation."""
  if own is None:
    return ""
  if own["mean"] is None:
    return "not finite"
  error = "" if own["std"] is None else f" ± {own['std']:.2g}"
  return short(own["mean"]) + error
