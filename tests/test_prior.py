"""unCLIP's prior: what its query reads, and in which order."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core.errors import UserError
from nets.prior import Prior, causal
from text.cond import Cond

NET = Prior(dim=16, depth=2, heads=2, out_channels=5)


def inputs(length: int = 4) -> tuple[jax.Array, jax.Array, Cond]:
  keys = jax.random.split(jax.random.key(0), 4)
  x = jax.random.normal(keys[0], (2, 1, 1, 5))
  seq = jax.random.normal(keys[1], (2, length, 6))
  mask = jnp.arange(length) < jnp.array([[length], [2]])
  pooled = jax.random.normal(keys[2], (2, 7))
  return x, jnp.array([0.3, -1.0]), Cond(seq=seq, mask=mask, pooled=pooled)


def started() -> dict:
  """Parameters with an output that is not zero, as that of a fresh net is."""
  params = NET.init(jax.random.key(1), *inputs())
  leaves, tree = jax.tree.flatten(params)
  keys = jax.random.split(jax.random.key(2), len(leaves))
  moved = [
    a + 0.2 * jax.random.normal(k, a.shape) for a, k in zip(leaves, keys, strict=True)
  ]
  return tree.unflatten(moved)


def test_each_item_reads_itself_and_what_is_known_before_it() -> None:
  known = jnp.array([[True, False, True, True]])
  expected = [
    [True, False, False, False],
    [True, True, False, False],
    [True, False, True, False],
    [True, False, True, True],
  ]
  np.testing.assert_array_equal(causal(known)[0], expected)


def test_the_output_depends_on_all_but_padding() -> None:
  params, (x, logsnr, cond) = started(), inputs()
  out = NET.apply(params, x, logsnr, cond)
  assert out.shape == (2, 1, 1, 5)

  def moved(**fields: jax.Array) -> np.ndarray:
    own = cond.replace(**{k: v for k, v in fields.items() if k in ("seq", "pooled")})
    args = fields.get("x", x), fields.get("logsnr", logsnr), own
    return np.abs(NET.apply(params, *args) - out).max((1, 2, 3))

  # The second text ends after two items.
  seq = cond.seq.at[:, 3].add(1)
  assert moved(seq=seq)[0] > 1e-3
  assert moved(seq=seq)[1] == 0
  for name, value in (
    ("x", x + 1),
    ("logsnr", logsnr + 1),
    ("pooled", cond.pooled + 1),
  ):
    assert (moved(**{name: value}) > 1e-3).all(), name


def test_it_works_without_text() -> None:
  x, logsnr, _ = inputs()
  params = NET.init(jax.random.key(1), x, logsnr, Cond())
  np.testing.assert_array_equal(NET.apply(params, x, logsnr, Cond()), 0)


def test_maps_are_refused() -> None:
  with pytest.raises(UserError, match="vectors, not maps of 2x2"):
    NET.init(jax.random.key(0), jnp.zeros((1, 2, 2, 5)), jnp.zeros(1), Cond())
