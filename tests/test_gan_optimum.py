"""Critics fitted to two Gaussians on a line, against integrals of their densities."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

from gan import losses, penalties

P, Q = stats.norm(-0.5, 1.0), stats.norm(1.0, 0.8)
GRID = np.linspace(-8, 8, 801)
PDF = [each.pdf(GRID) for each in (P, Q)]


def integral(values):
  return values.sum(-1) * (GRID[1] - GRID[0])


def quantiles(law, n=256):
  """n points that stand for a law: its integrals are their means."""
  return jnp.asarray(law.ppf((np.arange(n) + 0.5) / n), jnp.float32)


def network(params, x):
  """A number for each of x, by two hidden layers."""
  y = x[..., None]
  for i, (kernel, bias) in enumerate(params):
    y = (jnp.tanh(y) if i else y) @ kernel + bias
  return y[..., 0]


def fit(objective, steps=1500):
  """Parameters that minimise objective(params, key), and the key's draws."""
  keys = jax.random.split(jax.random.key(0), 3)
  sizes = ((1, 32), (32, 32), (32, 1))
  params = [
    (jax.random.normal(key, size) / np.sqrt(size[0]), jnp.zeros(size[1]))
    for key, size in zip(keys, sizes, strict=True)
  ]
  # From 0: by the penalty alone a slope of -1 is as good as one of 1.
  params[-1] = jax.tree.map(jnp.zeros_like, params[-1])
  tx = optax.adam(optax.cosine_decay_schedule(1e-2, steps))

  def step(state, key):
    params, opt = state
    updates, opt = tx.update(jax.grad(objective)(params, key), opt, params)
    return (optax.apply_updates(params, updates), opt), None

  draws = jax.random.split(jax.random.key(1), steps)
  run = jax.jit(lambda start: jax.lax.scan(step, start, draws)[0][0])
  return run((params, tx.init(params)))


@functools.cache
def fitted(name):
  """The logits on the grid of a critic that has minimised a loss over all pairs."""
  loss, real, fake = losses.make(name).critic, quantiles(P), quantiles(Q)

  def objective(params, key):
    pairs = network(params, real)[:, None], network(params, fake)[None]
    return jnp.mean(loss(*jnp.broadcast_arrays(*pairs)))

  return np.asarray(network(fit(objective), jnp.asarray(GRID, jnp.float32)), np.float64)


def cost(name):
  """What the fitted critic minimised, over the densities themselves."""
  logits = jnp.asarray(fitted(name), jnp.float32)
  pairs = jnp.broadcast_arrays(logits[:, None], logits[None])
  values = np.asarray(losses.make(name).critic(*pairs), np.float64)
  return integral(integral(values * PDF[1]) * PDF[0])


def test_optimal_value_of_minimax_is_the_js_divergence():
  """min = 2 log 2 - 2 JS (Goodfellow et al. 2014, theorem 1), within 1e-3 and above."""
  middle = (PDF[0] + PDF[1]) / 2
  js = sum(integral(p * np.log(p / middle)) for p in PDF) / 2
  assert 0.2 < js < 0.4  # bounds: 0 and log 2
  found = np.log(2) - cost("minimax") / 2
  assert js - 1e-3 < found < js + 1e-5
  # The logit is log p/q, all the better where there is more data.
  off = np.abs(fitted("minimax") - np.log(PDF[0] / PDF[1]))
  assert integral(off * middle) < 0.1


def test_optimum_of_least_squares():
  """D = p / (p + q) and half of the integral of p q / (p + q), within 1e-4."""
  best = PDF[0] / (PDF[0] + PDF[1])
  least = integral(best * PDF[1]) / 2
  assert least - 1e-5 < cost("least_squares") < least + 1e-4
  off = np.abs(fitted("least_squares") - best)
  assert integral(off * (PDF[0] + PDF[1]) / 2) < 0.005


def test_optimal_value_of_hinge_is_the_total_variation():
  """min = 2 - 2 TV (Lim & Ye 2017), within 5e-3: the best critic has a step."""
  least = 2 * integral(np.minimum(*PDF))
  assert least - 1e-5 < cost("hinge") < least + 5e-3


def test_a_relativistic_critic_has_the_ratio_of_the_densities_too():
  """It tells pairs apart best by log p/q, up to a constant; within 2e-3."""
  ratio = np.log(PDF[0] / PDF[1])
  values = np.logaddexp(0, ratio[None] - ratio[:, None])
  least = integral(integral(values * PDF[1]) * PDF[0])
  assert least - 1e-5 < cost("relativistic") < least + 2e-3


@pytest.mark.parametrize("weight", [10.0, 100.0])
def test_gradient_penalty_recovers_the_wasserstein_distance(weight):
  """Of a shift d: d (1 + d / (2 lambda)), since a softer bound lets the slope grow.

  With pairs coupled in order, E D(x) - E D(y) - lambda E (D' - 1)^2 has its maximum at
  that slope. Within 1 %.
  """
  d = 2.0
  real = quantiles(stats.norm(d, 1.0))
  fake = real - d
  as_images = lambda x: x[:, None, None, None]  # noqa: E731

  def objective(params, key):
    critic = lambda x: network(params, x[:, 0, 0, 0])  # noqa: E731
    pairs = as_images(real), as_images(fake)
    keys = jax.random.split(key, len(real))
    penalty = penalties.unit_gradient(critic, *pairs, keys)
    loss = losses.make("wasserstein").critic(
      network(params, real), network(params, fake)
    )
    return jnp.mean(loss + weight * penalty)

  params = fit(objective)
  found = float(jnp.mean(network(params, real) - network(params, fake)))
  assert abs(found / (d * (1 + d / (2 * weight))) - 1) < 0.01
