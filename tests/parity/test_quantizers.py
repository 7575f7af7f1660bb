"""Quantizers against vector-quantize-pytorch, over several updates."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from vector_quantize_pytorch import FSQ, ResidualVQ, VectorQuantize

from core.family import example_keys
from vae import codebook, quantizers
from vae.codebook import Codebook

# numpy 2 asks of tensors what PyTorch's do not say yet.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")

KEY = jax.random.key(0)
BATCH, PLACES, K, D = 4, 9, 7, 5
DECAY, EPSILON = 0.9, 0.1


def codes_and_batches(n):
  rng = np.random.default_rng(0)
  codes = rng.normal(size=(n, K, D)).astype(np.float32)
  return codes, rng.normal(size=(4, BATCH, PLACES, D)).astype(np.float32)


def theirs(codes, revive_below=0):
  """Their residual quantizer; the rotation trick, a later estimator, is off."""
  net = ResidualVQ(
    dim=D,
    num_quantizers=len(codes),
    codebook_size=K,
    decay=DECAY,
    eps=EPSILON,
    threshold_ema_dead_code=revive_below,
    rotation_trick=False,
  )
  for layer, own in zip(net.layers, codes, strict=True):
    start_from(layer, own)
  return net.train()


def start_from(layer, codes):
  """Their counts start at 1."""
  layer._codebook.embed.data.copy_(torch.tensor(codes)[None])
  layer._codebook.embed_avg.data.copy_(torch.tensor(codes)[None])


def read(net):
  """Their state as ours."""
  books = [layer._codebook for layer in net.layers]
  stack = lambda name: np.stack([getattr(b, name)[0].numpy() for b in books])  # noqa: E731
  return stack("embed"), stack("cluster_size"), stack("embed_avg")


@jax.jit
def passed(codes, z):
  """z_q, indices, the commitment of each example, and the gradient to z."""

  def loss(z):
    z_q, indices = codebook.quantize(codes, z)
    through = codebook.straight_through(z, z_q)
    committed = codebook.commitment(codes, z, indices)
    total = jnp.sum(through**2) + jnp.mean(committed)
    return total, (through, indices, committed)

  gradient, rest = jax.grad(loss, has_aux=True)(z)
  return *rest, gradient


def counted(codes, z, indices):
  ids = jnp.arange(BATCH, dtype=jnp.uint32)
  mask = jnp.ones(BATCH, bool)
  return codebook.statistics(
    codes, z, indices, ids, example_keys(KEY, ids), mask, BATCH
  )


@pytest.fixture(autouse=True)
def smooth(monkeypatch):
  """The smoothing of counts by so much that it is seen."""
  monkeypatch.setattr(codebook, "EPSILON", EPSILON)


def close(a, b):
  np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("n", [1, 3])
def test_residual_quantizers_and_their_averages(n):
  codes, batches = codes_and_batches(n)
  net = theirs(codes)
  state = Codebook(jnp.array(codes), jnp.ones((n, K)), jnp.array(codes))
  for x in batches:
    z = torch.tensor(x, requires_grad=True)
    z_q, indices, losses = net(z)
    (torch.sum(z_q**2) + losses.sum()).backward()
    own = passed(state.codes, jnp.array(x))
    close(own[0], z_q.detach())
    np.testing.assert_array_equal(own[1], indices)
    # Theirs is a mean over the batch, one number a level; in all it is ours.
    close(jnp.mean(own[2]), losses.sum().item())
    # They estimate straight through at each level, so that z has n times the gradient
    # of z_q. Lee et al. 2022 have one estimate, of the whole sum, as we do.
    close(own[3] + (n - 1) * 2 * own[0], z.grad)
    batch = counted(state.codes, jnp.array(x), own[1])
    state = codebook.update(state, batch, DECAY, 0.0, KEY)
    for a, b in zip((state.codes, state.counts, state.sums), read(net), strict=True):
      close(a, b)
  net.eval()
  decoded = net.get_output_from_indices(indices)
  close(codebook.lookup(state.codes, jnp.array(indices.numpy())), decoded)


def test_a_single_quantizer_in_evaluation():
  codes, batches = codes_and_batches(1)
  net = VectorQuantize(
    dim=D, codebook_size=K, commitment_weight=0.25, rotation_trick=False
  )
  start_from(net, codes[0])
  z_q, indices, loss = net(torch.tensor(batches[0]))
  own = passed(jnp.array(codes), jnp.array(batches[0]))
  close(own[0], z_q)
  np.testing.assert_array_equal(own[1][..., 0], indices)
  close(0.25 * jnp.mean(own[2]), loss.item())
  net.eval()
  start_from(net, codes[0])
  z_q, indices, _ = net(torch.tensor(batches[1]))
  own = codebook.quantize(jnp.array(codes), jnp.array(batches[1]))
  close(own[0], z_q)
  np.testing.assert_array_equal(own[1][..., 0], indices)


def test_the_same_codes_are_revived():
  """Each library draws its own vectors, for the same codes with the same counts."""
  codes, batches = codes_and_batches(2)
  codes[:, :3] += 50.0  # far from everything
  net = theirs(codes, revive_below=2)
  state = Codebook(jnp.array(codes), jnp.ones((2, K)), jnp.array(codes))
  net(torch.tensor(batches[0]))
  z = jnp.array(batches[0])
  indices = codebook.quantize(state.codes, z)[1]
  batch = counted(state.codes, z, indices)
  new = codebook.update(state, batch, DECAY, 2, KEY)
  embed, counts, sums = read(net)
  close(new.counts, counts)
  revived = counts == 2
  assert revived[:, :3].all()
  close(new.codes[~revived], embed[~revived])
  close(new.sums[~revived], sums[~revived])
  # Ours and theirs are the vectors that were left for the level.
  first = jnp.array(codes[0])[indices[..., 0]]
  left = np.stack([z, z - first]).reshape(2, -1, D)
  for found in (np.asarray(new.codes), embed):
    for level in range(2):
      for vector in found[level][revived[level]]:
        assert np.abs(left[level] - vector).sum(-1).min() < 1e-5


LEVELS = [(8, 5, 5, 5), (7, 5), (16, 4, 3)]


@pytest.mark.parametrize("levels", LEVELS)
def test_numbers_of_fsq(levels):
  net = FSQ(list(levels))
  indices = jnp.arange(quantizers.check_levels(levels))
  z = quantizers.from_index(indices, levels)
  close(z, net.implicit_codebook)
  found = net.codes_to_indices(torch.tensor(np.asarray(z)))
  np.testing.assert_array_equal(quantizers.to_index(z, levels), found)


@pytest.mark.parametrize("levels", LEVELS)
def test_fsq(levels):
  """The same codes and gradients, but for two constants.

  The published code has (1 - 1e-3) in the range where theirs has (1 + 1e-3), and tan
  where theirs has artanh for even levels. Their range can be set; the other is 3e-4 at
  most in h, so only an h that near to an edge may go to the other side.
  """
  h = np.random.default_rng(0).normal(size=(2000, len(levels))).astype(np.float32) * 2
  x = torch.tensor(h, requires_grad=True)
  expected = FSQ(list(levels)).bound(x, eps=-1e-3)
  expected.sum().backward()
  own = quantizers.finite_scalar(jnp.array(h), levels)
  bounded = np.asarray(quantizers.bound(jnp.array(h), levels))
  # How far off an edge, against what the constant moves it by.
  edge = np.abs(bounded - np.floor(bounded) - 0.5)
  even = np.array(levels) % 2 == 0
  half = (np.array(levels) - 1) * 0.999 / 2
  off = np.where(even, np.abs(np.tan(0.5 / half) - np.arctanh(0.5 / half)), 0)
  clear = edge > off * half + 1e-5
  assert clear.mean() > 0.998
  close(own[clear], expected.detach().numpy()[clear])
  slope = jax.grad(lambda h: jnp.sum(quantizers.finite_scalar(h, levels)))(jnp.array(h))
  np.testing.assert_allclose(slope, x.grad, rtol=0, atol=1e-5 + 2 * off.max())
  close(slope[:, ~even], x.grad[:, ~even])
