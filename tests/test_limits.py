"""Numbers that no run can start with are refused by one sentence."""

import math
import re

import pytest

from configs import base
from configs.diffusion import ddpm
from core import limits
from core.errors import UserError
from tests.runs import CONFIGS, load_config, variants


@pytest.mark.parametrize("file", CONFIGS)
def test_every_variant_is_within_its_limits(file: str) -> None:
  for variant in variants(file):
    limits.check(load_config(file, variant))


@pytest.mark.parametrize("field", limits.RANGES)
def test_numbers_out_of_range(field: str) -> None:
  allowed = limits.RANGES[field]
  bad = [allowed.low - 1, math.nan, math.inf]
  if allowed.high < math.inf:
    bad.append(allowed.high + 1)
  if allowed.open_low:
    bad.append(allowed.low)
  if allowed.open_high:
    bad.append(allowed.high)
  config = ddpm.get_config()
  # So that every field that has a range is there.
  config.vae, config.mixture, config.flow = base.vae(), base.mixture(), base.flow()
  config.gan, config.distil = base.gan(), base.distil()
  config.autoregressive, config.clip = base.autoregressive(), base.clip()
  config.pca = base.pca()
  for number in bad:
    with config.unlocked(), config.ignore_type():
      config.update_from_flattened_dict({field: number})
    with pytest.raises(UserError, match=re.escape(f"{field} must be {allowed}")):
      limits.check(config)


def test_a_range_reads_as_it_is() -> None:
  assert str(limits.COUNT) == "a whole number, 1 or more"
  assert 1.5 not in limits.COUNT
  assert str(limits.POSITIVE) == "above 0"
  assert str(limits.DECAY) == "in [0, 1)"
  assert 0 in limits.DECAY
  assert 1 not in limits.DECAY
  assert 1 in limits.SHARE
  assert 0 not in limits.POSITIVE


@pytest.mark.parametrize(
  ("field", "value", "words"),
  [
    ("data.languages", (), "at least one language"),
    ("model.dim", 30, r"model\.dim=30 must be a multiple of model\.heads=4"),
    ("model.widths", (), r"model\.widths must be numbers of channels"),
    ("gan.widths", (), r"gan\.widths must be numbers of channels"),
    ("text.heads", 3, r"text\.dim=128 must be a multiple of text\.heads=3"),
    ("optim.ema_std", (0.05,), "two or more different lengths"),
    ("optim.ema_std", (0.1, 0.1), "two or more different lengths"),
    (
      "optim.ema_std",
      (0.1, 0.3),
      r"must be lengths in \(0, 0\.289\), not \(0\.1, 0\.3",
    ),
    ("model.widths", (8, 16.5), r"model\.widths must be a whole number, 1 or more"),
    ("gan.r1", math.inf, r"gan\.r1 must be 0 or more and finite"),
    ("model.fourier", ("seven",), "model.fourier must be .*, not 'seven'"),
    ("train.snapshot_every", 5, r"needs optim\.ema='power', not 'constant'"),
  ],
)
def test_what_does_not_fit(field: str, value: object, words: str) -> None:
  config = ddpm.get_config()
  config.gan = base.gan()
  config.update_from_flattened_dict({field: value})
  with pytest.raises(UserError, match=words):
    limits.check(config)
