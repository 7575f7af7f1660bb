"""Networks of couplings: where they start, and what they read."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nets.conditioners import ConvConditioner, ResNetConditioner, ViTConditioner
from text.cond import Cond

KEY = jax.random.key(0)
NETS = {
  "conv": functools.partial(ConvConditioner, hidden=8),
  "resnet": functools.partial(ResNetConditioner, hidden=8, blocks=2),
  "vit": functools.partial(ViTConditioner, dim=8, depth=2, heads=2),
}
make = pytest.mark.parametrize("make", list(NETS.values()), ids=list(NETS))


def draw(i: int, *shape: int) -> jax.Array:
  return jax.random.normal(jax.random.fold_in(KEY, i), shape)


@make
def test_starts_at_zero_and_reads_the_condition_and_its_own_picture_alone(make):
  x = draw(0, 2, 4, 4, 3)
  mask = jnp.array([[True, True, False]] * 2)
  cond = Cond(pooled=draw(1, 2, 5), seq=draw(2, 2, 3, 6), mask=mask)
  net = make(out_channels=4, dtype=jnp.bfloat16)
  params = jax.jit(net.init)(KEY, x, cond)
  run = jax.jit(net.apply)
  assert run(params, x, cond).dtype == jnp.float32
  np.testing.assert_array_equal(run(params, x, cond), 0)

  # In float32, with no layer at zero any more.
  params = jax.tree.map(lambda p: p + 0.1 * draw(3, *p.shape), params)
  run = jax.jit(make(out_channels=4).apply)
  y = run(params, x, cond)
  assert y.shape == (2, 4, 4, 4)
  changed = cond.replace(pooled=cond.pooled.at[1].add(1))
  difference = np.abs(run(params, x, changed) - y).max((1, 2, 3))
  assert difference[0] == 0 < difference[1]
  # The padding of a text is not read, and of these networks only the ViT reads a text.
  for place, reads in ((2, False), (1, make is NETS["vit"])):
    changed = cond.replace(seq=cond.seq.at[:, place].add(draw(4, 6)))
    assert (np.abs(run(params, x, changed) - y).max() > 0) == reads
  # A picture's result does not depend on the others.
  alone = run(params, x.at[1].add(1), cond)
  np.testing.assert_array_equal(alone[0], y[0])
  assert np.abs(alone[1] - y[1]).min() > 0
  assert jax.tree.leaves(net.init(KEY, x, Cond()))
