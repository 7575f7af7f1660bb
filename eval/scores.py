"""Numbers from features, each under the name it has earned."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from core.errors import UserError, unknown
from eval.features import OFFICIAL, FeatureNet, Features
from eval.images import ImageSet
from eval.metrics import frechet, inception_score, kernel, manifold, memorisation
from eval.metrics.memorisation import Memorisation

# What can be asked for, and what --mode=eval gives unless told.
METRICS = ("fd", "fd_infinity", "kid", "kid_subsets", "is", "prdc", "memorisation")
USUAL = ("fd", "kid", "prdc", "memorisation")
SPLITS = 10  # of the Inception Score
SUBSETS = 1000  # pictures in each subset of KID
# The fewest pictures a metric can be had of.
LEAST = {
  "fd": 2,
  "kid": 3,
  "kid_subsets": SUBSETS,
  "is": SPLITS,
  "prdc": 6,
  "memorisation": 20,
}


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
  own = {
    "FD": "FID",
    "FD-infinity": "FID-infinity",
    "KD": "KID",
    "KD-subsets": "KID-subsets",
    "IS": "IS",
  }
  official = net.name == "InceptionV3" and net.sha256.startswith(OFFICIAL)
  return own[metric] if official and metric in own else f"{metric}-{net.name}"


def record(score: Score) -> dict[str, Any]:
  """A score for a JSON file, without what it does not have."""
  return {k: v for k, v in score._asdict().items() if v not in (None, "", math.inf)}


def table(records: Sequence[Mapping[str, Any]]) -> str:
  """Records as lines to read: name, value, ± its error, what to beware of."""
  width = max((len(r["metric"]) for r in records), default=0)
  lines = []
  for r in records:
    error = f" ± {r['error']:.2g}" if "error" in r else ""
    warning = f"   ({r['warning']})" if "warning" in r else ""
    lines.append(f"{r['metric']:{width}}  {r['value']:.5g}{error}{warning}")
  return "\n".join(lines)


def check(
  metrics: Sequence[str],
  net: FeatureNet,
  generated: int,
  reference: int,
  training: int | None = None,
  held_out: int | None = None,
) -> None:
  """Whether `metrics` can be had of so many pictures; before they are drawn.

  Raises:
    UserError: one is unknown or can't.
  """
  fewest = min(generated, reference)
  least = LEAST | {"fd_infinity": smallest(net.dim) + 1}
  for metric in metrics:
    if metric not in METRICS:
      raise unknown("eval.metrics", metric, METRICS)
    have = generated if metric in ("fd_infinity", "is") else fewest
    if metric == "memorisation":
      have = min(generated, training or 0, held_out or 0)
    if have < least[metric]:
      raise UserError(
        f"{metric} needs {least[metric]} pictures or more, and there are {have}: draw"
        " or give more, or leave it out."
      )
  if "is" in metrics and not net.classifier:
    raise UserError(f"{net.name} is no classifier: leave the metric 'is' out.")


def check_apart(training: ImageSet, held_out: ImageSet) -> None:
  """Raises UserError if one in twenty held-out pictures is a training picture."""
  seen, digests = set(training.digests()), held_out.digests()
  shared = sum(digest in seen for digest in digests)
  if 20 * shared > len(digests):
    raise UserError(
      "memorisation needs held-out pictures that nothing was trained on, but"
      f" {shared} of the {len(digests)} in {held_out.name} are in {training.name}: give"
      " others (data.eval_split or --held_out), or leave the metric out."
    )


def smallest(dim: int) -> int:
  """The least number of pictures from which a Fréchet distance is extrapolated.

  Below a few times the dimension its error does not fall like 1 / n.
  """
  return max(5000, 4 * dim)


def score(
  metrics: Sequence[str],
  net: FeatureNet,
  generated: Features,
  reference: Features,
  training: Features | None = None,
  held_out: Features | None = None,
) -> tuple[list[Score], Memorisation | None]:
  """The scores of generated pictures against real ones, from features of `net`.

  fd: the Fréchet distance. fd_infinity: its limit for endlessly many generated
  pictures. kid: the squared kernel distance of whole sets, with its standard error.
  kid_subsets: its mean over 100 subsets of 1,000, as papers report it. is: the score
  of Salimans et al. 2016, of the generated alone. prdc: precision, recall, density,
  coverage, of equally many of both, since coverage and recall depend on the counts.
  memorisation: are they nearer to `training` than the real pictures `held_out` are?
  The share of them that lie as near as the nearest 5% of those, and a z below 0 if
  all in all they lie nearer. If held-out pictures show other things than the training
  pictures do, they lie further away and the comparison accuses too easily.

  Also returns the memorisation's distances and neighbours, if asked for.

  Raises:
    UserError: as `check`.
  """
  counts = {"reference": len(reference.values)}
  for role, found in (("training", training), ("held_out", held_out)):
    if found is not None:
      counts[role] = len(found.values)
  check(metrics, net, len(generated.values), **counts)
  memorised = None
  if "memorisation" in metrics:
    memorised = memorisation.memorisation(
      generated.values, training.values, held_out.values, k=3
    )
  found = []
  for metric in metrics:
    found += _score(metric, net, generated, reference, memorised)
  return found, memorised


def _score(
  metric: str,
  net: FeatureNet,
  generated: Features,
  reference: Features,
  memorised: Memorisation | None,
) -> list[Score]:
  x, y = generated.values, reference.values
  match metric:
    case "fd":
      value = frechet.frechet_distance(frechet.Moments.of(x), frechet.Moments.of(y))
      return [Score(name("FD", net), value, warning=too_few(x, y))]
    case "fd_infinity":
      fit = frechet.fd_infinity(x, frechet.Moments.of(y), smallest=smallest(net.dim))
      return [Score(name("FD-infinity", net), fit.value)]
    case "kid":
      found = kernel.mmd2(x, y, reference.sums)
      return [Score(name("KD", net), found.value, found.stderr)]
    case "kid_subsets":
      found = kernel.kernel_distance(x, y, subset_size=SUBSETS)
      return [Score(name("KD-subsets", net), found.value, found.std / 10)]
    case "is":
      found = inception_score.inception_score(generated.logits, SPLITS)
      few = "" if len(x) >= 5000 else f"{len(x)} pictures: lower than of 50,000"
      return [Score(name("IS", net), found.value, found.std / SPLITS**0.5, few)]
    case "prdc":
      n = min(len(x), len(y))
      found = manifold.manifold(some(x, n), some(y, n))._asdict()
      return [Score(name(key, net), value) for key, value in found.items()]
  near = ""
  if memorised.z < -3:
    near = "the samples lie nearer to the training pictures than held-out ones do"
  return [
    Score(name("memorised-share", net), memorised.share),
    Score(name("memorisation-z", net), memorised.z, warning=near),
  ]


def too_few(x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "m d"]) -> str:
  """What to beware of in a Fréchet distance of so many pictures."""
  n, dim = min(len(x), len(y)), x.shape[1]
  if n <= dim:
    return f"{n} pictures for {dim} dimensions: far too high; compare at equal counts"
  if n < 10 * dim:
    return f"{n} pictures for {dim} dimensions: too high; compare at equal counts"
  return ""


def some(x: Float[np.ndarray, "n d"], count: int) -> Float[np.ndarray, "{count} d"]:
  """`count` rows, always the same ones."""
  return x[np.random.default_rng(0).permutation(len(x))[:count]]
