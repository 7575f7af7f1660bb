"""Principal components against a decomposition of all data at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import base
from core.errors import UserError
from core.family import Family, Spec, State
from core.family import make as make_family
from text.cond import Cond
from vae import pca

DIMS, ROWS = 6, 96


def settings(**fields: object) -> ConfigDict:
  config = base.get_config()
  config.family, config.text.encoder = "vae.pca", "none"
  config.pca = base.pca()
  config.pca.components, config.pca.buckets = 3, 8
  config.update_from_flattened_dict(fields)
  return config


def data() -> np.ndarray:
  """Rows around (10, 10, ...), of very different spreads."""
  draw = np.random.default_rng(0)
  turned, _ = np.linalg.qr(draw.normal(size=(DIMS, DIMS)))
  spread = np.array([3, 2, 1, 0.3, 0.2, 0.1])
  return (10 + draw.normal(size=(ROWS, DIMS)) * spread @ turned.T).astype(np.float32)


def trained(config: ConfigDict, x: np.ndarray, size: int = 8) -> tuple[Family, State]:
  family = make_family(config, Spec((1, 1, DIMS), pixels=False))
  step, state = jax.jit(family.step), None
  for start in range(0, len(x), size):
    rows = x[start : start + size].reshape(-1, 1, 1, DIMS)
    # The last row of each batch is a stranger that is masked.
    batch = {
      "x": np.concatenate([rows, np.full_like(rows[:1], 99)]),
      "cond": Cond(),
      "_id": np.arange(len(rows) + 1, dtype=np.uint32),
      "_mask": np.arange(len(rows) + 1) < len(rows),
    }
    if state is None:
      state = family.init(jax.random.key(0), batch)
    state, _ = step(state, batch, jax.random.key(1))
  return family, state


def test_components_are_those_of_all_rows_at_once() -> None:
  x = data()
  _, state = trained(settings(), x)
  own = state.ema["generator"]
  values, vectors = np.linalg.eigh(np.cov(x.T, bias=True))
  np.testing.assert_allclose(own.mean, x.mean(0), rtol=1e-5)
  np.testing.assert_allclose(own.variance, values[::-1][:3], rtol=1e-4)
  overlap = np.abs(np.asarray(own.basis).T @ vectors[:, ::-1][:, :3])
  np.testing.assert_allclose(overlap, np.eye(3), atol=1e-3)


def test_microbatches_change_nothing() -> None:
  x = data()
  _, whole = trained(settings(), x, size=7)
  _, parts = trained(settings(**{"optim.microbatches": 2}), x, size=7)
  for a, b in zip(jax.tree.leaves(whole.opt), jax.tree.leaves(parts.opt), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4)


def test_latents_have_unit_variance_and_lose_what_the_loss_says() -> None:
  x = jnp.asarray(data().reshape(-1, 1, 1, DIMS))
  family, state = trained(settings(), data())
  codec = family.codecs["latents"]
  c = codec.encode(state, x)
  assert c.shape == (ROWS, *codec.spec.shape)
  np.testing.assert_allclose(np.cov(c[:, 0, :, 0].T, bias=True), np.eye(3), atol=1e-3)
  lost = ((codec.decode(state, c) - x) ** 2).sum((1, 2, 3))
  away = ((x - data().mean(0)) ** 2).sum((1, 2, 3))
  loss = family.evals["loss"](state, {"x": x}, jax.random.key(0))
  np.testing.assert_allclose(loss, lost / away, rtol=1e-3, atol=1e-5)


def test_tokens_are_equally_likely_cells_of_a_gaussian() -> None:
  c = jax.random.normal(jax.random.key(2), (100_000,))
  tokens = pca.to_tokens(c, 8)
  np.testing.assert_allclose(np.bincount(tokens) / len(c), 1 / 8, atol=0.005)
  np.testing.assert_array_equal(pca.to_tokens(pca.from_tokens(tokens, 8), 8), tokens)
  # Quartiles of N(0, 1): -0.6745, 0, 0.6745, whatever lies far outside.
  ends = jnp.array([-50.0, -0.68, -0.67, -0.01, 0.01, 0.67, 0.68, 50.0])
  assert pca.to_tokens(ends, 4).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
  medians = jnp.array([-1.1503, -0.3186, 0.3186, 1.1503])
  np.testing.assert_allclose(pca.from_tokens(jnp.arange(4), 4), medians, atol=1e-4)


def test_many_cells_cost_little() -> None:
  x = jnp.asarray(data().reshape(-1, 1, 1, DIMS))
  family, state = trained(settings(**{"pca.buckets": 1024}), data())
  exact, rounded = family.codecs["latents"], family.codecs["tokens"]
  a = exact.decode(state, exact.encode(state, x))
  b = rounded.decode(state, rounded.encode(state, x))
  assert np.sqrt(np.mean((a - b) ** 2)) < 0.01  # of deviations of 3, 2 and 1


def test_samples_have_the_moments_of_the_data() -> None:
  family, state = trained(settings(), data())
  drawn = family.sample(state, jax.random.key(3), Cond(), 20_000).images[:, 0, 0]
  np.testing.assert_allclose(drawn.mean(0), data().mean(0), atol=0.1)
  own = state.ema["generator"]
  kept = own.basis @ jnp.diag(own.variance) @ own.basis.T
  np.testing.assert_allclose(np.cov(drawn.T), kept, atol=0.15)


def test_too_many_components_are_refused() -> None:
  config = settings(**{"pca.components": 7})
  with pytest.raises(UserError, match="more than the 6 numbers"):
    make_family(config, Spec((1, 1, DIMS), pixels=False))
  with pytest.raises(UserError, match="not tokens"):
    make_family(settings(), Spec((1, 1, DIMS), jnp.int32, 16, pixels=False))
