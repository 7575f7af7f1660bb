"""Operations by the compiler's count, with loops in full."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs.diffusion import rectified_flow
from configs.gan import stylegan2
from core import cost, flops
from core.family import Family
from pipelines import budget, build


def layers(unroll: int):
  def loss(w: jax.Array, x: jax.Array) -> jax.Array:
    return jax.lax.scan(lambda x, w: (x @ w, None), x, w, unroll=unroll)[0].sum()

  return jax.grad(loss, argnums=(0, 1))


@pytest.mark.parametrize("unroll", [1, 2, 3, 7])
def test_a_scan_counts_every_time(unroll: int) -> None:
  """x @ w is 2 b d^2, its two gradients twice that; XLA alone counts one of seven."""
  w, x = jnp.ones((7, 32, 32)), jnp.ones((16, 32))
  found = cost.count(layers(unroll), w, x)
  assert found.always == found.most == pytest.approx(7 * 3 * 2 * 16 * 32**2, rel=0.01)


def test_it_is_what_the_compiled_program_has_and_nested_loops_multiply() -> None:
  w, x = jnp.ones((32, 32)), jnp.ones((16, 32))
  plain = jax.jit(lambda x, w: jnp.tanh(x @ w) @ w)
  compiled = plain.lower(x, w).compile().cost_analysis()["flops"]
  assert cost.count(plain, x, w).most == pytest.approx(compiled, rel=0.01)

  def inner(x: jax.Array, _: None) -> tuple[jax.Array, None]:
    return jax.lax.fori_loop(0, 3, lambda _, x: x @ w, x), None

  nested = cost.count(lambda x: jax.lax.scan(inner, x, None, length=5)[0], x)
  assert nested.most == pytest.approx(15 * 2 * 16 * 32**2, rel=0.01)


def test_a_conditional_has_two_ends() -> None:
  w, x = jnp.ones((32, 32)), jnp.ones((16, 32))
  once = 2 * 16 * 32**2
  found = cost.count(
    lambda due, x: jax.lax.cond(due, lambda x: x @ w @ w @ w, lambda x: x @ w, x),
    True,
    x,
  )
  assert found.always == pytest.approx(once, rel=0.01)
  assert found.every(4) == pytest.approx(1.5 * once, rel=0.01)


def test_a_scanned_transformer_costs_what_the_unrolled_one_does() -> None:
  """A DiT's training step: its products by hand, and what is between them."""
  found = {}
  for scan in (True, False):
    c = rectified_flow.get_config("tiny")
    c.model.net, c.model.depth, c.model.scan = "dit", 5, scan
    c.model.dim, c.model.heads, c.model.patch, c.text.encoder = 64, 2, 2, "none"
    family = build.family(c)
    found[scan] = budget.flops_of_step(c, family)
  batch, key = build.example_batch(c), jax.random.key(0)
  batch = jax.tree.map(lambda a: np.repeat(a, c.data.batch_size, axis=0), batch)
  state = jax.eval_shape(family.init, key, batch)
  products = flops.of(family.step, state, batch, key)  # see core/flops.py
  assert found[True] == pytest.approx(found[False], rel=1e-3)
  tokens, dim, rows = 16, 64, 8
  # Of a block, by hand: its matrices, the two products of attention, the modulation.
  block = rows * (tokens * 12 * dim**2 + 2 * tokens**2 * dim + 6 * dim**2)
  by_hand = 5 * 3 * 2 * block
  assert by_hand < found[True] < 1.35 * by_hand
  assert by_hand < products.flops < found[True]


def test_each_penalty_counts_at_its_own_interval(
  monkeypatch: pytest.MonkeyPatch,
) -> None:
  """By hand: the rest 100 + 64 / 16, of path lengths 10 if not due, and 32 / 8 more."""
  c = stylegan2.get_config("tiny")
  c.gan.penalty_every, c.gan.path_every = 16, 8

  def counted(own: ConfigDict, _: Family) -> cost.Cost:
    paths = own.gan.path_length > 0
    return cost.Cost(100 + 10 * paths, 164 + 42 * paths)

  monkeypatch.setattr(budget, "cost_of_step", counted)
  family = build.family(c)
  c.gan.path_length = 2.0
  assert budget.flops_of_step(c, family) == 104 + 14
  c.gan.path_length = 0.0
  assert budget.flops_of_step(c, family) == 104
