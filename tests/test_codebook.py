"""Codebooks: computed by hand, and against the paper's averages in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from core.family import example_keys
from vae import codebook, kmeans
from vae.codebook import Codebook

KEY = jax.random.key(0)
update = jax.jit(codebook.update, static_argnums=(2, 3))


@functools.partial(jax.jit, static_argnames="batch_size")
def rows(z, codes, *, batch_size=None, start=0, mask=None):
  """Statistics of a batch of which z are rows, from `start` on."""
  ids = jnp.arange(len(z), dtype=jnp.uint32) + jnp.uint32(start)
  if mask is None:
    mask = jnp.ones(len(z), bool)
  indices = codebook.quantize(codes, z)[1]
  keys = example_keys(KEY, ids)
  size = batch_size or len(z)
  return codebook.statistics(codes, z, indices, ids, keys, mask, size)


def fresh(codes):
  """A codebook as if each code had had one vector a batch."""
  return Codebook(codes, jnp.ones(codes.shape[:2]), codes)


def test_the_nearest_code_and_the_lowest_of_equals():
  codes = jnp.array([[[0.0, 0], [2, 0], [2, 0], [0, 2]]])
  z = jnp.array([[1.0, 0], [2.0, 0.1], [0.1, 1.9], [-9, -9]])
  z_q, indices = codebook.quantize(codes, z)
  assert indices.dtype == jnp.int32
  assert indices[:, 0].tolist() == [0, 1, 3, 0]
  assert z_q.tolist() == [[0, 0], [2, 0], [0, 2], [0, 0]]


def test_a_second_codebook_codes_what_is_left():
  codes = jnp.array([[[0.0], [10]], [[-1], [1]], [[0.25], [-0.25]]])
  z = jnp.array([[[8.6], [0.6]]])  # [b, places, 1]
  z_q, indices = codebook.quantize(codes, z)
  assert indices.tolist() == [[[1, 0, 1], [0, 1, 1]]]
  assert z_q.tolist() == [[[8.75], [0.75]]]
  assert codebook.lookup(codes, indices).tolist() == z_q.tolist()
  # Of levels: (8.6 - 10)^2, (8.6 - 9)^2, (8.6 - 8.75)^2 and 0.6^2, 0.4^2, 0.15^2.
  expected = (1.96 + 0.16 + 0.0225 + 0.36 + 0.16 + 0.0225) / 2
  np.testing.assert_allclose(codebook.commitment(codes, z, indices), [expected], 1e-5)
  left = rows(z, codes)
  np.testing.assert_array_equal(left.counts, [[1, 1], [1, 1], [0, 2]])
  np.testing.assert_allclose(
    left.sums[..., 0], [[0.6, 8.6], [-1.4, 0.6], [0, -0.8]], rtol=1e-5, atol=1e-6
  )


def test_gradients_are_the_papers():
  """dL/dz is dL/dz_q + the commitment's 2 (z - z_q) / numbers; codes have none."""
  codes = jax.random.normal(KEY, (2, 5, 3))
  z, w = jax.random.normal(jax.random.key(1), (2, 4, 2, 2, 3))

  def loss(z, codes):
    z_q, indices = codebook.quantize(codes, z)
    through = codebook.straight_through(z, z_q)
    return jnp.sum(w * through**2) + 0.25 * jnp.sum(
      codebook.commitment(codes, z, indices)
    )

  to_z, to_codes = jax.grad(loss, (0, 1))(z, codes)
  z_q, indices = codebook.quantize(codes, z)
  first = codes[0][indices[..., 0]]
  expected = 2 * w * z_q + 0.25 * (2 * (z - first) + 2 * (z - z_q)) / (2 * 2 * 3)
  np.testing.assert_allclose(to_z, expected, rtol=1e-5, atol=1e-6)
  assert not jnp.any(to_codes)
  np.testing.assert_array_equal(codebook.straight_through(z, z_q), z_q)


def test_averages_follow_their_formula(monkeypatch):
  monkeypatch.setattr(codebook, "EPSILON", 0.1)  # large enough to be seen
  rng = np.random.default_rng(0)
  codes = rng.normal(size=(1, 4, 2))
  counts, sums = np.ones((1, 4)), codes.copy()
  state = fresh(jnp.asarray(codes, jnp.float32))
  for i in range(5):
    z = rng.normal(size=(6, 3, 2))
    batch = rows(jnp.asarray(z, jnp.float32), state.codes)
    state = codebook.update(state, batch, 0.8, 0.0, KEY)
    flat = z.reshape(-1, 2)
    owner = np.argmin(((flat[:, None] - codes[0]) ** 2).sum(-1), axis=1)
    one_hot = np.eye(4)[owner]
    counts = 0.8 * counts + 0.2 * one_hot.sum(0)
    sums = 0.8 * sums + 0.2 * one_hot.T @ flat
    total = counts.sum()
    codes = sums / ((counts + 0.1) / (total + 0.4) * total)[..., None]
    np.testing.assert_allclose(state.counts, counts, rtol=1e-5, err_msg=str(i))
    np.testing.assert_allclose(state.codes, codes, rtol=1e-4, atol=1e-5)


CENTRES = 10.0 * jnp.array([[0, 0], [1, 0], [0, 1], [1, 1], [2, 0], [0, 3]])


def clusters(each=20):
  """[6 * each, 2] vectors close to CENTRES, shuffled, and the means of the six."""
  off = jax.random.normal(KEY, (6, each, 2)) * 0.5
  vectors = CENTRES[:, None] + off
  shuffled = jax.random.permutation(KEY, vectors.reshape(-1, 2))
  return shuffled, np.asarray(jnp.mean(vectors, axis=1))


def in_order(points):
  points = np.asarray(points)
  return points[np.lexsort(np.round(points.T))]


def test_codes_become_the_means_of_their_clusters():
  vectors, means = clusters()
  state = fresh(CENTRES[None] + 2.0)
  z = vectors.reshape(6, 20, 2)
  for _ in range(40):
    state = update(state, rows(z, state.codes), 0.5, 0.0, KEY)
  np.testing.assert_allclose(state.codes[0], means, atol=1e-4)
  np.testing.assert_allclose(state.counts[0], 20.0, rtol=1e-5)


def test_k_means_finds_separated_clusters(monkeypatch):
  monkeypatch.setattr(kmeans, "ROWS", 50)  # 120 vectors in 3 parts
  vectors, means = clusters()
  start = jax.jit(lambda key: codebook.init(key, vectors, 6, 2))
  for seed in range(8):
    state = start(jax.random.key(seed))
    np.testing.assert_allclose(in_order(state.codes[0]), in_order(means), atol=1e-4)
    assert state.counts[0].tolist() == [20.0] * 6
    np.testing.assert_allclose(state.sums, state.counts[..., None] * state.codes)
    # The second has what the first left, and leaves less.
    errors = [
      jnp.mean((vectors - codebook.quantize(state.codes[:n], vectors)[0]) ** 2)
      for n in (1, 2)
    ]
    assert errors[1] < 0.5 * errors[0] < 0.3
  np.testing.assert_array_equal(start(KEY).codes, start(KEY).codes)


def test_k_means_of_fewer_vectors_than_codes():
  vectors = jnp.array([[0.0, 1], [5, 5], [0, 1], [-3, 2]])
  for seed in range(5):
    means, counts = kmeans.kmeans(jax.random.key(seed), vectors, 7)
    assert {tuple(m) for m in means.tolist()} == {(0, 1), (5, 5), (-3, 2)}
    assert sorted(counts.tolist()) == [0, 0, 0, 0, 1, 1, 2]
  state = codebook.init(KEY, vectors, 7, 1)
  assert sorted(state.counts[0].tolist()) == [1, 1, 1, 1, 1, 1, 2]
  np.testing.assert_array_equal(state.sums, state.counts[..., None] * state.codes)


def test_pieces_add_up_to_the_whole():
  """Whatever the cut, and a masked row is as if it were not there."""
  codes = jax.random.normal(KEY, (2, 10, 3))
  z = jax.random.normal(jax.random.key(1), (8, 5, 5, 3))
  mask = jnp.arange(8) != 5
  # A masked row may hold anything that is finite.
  whole = rows(z.at[5].set(1e3), codes, mask=mask, start=24)
  for cuts in ([4], [2, 4, 6]):
    parts = [
      rows(part, codes, batch_size=8, start=24 + int(at), mask=seen)
      for part, at, seen in zip(
        jnp.split(z, cuts), [0, *cuts], jnp.split(mask, cuts), strict=True
      )
    ]
    total = jax.tree.map(lambda *a: sum(a), *parts)
    np.testing.assert_array_equal(total.counts, whole.counts)
    np.testing.assert_allclose(total.sums, whole.sums, atol=1e-5)
    np.testing.assert_array_equal(total.candidates, whole.candidates)
    np.testing.assert_array_equal(total.filled, whole.filled)
  assert whole.counts.sum(-1).tolist() == [7 * 25, 7 * 25]
  # ceil(10 / 8) = 2 of each row, others than the first of all, in slots of its own.
  assert whole.filled.tolist() == [1] * 10 + [0, 0] + [1] * 4
  first = np.asarray(whole.candidates[0]).reshape(8, 2, 3)
  for row in {*range(8)} - {5}:
    own = np.asarray(z[row]).reshape(-1, 3).tolist()
    places = [own.index(vector.tolist()) for vector in first[row]]
    assert len(set(places)) == 2


def test_dead_codes_become_vectors_of_the_batch():
  codes = jnp.full((2, 8, 2), 5.0).at[:, 0].set(jnp.array([[1.0], [0.0]]))
  z = 1.0 + jax.random.normal(KEY, (4, 3, 2)) * 0.1
  state = Codebook(codes, jnp.full((2, 8), 0.2).at[:, 0].set(5.0), codes)
  mask = jnp.array([True, True, False, True])
  batch = rows(z, codes, mask=mask)  # 2 a row: 6 candidates for 7 dead codes
  new = update(state, batch, 0.9, 0.3, KEY)
  assert new.counts.tolist()[0][1:7] == [1.0] * 6  # revived
  np.testing.assert_allclose(new.counts[:, 7], 0.18, rtol=1e-6)  # none was left for it
  np.testing.assert_allclose(new.counts[:, 0], 4.5 + 0.9, rtol=1e-6)
  usable = np.asarray(batch.candidates)[:, np.asarray(batch.filled) > 0]
  for level in range(2):
    assert sorted(new.codes[level, 1:7].tolist()) == sorted(usable[level].tolist())
  np.testing.assert_array_equal(new.sums[:, 1:7], new.codes[:, 1:7])
  # A threshold of 0 never revives.
  never = update(state, batch, 0.9, 0.0, KEY)
  np.testing.assert_allclose(never.counts[:, 1:], 0.18, rtol=1e-6)


def test_a_collapsed_codebook_comes_back_to_use():
  z = jax.random.uniform(KEY, (8, 64, 2))
  codes = jnp.full((1, 64, 2), 5.0) + 10.0 * jnp.arange(64)[:, None]
  state = fresh(codes)
  used = lambda: float(codebook.usage(rows(z, state.codes).counts)[0])  # noqa: E731
  assert used() == 1 / 64
  for step in range(40):
    key = jax.random.fold_in(KEY, step)
    state = update(state, rows(z, state.codes), 0.9, 0.1, key)
  assert used() > 0.9
  assert codebook.perplexity(rows(z, state.codes).counts)[0] > 0.7 * 64


def test_usage_and_perplexity_by_hand():
  counts = jnp.array([[4.0, 4, 0, 0], [7, 0, 0, 0], [1, 1, 1, 1], [2, 1, 1, 0]])
  assert codebook.usage(counts).tolist() == [0.5, 0.25, 1.0, 0.75]
  # The entropy of (1/2, 1/4, 1/4) is 1.5 log 2.
  expected = [2, 1, 4, 2**1.5]
  np.testing.assert_allclose(codebook.perplexity(counts), expected, rtol=1e-6)
