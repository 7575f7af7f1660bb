"""GAN losses, penalties and spectral norm against their formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core.errors import UserError
from gan import losses, penalties, spectral
from gan.rows import alike, neighbours
from text.cond import Cond

KEY = jax.random.key(0)
REAL = np.array([-2.0, -0.3, 0.4, 1.7, 3.0])
FAKE = np.array([0.5, -1.2, 2.1, -0.1, -3.0])
LOGITS = jnp.asarray(REAL, jnp.float32), jnp.asarray(FAKE, jnp.float32)


def normal(i, *shape):
  return jax.random.normal(jax.random.fold_in(KEY, i), shape)


def sigmoid(a):
  return 1 / (1 + np.exp(-a))


def step(a):
  return (a > 0).astype(float)


D, G = sigmoid(REAL), sigmoid(FAKE)
ZERO = np.zeros(5)
# The critic's and the generator's loss, each with its derivatives by the two logits.
FORMULAS = {
  "minimax": (
    (-np.log(D) - np.log(1 - G), D - 1, G),
    (np.log(1 - G), ZERO, -G),
  ),
  "nonsaturating": (
    (-np.log(D) - np.log(1 - G), D - 1, G),
    (-np.log(G), ZERO, G - 1),
  ),
  "least_squares": (
    ((REAL - 1) ** 2 / 2 + FAKE**2 / 2, REAL - 1, FAKE),
    ((FAKE - 1) ** 2 / 2, ZERO, FAKE - 1),
  ),
  "hinge": (
    (
      np.maximum(0, 1 - REAL) + np.maximum(0, 1 + FAKE),
      -step(1 - REAL),
      step(1 + FAKE),
    ),
    (-FAKE, ZERO, ZERO - 1),
  ),
  "wasserstein": ((FAKE - REAL, ZERO - 1, ZERO + 1), (-FAKE, ZERO, ZERO - 1)),
  "relativistic": (
    (-np.log(sigmoid(REAL - FAKE)), sigmoid(REAL - FAKE) - 1, sigmoid(FAKE - REAL)),
    (-np.log(sigmoid(FAKE - REAL)), sigmoid(REAL - FAKE), sigmoid(FAKE - REAL) - 1),
  ),
}


@pytest.mark.parametrize("name", losses.LOSSES)
def test_losses_and_their_gradients_by_hand(name):
  made = losses.make(name)
  for found, (value, by_real, by_fake) in zip(made[:2], FORMULAS[name], strict=True):
    np.testing.assert_allclose(found(*LOGITS), value, rtol=1e-5, atol=1e-6)
    both = jax.grad(lambda r, f, found=found: jnp.sum(found(r, f)), (0, 1))
    for got, wanted in zip(both(*LOGITS), (by_real, by_fake), strict=True):
      np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)


def test_how_sure_a_critic_is_of_the_data():
  """Of a loss without a level, what counts is the real picture beside the fake one."""
  for name in ("minimax", "nonsaturating", "hinge"):
    np.testing.assert_array_equal(losses.make(name).sure(*LOGITS), LOGITS[0])
  halfway = losses.make("least_squares").sure(*LOGITS)
  np.testing.assert_allclose(halfway, REAL - 0.5, rtol=1e-6)
  for name in ("wasserstein", "relativistic"):
    beside = losses.make(name).sure(*LOGITS)
    np.testing.assert_allclose(beside, REAL - FAKE, rtol=1e-5)


def test_losses_stay_finite_where_the_critic_is_certain():
  far = jnp.array([-1e4, 1e4])
  for made in losses.LOSSES.values():
    for found in made[:2]:
      value, grads = jax.value_and_grad(lambda r, f, g=found: jnp.sum(g(r, f)), (0, 1))(
        far, -far
      )
      assert np.isfinite(value)
      assert np.isfinite(grads).all()


def test_an_unknown_loss_is_refused():
  with pytest.raises(UserError, match="hinge"):
    losses.make("hinje")


def test_a_patch_critic_counts_by_its_mean():
  logits = normal(0, 3, 4, 5)
  wanted = np.asarray(logits).reshape(3, 20).mean(1)
  np.testing.assert_allclose(losses.mean(logits), wanted, atol=1e-6)
  np.testing.assert_array_equal(losses.mean(logits[:, 0, 0]), logits[:, 0, 0])


def quadratic(matrix, slope):
  """D(x) = x^T A x / 2 + b^T x, whose gradient is A x + b for symmetric A."""

  def critic(x):
    flat = x.reshape(len(x), -1)
    return jnp.einsum("bi,ij,bj->b", flat, matrix, flat) / 2 + flat @ slope

  return critic


@pytest.fixture(name="critic")
def fixture_critic():
  half = np.asarray(normal(1, 12, 12))
  matrix, slope = half + half.T, np.asarray(normal(2, 12))
  gradient = lambda x: np.asarray(x).reshape(len(x), -1) @ matrix + slope  # noqa: E731
  return quadratic(matrix, slope), gradient


def test_square_gradient_of_a_quadratic_critic(critic):
  found, gradient = critic
  x = normal(3, 5, 2, 2, 3)
  wanted = (gradient(x) ** 2).sum(1)
  np.testing.assert_allclose(penalties.square_gradient(found, x), wanted, rtol=1e-5)


def test_square_gradient_adds_up_a_patch_critics_logits():
  slopes = np.asarray(normal(4, 12, 6))
  x = normal(3, 5, 2, 2, 3)
  found = penalties.square_gradient(
    lambda x: (x.reshape(len(x), -1) @ slopes).reshape(-1, 2, 3), x
  )
  np.testing.assert_allclose(found, [(slopes.sum(1) ** 2).sum()] * 5, rtol=1e-5)


def test_unit_gradient_between_pairs(critic):
  found, gradient = critic
  real, fake = normal(5, 5, 2, 2, 3), normal(6, 5, 2, 2, 3)
  keys = jax.random.split(KEY, 5)
  got = penalties.unit_gradient(found, real, fake, keys)
  u = np.array([float(jax.random.uniform(key)) for key in keys])[:, None, None, None]
  norms = np.linalg.norm(gradient(u * real + (1 - u) * fake), axis=1)
  np.testing.assert_allclose(got, (norms - 1) ** 2, rtol=1e-4)
  # Of a line, the same everywhere; and a critic that knows nothing has a gradient.
  slope = normal(7, 12)
  straight = lambda scale: penalties.unit_gradient(  # noqa: E731
    quadratic(jnp.zeros((12, 12)), scale * slope), real, fake, keys
  )
  norm = np.linalg.norm(slope)
  np.testing.assert_allclose(straight(1.0), [(norm - 1) ** 2] * 5, rtol=1e-4)
  assert np.isfinite(jax.grad(lambda scale: straight(scale).sum())(0.0))


def test_gradients_of_penalties_by_the_critics_parameters(critic):
  """With D' = A x + b, by b: of |D'|^2 2 D', of (|D'| - 1)^2 2 (|D'| - 1) D' / |D'|."""
  found, gradient = critic
  real, fake = normal(5, 5, 2, 2, 3), normal(6, 5, 2, 2, 3)
  keys, zero = jax.random.split(KEY, 5), jnp.zeros(12)
  shifted = lambda b: lambda x: found(x) + x.reshape(len(x), -1) @ b  # noqa: E731
  got = jax.jacobian(lambda b: penalties.square_gradient(shifted(b), real))(zero)
  np.testing.assert_allclose(got, 2 * gradient(real), rtol=1e-4, atol=1e-4)
  unit = lambda b: penalties.unit_gradient(shifted(b), real, fake, keys)  # noqa: E731
  u = np.array([float(jax.random.uniform(key)) for key in keys])[:, None, None, None]
  slopes = gradient(u * real + (1 - u) * fake)
  norms = np.linalg.norm(slopes, axis=1, keepdims=True)
  wanted = 2 * (norms - 1) * slopes / norms
  np.testing.assert_allclose(jax.jacobian(unit)(zero), wanted, rtol=1e-4, atol=1e-4)


def test_path_lengths_of_linear_synthesis():
  """|J^T y|, squares averaged over the layers, y the draw of the example's key."""
  layers, d, shape = 3, 4, (4, 2, 3)
  matrix = np.asarray(normal(8, layers * d, 24))
  synthesis = lambda w: (w.reshape(len(w), -1) @ matrix).reshape(-1, *shape)  # noqa: E731
  keys = jax.random.split(KEY, 5)
  got = penalties.path_lengths(synthesis, normal(9, 5, layers, d), keys)
  y = np.stack([np.asarray(jax.random.normal(key, shape)).ravel() for key in keys])
  back = (y / np.sqrt(4 * 2) @ matrix.T).reshape(5, layers, d)
  wanted = np.sqrt((back**2).sum(-1).mean(-1))
  np.testing.assert_allclose(got, wanted, rtol=1e-5)


def test_gradient_of_the_penalty_on_path_lengths_by_hand():
  """d/dM of (r - a)^2, r^2 = mean over layers of |M y|^2: 2 (r - a) / (3 r) M y y^T."""
  matrix, keys, mean = normal(8, 3, 4, 24), jax.random.split(KEY, 5), 0.7

  def total(matrix):
    synthesis = lambda w: jnp.einsum("bld,ldo->bo", w, matrix).reshape(-1, 4, 2, 3)  # noqa: E731
    return (
      (penalties.path_lengths(synthesis, normal(9, 5, 3, 4), keys) - mean) ** 2
    ).sum()

  y = np.stack([np.asarray(jax.random.normal(key, (4, 2, 3))).ravel() for key in keys])
  y = y / np.sqrt(4 * 2)
  back = np.einsum("ldo,bo->bld", matrix, y)
  lengths = np.sqrt((back**2).sum(-1).mean(-1))
  each = 2 * (lengths - mean) / (3 * lengths)
  wanted = np.einsum("b,bld,bo->ldo", each, back, y)
  np.testing.assert_allclose(jax.grad(total)(matrix), wanted, rtol=1e-4, atol=1e-5)


def test_neighbours_swap_pairs():
  a = jnp.arange(12).reshape(6, 2)
  np.testing.assert_array_equal(neighbours(a), a[jnp.array([1, 0, 3, 2, 5, 4])])
  np.testing.assert_array_equal(neighbours(neighbours(a)), a)
  # The same rows, cut over devices at pairs.
  cut = [neighbours(a[i : i + 2]) for i in range(0, 6, 2)]
  np.testing.assert_array_equal(jnp.concatenate(cut), neighbours(a))


def test_conditions_are_alike_only_if_all_of_them_is():
  cond = Cond(
    tokens=jnp.array([[1, 2], [1, 2], [1, 0], [1, 0]]),
    mask=jnp.array([[1, 1], [1, 1], [1, 0], [1, 1]], bool),
    label=jnp.array([3, 3, 3, 3]),
  )
  other = jax.tree.map(neighbours, cond)
  np.testing.assert_array_equal(alike(cond, other), [1, 1, 0, 0])
  labels = cond.replace(label=jnp.array([3, 4, 3, 3]))
  other = jax.tree.map(neighbours, labels)
  np.testing.assert_array_equal(alike(labels, other), [0, 0, 0, 0])


PARAMS = {
  "conv": {"kernel": normal(10, 3, 3, 4, 6), "bias": normal(11, 6)},
  "dense": {"kernel": normal(12, 7, 5)},
}


def settled(params, rounds=1000):
  """Vectors after many power iterations."""
  turn = lambda i, vectors: spectral.normalise(params, vectors)[1]  # noqa: E731
  start = spectral.init(KEY, params)
  return jax.jit(lambda: jax.lax.fori_loop(0, rounds, turn, start))()


def test_spectral_norm_against_numpys_svd():
  vectors = settled(PARAMS)
  got, moved = spectral.normalise(PARAMS, vectors)
  assert vectors.keys() == {"conv/kernel", "dense/kernel"}
  np.testing.assert_array_equal(got["conv"]["bias"], PARAMS["conv"]["bias"])
  for path, u in moved.items():
    module, leaf = path.split("/")
    before, after = (
      np.asarray(tree[module][leaf]).reshape(-1, tree[module][leaf].shape[-1])
      for tree in (PARAMS, got)
    )
    _, values, rights = np.linalg.svd(before)
    np.testing.assert_allclose(after, before / values[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(np.linalg.svd(after)[1][0], 1, rtol=1e-5)
    np.testing.assert_allclose(abs(rights[0] @ u), 1, rtol=1e-5)


def test_one_power_iteration_is_algorithm_1():
  w = np.asarray(PARAMS["dense"]["kernel"])
  params, start = {"kernel": w}, np.ones(5, np.float32) / np.sqrt(5)
  got, moved = spectral.normalise(params, {"kernel": jnp.asarray(start)})
  v = w @ start
  v = v / np.linalg.norm(v)
  u = v @ w
  u = u / np.linalg.norm(u)
  np.testing.assert_allclose(moved["kernel"], u, rtol=1e-5)
  np.testing.assert_allclose(got["kernel"], w / (v @ w @ u), rtol=1e-5)


def test_gradient_through_spectral_norm_against_finite_differences():
  params = {"dense": PARAMS["dense"]}
  vectors, weight = settled(params), np.asarray(normal(14, 7, 5), np.float64)
  normalised = lambda p: spectral.normalise(p, vectors)[0]["dense"]["kernel"]  # noqa: E731
  got = jax.grad(lambda p: jnp.sum(weight * normalised(p)))(params)["dense"]["kernel"]
  w = np.asarray(params["dense"]["kernel"], np.float64)
  value = lambda w: (weight * w / np.linalg.svd(w)[1][0]).sum()  # noqa: E731
  differences = np.zeros_like(w)
  for at in np.ndindex(w.shape):
    move = np.zeros_like(w)
    move[at] = 1e-5
    differences[at] = (value(w + move) - value(w - move)) / 2e-5
  np.testing.assert_allclose(got, differences, rtol=1e-4, atol=1e-5)
