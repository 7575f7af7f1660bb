"""Bits a dimension, as `--mode=eval` reports them, of data whose bits are known."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from core import levels
from diffusion import evals
from tests.exact import MEANS, SPEC, STD, parts
from text.cond import Cond

N = 256
LABELS = np.arange(N) % 2
MEAN = np.asarray(MEANS)[LABELS][:, None, None, None]


def batch():
  draw = np.random.default_rng(0).normal(0, STD, (N, *SPEC.shape))
  # Pixel values end at -1 and 1, which the normal distribution does not know.
  pixels = np.rint((MEAN + np.clip(draw, -0.5, 0.5) + 1) / levels.BIN)
  return {
    "x": (pixels * levels.BIN - 1).astype(np.float32),
    "cond": Cond(label=jnp.asarray(LABELS)),
    "_id": np.arange(N, dtype=np.uint32),
  }


def exact(x):
  """-log2 of a pixel's density times the width of its bin, the mean of each picture."""
  nats = -stats.norm.logpdf(x, MEAN, STD) - math.log(levels.BIN)
  return nats.mean((1, 2, 3)) / math.log(2)


def bits(monkeypatch, *names, **fields):
  config, model = parts(monkeypatch, **fields)
  found, rows = evals.bounds(config, model), batch()
  fn = jax.jit(lambda *args: {name: found[name]({}, *args) for name in names})
  return rows["x"], jax.device_get(fn(rows, jax.random.key(0)))


@pytest.mark.parametrize("schedule", ["cosine", "rectified_flow"])
def test_the_exact_flow(monkeypatch, schedule):
  fields = {"noise__schedule": schedule, "eval__ode_tolerance": 1e-3}
  x, found = bits(monkeypatch, "bpd_ode", **fields)
  # Within what noise inside a bin moves the density.
  np.testing.assert_allclose(found["bpd_ode"], exact(x), atol=0.03)


@pytest.mark.parametrize("density", ["own", "logit_normal"])
def test_the_continuous_bound_and_its_terms(monkeypatch, density):
  names = ("bpd", "bpd_prior", "bpd_diffusion", "bpd_reconstruction")
  x, found = bits(monkeypatch, *names, eval__bound_times=200, noise__density=density)
  terms = sum(found[name] for name in names[1:])
  np.testing.assert_allclose(found["bpd"], terms, rtol=1e-5)
  # The density is that of training, and says nothing of the bound.
  near(found["bpd"] - exact(x), 0.1)


def test_no_signal_at_the_end_is_not_infinitely_far(monkeypatch):
  fields = {"noise__zero_terminal": True, "diffusion__prediction": "v"}
  found = bits(monkeypatch, "bpd", eval__bound_times=4, **fields)[1]
  assert np.isfinite(found["bpd"]).all()


def near(gaps, most):
  """A bound is above what it bounds, up to its standard error."""
  error = gaps.std() / np.sqrt(len(gaps))
  assert error < most / 3
  assert -3 * error < gaps.mean() < most, (gaps.mean(), error)


def test_the_discrete_bound_is_above_and_near(monkeypatch):
  fields = {"noise__timesteps": 200, "eval__bound_times": 0}
  x, found = bits(monkeypatch, "bpd", "bpd_prior", **fields)
  near(found["bpd"] - exact(x), 0.2)
  assert found["bpd_prior"].max() < 1e-4


def test_all_steps_are_what_a_few_estimate(monkeypatch):
  few, every = (
    bits(monkeypatch, "bpd_diffusion", noise__timesteps=24, eval__bound_times=times)[1]
    for times in (6, 0)
  )
  one, two = (found["bpd_diffusion"] for found in (few, every))
  error = (one - two).std() / np.sqrt(N)
  assert abs(one.mean() - two.mean()) < 4 * error
  assert two.std() < one.std()
