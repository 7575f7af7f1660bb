"""The report's plots, as SVG files that are the same bytes each time."""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

Json = dict[str, Any]
INK, FAINT, ACCENT = "#222222", "#c4c4c4", "#b3261e"
STYLE = {
  "svg.hashsalt": "taolu",  # else the ids in a file are random
  "svg.fonttype": "none",
  "font.family": "sans-serif",
  "font.size": 9,
  "axes.spines.top": False,
  "axes.spines.right": False,
}


@contextmanager
def drawing(width: float, height: float) -> Iterator[tuple[Axes, list[str]]]:
  """Axes to draw on, and a list that then holds the SVG."""
  svg: list[str] = []
  with matplotlib.rc_context(STYLE):
    figure = Figure(figsize=(width, height), layout="constrained")
    yield figure.add_subplot(), svg
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    svg.append(out.getvalue())


def quality_against_speed(
  points: Sequence[tuple[int, str, float, float]], best: Sequence[str], quality: str
) -> str:
  """Seconds a picture and Fréchet distance; a line through those that none beats.

  Args:
    points: number in the table, name, seconds, distance.
    best: the names on the line.
    quality: what the distance is called.
  """
  with drawing(5.2, 3.6) as (axes, svg):
    front = sorted((x, y) for _, name, x, y in points if name in best)
    line = {"color": ACCENT, "linewidth": 1, "drawstyle": "steps-post"}
    axes.plot([x for x, _ in front], [y for _, y in front], zorder=1, **line)
    for number, name, x, y in points:
      colour = ACCENT if name in best else INK
      axes.scatter(x, y, s=150, color="white", edgecolors=colour, zorder=2)
      middle = {"ha": "center", "va": "center", "fontsize": 7}
      axes.text(x, y, str(number), color=colour, zorder=3, **middle)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    speeds = [x for *_, x, _ in points]
    few = max(speeds, default=1.0) < 1000 * min(speeds, default=1.0)
    axes.xaxis.set_minor_locator(LogLocator(subs=(2, 5)))
    axes.xaxis.set_minor_formatter("{x:g}" if few else NullFormatter())
    axes.tick_params(which="both", labelsize=7)
    axes.margins(0.1)
    axes.set_xlabel("seconds a picture (less is better)")
    axes.set_ylabel(f"{quality} (less is better)")
  return svg[0]


def learning_curve(name: str, curves: dict[str, Sequence[Json]], quality: str) -> str:
  """One member's curve before those of all others.

  Args:
    name: whose curve it is.
    curves: of all members: share of the budget, mean and std over seeds.
    quality: what is drawn.
  """
  known = [p["mean"] for points in curves.values() for p in points if defined(p)]
  with drawing(2.6, 2.0) as (axes, svg):
    for other, points in curves.items():
      own = [p for p in points if defined(p)]
      x, y = [p["share"] for p in own], [p["mean"] for p in own]
      if other != name:
        axes.plot(x, y, color=FAINT, linewidth=0.7, zorder=1)
        continue
      axes.plot(x, y, color=ACCENT, linewidth=1.8, marker="o", markersize=3, zorder=3)
      spreads = [p["std"] or 0 for p in own]
      axes.errorbar(x, y, yerr=spreads, fmt="none", ecolor=ACCENT, zorder=2)
    axes.set_xlim(0, 1.05)
    axes.set_ylim(min([0, *known]), 1.05 * max(known, default=1))
    axes.set_title(name, fontsize=9, loc="left", color=INK)
    axes.set_xlabel("share of the training", fontsize=7)
    axes.set_ylabel(quality, fontsize=7)
    axes.tick_params(labelsize=7)
  return svg[0]


def defined(point: Json) -> bool:
  """Whether a point of a curve is a number."""
  return point["mean"] is not None
