"""Numbers from features, each under the name it has earned."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from core.errors import UserError, unknown
from eval.features import OFFICIAL, FeatureNet, Features
from eval.metrics import frechet, inception_score, kernel, manifold, memorisation

# What can be asked for, and the least that a plain evaluation gives.
METRICS = ("fd", "fd_infinity", "kid", "is", "prdc", "memorisation")
USUAL = ("fd", "kid", "prdc", "memorisation")


class Score(NamedTuple):
  """One number.

  Attributes:
    metric: its name, 'FID' or 'FD-EfficientNetLite0'.
    value: the number.
    error: its standard error, or None where the metric has none.
    warning: why it may mislead, or ''.
  """

  metric: str
  value: float
  error: float | None = None
  warning: str = ""


def name(metric: str, net: FeatureNet) -> str:
  """What a number may be called: FID, KID and IS need the weights of their papers."""
  own = {"FD": "FID", "FD-infinity": "FID-infinity", "KD": "KID", "IS": "IS"}
  official = net.name == "InceptionV3" and net.sha256.startswith(OFFICIAL)
  return own[metric] if official and metric in own else f"{metric}-{net.name}"


def record(score: Score) -> dict[str, Any]:
  """A score for a JSON file, without what it does not have."""
  return {k: v for k, v in score._asdict().items() if v not in (None, "")}


def table(records: Sequence[Mapping[str, Any]]) -> str:
  """Records as lines to read: name, value, ± its error, what to beware of."""
  width = max((len(r["metric"]) for r in records), default=0)
  lines = []
  for r in records:
    error = f" ± {r['error']:.2g}" if "error" in r else ""
    warning = f"   ({r['warning']})" if "warning" in r else ""
    lines.append(f"{r['metric']:{width}}  {r['value']:.5g}{error}{warning}")
  return "\n".join(lines)


def score(
  metrics: Sequence[str],
  net: FeatureNet,
  generated: Features,
  reference: Features,
  held_out: Features | None = None,
) -> list[Score]:
  """The scores of generated pictures against real ones, from features of `net`.

  fd: the Fréchet distance. fd_infinity: its limit for endlessly many generated
  pictures. kid: the squared kernel distance of whole sets. is: the score of
  Salimans et al. 2016, of the generated alone. prdc: precision, recall, density,
  coverage. memorisation: are they nearer to the reference than real pictures that
  are not in it, `held_out`? The share of them that lie as near as the nearest 5% of
  those, and a z below 0 if all in all they lie nearer.

  Raises:
    UserError: unknown metric, or too few pictures for it.
  """
  for metric in metrics:
    if metric not in METRICS:
      raise unknown("eval.metrics", metric, METRICS)
  return [
    found
    for metric in metrics
    for found in _score(metric, net, generated, reference, held_out)
  ]


def _score(
  metric: str,
  net: FeatureNet,
  generated: Features,
  reference: Features,
  held_out: Features | None,
) -> list[Score]:
  x, y = generated.values, reference.values
  few = ""
  if min(len(x), len(y)) <= x.shape[1]:
    few = (
      f"{min(len(x), len(y))} pictures for {x.shape[1]} dimensions: far too high, and"
      " comparable only at equal counts"
    )
  match metric:
    case "fd":
      value = frechet.frechet_distance(frechet.Moments.of(x), frechet.Moments.of(y))
      return [Score(name("FD", net), value, warning=few)]
    case "fd_infinity":
      smallest = max(2, len(x) // 10)
      fit = frechet.fd_infinity(x, frechet.Moments.of(y), smallest=smallest)
      return [Score(name("FD-infinity", net), fit.value, warning=few)]
    case "kid":
      found = kernel.mmd2(x, y)
      return [Score(name("KD", net), found.value, found.stderr)]
    case "is":
      if generated.logits is None:
        raise UserError(f"{net.name} is no classifier: leave 'is' out of eval.metrics.")
      found = inception_score.inception_score(generated.logits)
      return [Score(name("IS", net), found.value, found.std)]
    case "prdc":
      found = manifold.manifold(x, y)._asdict()
      return [Score(name(key, net), value) for key, value in found.items()]
  if held_out is None:
    raise UserError(
      "memorisation needs real pictures that are not in the reference: give some, or"
      " leave it out."
    )
  found = memorisation.memorisation(x, y, held_out.values)
  near = ""
  if found.z < -3:
    near = "the samples lie nearer to the reference than new real pictures do"
  return [
    # 0.05 of the held-out pictures lie as near.
    Score(name("memorised-share", net), found.share),
    Score(name("memorisation-z", net), found.z, warning=near),
  ]
