"""Guidance and thresholds against their papers' formulas, written again in numpy."""

import jax.numpy as jnp
import numpy as np
import pytest

from configs.diffusion import ddpm as ddpm_config
from core.errors import UserError
from diffusion.guidance import Guidance, guidance, threshold

RNG = np.random.default_rng(0)
OWN, OTHER = (
  RNG.normal(size=(3, 4, 4, 2)).astype(np.float32) * s + m
  for s, m in ((1, 0.3), (2, 0))
)
LOGSNR = jnp.asarray([-4.0, 0.0, 3.0])  # sigma / alpha = 7.4, 1, 0.22


def guided(**fields):
  return np.asarray(Guidance(**fields)(jnp.asarray(OWN), jnp.asarray(OTHER), LOGSNR))


def test_guidance_is_extrapolation():
  # Ho & Salimans 2022, eq. 6, with w = scale - 1.
  np.testing.assert_allclose(guided(scale=3.0), 3 * OWN - 2 * OTHER, atol=1e-5)


@pytest.mark.parametrize(
  ("low", "high", "inside"),
  [
    (0.5, 2.0, [False, True, False]),
    (0.22, 7.3, [False, True, True]),
    (1.0, 8.0, [True, False, False]),  # low itself is outside
    (0.5, 1.0, [False, True, False]),  # high itself is inside
  ],
)
def test_guidance_is_in_its_interval_only(low, high, inside):
  got = guided(scale=3.0, low=low, high=high)
  for i, where in enumerate(inside):
    want = 3 * OWN[i] - 2 * OTHER[i] if where else OWN[i]
    np.testing.assert_allclose(got[i], want, atol=1e-5)


@pytest.mark.parametrize("share", [0.7, 1.0])
def test_rescaled_guidance(share):
  # Lin et al. 2023, eqs. 15 and 16, example by example.
  plain, got = 3 * OWN - 2 * OTHER, guided(scale=3.0, rescale=share)
  for i in range(3):
    rescaled = plain[i] * OWN[i].std() / plain[i].std()
    want = share * rescaled + (1 - share) * plain[i]
    np.testing.assert_allclose(got[i], want, rtol=1e-4, atol=1e-5)
  if share == 1:
    np.testing.assert_allclose(got.std((1, 2, 3)), OWN.std((1, 2, 3)), rtol=1e-5)


def test_dynamic_thresholding():
  # Saharia et al. 2022, appendix A.
  x = np.stack([3 * OWN[0], 0.2 * OWN[1]])
  got = np.asarray(threshold(jnp.asarray(x), "dynamic", 0.9))
  size = np.quantile(np.abs(x[0]), 0.9)
  assert size > 1
  np.testing.assert_allclose(got[0], np.clip(x[0], -size, size) / size, rtol=1e-5)
  np.testing.assert_array_equal(got[1], x[1])  # already in range: as it is
  assert np.abs(got).max() <= 1


def test_static_thresholding_and_none():
  x = jnp.asarray(2 * OWN)
  np.testing.assert_array_equal(threshold(x, "static", 0.9), np.clip(x, -1, 1))
  np.testing.assert_array_equal(threshold(x, "none", 0.9), x)


def test_refusals():
  config = ddpm_config.get_config("tiny").sample
  config.guidance_min = config.guidance_max = 2.0
  with pytest.raises(UserError, match="guidance_min=2.0 must be below"):
    guidance(config)
  with pytest.raises(UserError, match="did you mean 'dynamic'"):
    threshold(jnp.zeros((1, 1)), "dynamics", 0.9)
