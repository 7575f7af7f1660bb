"""Numbers from features, each under the name it has earned."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from core.errors import UserError
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
