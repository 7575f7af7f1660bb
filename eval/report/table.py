"""The table of a sweep, beside the paper's: of its folder alone, however far it is."""

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scipy import special

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
ONE_YES = "reproduced by one seed, without a spread"
ONE_NO = "the other way by one seed, without a spread"
ONE_SAME = "equal by one seed, without a spread"
OPEN, BAD = "not run yet", "not finite"
VERDICTS = (YES, ONE_YES, NEAR, ONE_SAME, NO, ONE_NO, BAD, OPEN)
LEVEL = 0.95  # of the interval of a difference that a verdict goes by


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
  records = dict(zip(scored, (e["scores"] for e in evals), strict=True))
  scores = {
    s["metric"]: over(
      {k: r["value"] for k, e in records.items() for r in e if same(r, s)}
    )
    for s in next(iter(records.values()), ())
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


def over(values: Mapping[int, float | None]) -> Json:
  """Mean, deviation and values of a score, and the seeds that these are of."""
  return spread(values.values()) | {"seeds": list(values)}


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

  Rows share their seeds, so what counts is the differences d of the n seeds that both
  have: it is reproduced if mean(d) > t s(d) / sqrt(n), with Student's t of n - 1
  degrees of freedom, two-sided at LEVEL. Of one seed the sign alone is told.
  """
  named = {r["name"]: r for r in rows}
  a, b = (found(named[name]["scores"], score) for name in (better, worse))
  told = {
    "score": score,
    "better": better,
    "worse": worse,
    "paper": [paper.get(score, {}).get(name) for name in (better, worse)],
    "difference": None,
    "margin": None,
  }
  pairs = paired(a, b) if a and b else []
  if not pairs:
    return told | {"verdict": OPEN}
  if any(None in pair for pair in pairs):
    return told | {"verdict": BAD}
  sign = -1 if score in HIGHER else 1
  gaps = spread([sign * (y - x) for x, y in pairs])
  told["difference"] = gap = gaps["mean"]
  if gaps["std"] is None:
    return told | {"verdict": ONE_YES if gap > 0 else ONE_NO if gap < 0 else ONE_SAME}
  n = len(pairs)
  told["margin"] = margin = student(n - 1) * gaps["std"] / math.sqrt(n)
  if abs(gap) <= margin:
    return told | {"verdict": NEAR}
  return told | {"verdict": YES if gap > 0 else NO}


def paired(a: Json, b: Json) -> list[tuple[Any, Any]]:
  """The values of the seeds that both have."""
  one, other = (dict(zip(s["seeds"], s["values"], strict=True)) for s in (a, b))
  return [(value, other[seed]) for seed, value in one.items() if seed in other]


def student(degrees: int) -> float:
  """Where Student's t lies between minus it and it with probability LEVEL."""
  return float(special.stdtrit(degrees, (1 + LEVEL) / 2))


def found(scores: Mapping[str, Json], score: str) -> Json | None:
  """What a row has of a score, by its short name; None if it has none."""
  return next((own for name, own in scores.items() if matches(name, score)), None)


def matches(name: str, score: str) -> bool:
  """Whether a run's own name of a score is that of a short name."""
  if any(other in name for other in OTHERS):
    return False
  return name == score or name.startswith(PREFIXES.get(score, (f"{score}-",)))


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
    count = f"{len(told)} ordering{'s' if len(told) > 1 else ''}"
    lines += ["", f"Of {count} of the paper's: {said}."]
    if any(own["margin"] is not None for own in told):
      lines += [
        "Differences are of rows with one seed, their mean over seeds ± half its"
        f" {LEVEL:.0%} interval by Student's t; above 0 is the paper's way."
      ]
    lines += [""]
    lines += grid(heads, [cells(own, columns) for own in told])
  lines += [f"\n{name} failed: {why}" for name, why in table["failed"].items()]
  return "\n".join(lines) + "\n"


def cells(own: Json, columns: Sequence[str]) -> list[str]:
  """An ordering's line; `columns` are the names of what was measured."""
  known = None not in own["paper"]
  numbers = " against ".join(number(n) for n in own["paper"]) if known else "told"
  gap = "" if own["difference"] is None else short(own["difference"])
  gap += "" if own["margin"] is None else f" ± {own['margin']:.2g}"
  score = LABELS.get(own["score"], own["score"])
  here = [name for name in columns if matches(name, own["score"])]
  if here and here[0] not in (score, own["score"]):
    score += f", here {here[0]}"
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
