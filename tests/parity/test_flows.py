"""Bijectors against normflows and zuko, on the same parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from normflows import flows as theirs
from normflows.nets import ConvNet2d
from normflows.utils.splines import unconstrained_rational_quadratic_spline
from zuko.transforms import MonotonicRQSTransform

from flows import elementwise, layers
from flows.bijector import chain, repeat, squeezed
from flows.coupling import coupling, masked_coupling
from nets.conditioners import ConvConditioner
from text.cond import Cond

# normflows decomposes its rotations by a function that PyTorch has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:torch.lu is deprecated")

HIDDEN, STEPS = 8, 3
COND = Cond()


def net(channels):
  return ConvConditioner(channels, HIDDEN)


def pictures(*shape):
  return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def torched(x):
  """[b h w c] -> [b c h w]."""
  return torch.tensor(np.asarray(x)).permute(0, 3, 1, 2)


def ours(x):
  return x.detach().permute(0, 2, 3, 1).numpy()


def close(a, b):
  """Within 1e-5 of the peer's largest number."""
  b = b.detach().numpy() if isinstance(b, torch.Tensor) else np.asarray(b)
  np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * max(1, abs(b).max()))


def moved(module, scale=0.2):
  """Random parameters, near those that it starts with."""
  torch.manual_seed(0)
  with torch.no_grad():
    for p in module.parameters():
      p.add_(scale * torch.randn_like(p))
  return module


def network(module, sign=1):
  """Their network's weights; t of each pair (t, s) by sign."""
  convs = [layer for layer in module.net if isinstance(layer, torch.nn.Conv2d)]
  kernels = [c.weight.detach().permute(2, 3, 1, 0).numpy() for c in convs]
  biases = [c.bias.detach().numpy() for c in convs]
  signs = np.ones(len(biases[-1]), np.float32)
  signs[::2] = sign
  return {
    "in": {"kernel": kernels[0], "bias": biases[0]},
    "middle": {"kernel": kernels[1][0, 0], "bias": biases[1]},
    "out": {"kernel": kernels[2] * signs, "bias": biases[2] * signs},
  }


def check(bijector, params, x, there, back):
  """z, the log-determinant, its gradient and the inverse, against theirs."""

  @jax.jit
  def measure(params, x):
    def total(x):
      z, logdet = bijector.forward(params, x, COND)
      return (z**2).sum() + logdet.sum(), (z, logdet)

    slope, (z, logdet) = jax.grad(total, has_aux=True)(x)
    return z, logdet, slope, bijector.inverse(params, z, COND)

  z, logdet, slope, again = measure(params, jnp.asarray(x))
  given = torched(x).requires_grad_()
  found, own = there(given)
  ((found**2).sum() + own.sum() * len(x) / own.numel()).backward()
  close(z, ours(found))
  close(logdet, own.expand(len(x)))
  close(slope, ours(given.grad))
  close(again, ours(back(found.detach())[0]))
  close(again, x)


@pytest.mark.parametrize("channels", [4, 5])
@pytest.mark.parametrize(
  ("kind", "scale_map", "sign"),
  [("glow", "sigmoid", -1), ("exp", "exp", 1), ("additive", None, -1)],
)
def test_couplings(kind, scale_map, sign, channels):
  """Their way to noise is `inverse`, where t is taken away."""
  first, second = channels - channels // 2, channels // 2
  size = 1 if kind == "additive" else 2
  own = ConvNet2d((first, HIDDEN, HIDDEN, size * second), (3, 1, 3))
  block = theirs.AffineCouplingBlock(
    moved(own), scale=kind != "additive", scale_map=scale_map or "exp"
  )
  g = elementwise.additive() if kind == "additive" else elementwise.affine(kind)
  params = network(own, sign)
  if kind == "additive":
    params["out"] = {name: -a for name, a in network(own)["out"].items()}
  check(
    coupling(g, net),
    params,
    pictures(3, 4, 4, channels),
    block.inverse,
    block.forward,
  )


def test_masked_coupling():
  """RealNVP's, with the bound of ours on the logarithm of the factor."""
  own = moved(ConvNet2d((3, HIDDEN, HIDDEN, 6), (3, 1, 3)))

  class Shift(torch.nn.Module):
    def forward(self, x):
      return own(x)[:, ::2]

  class Scale(torch.nn.Module):
    def forward(self, x):
      limit = elementwise.LIMIT
      return limit * torch.tanh(own(x)[:, 1::2] / limit)

  mask = ((np.arange(4)[:, None] + np.arange(4)) % 2).astype(np.float32)[..., None]
  peer = theirs.MaskedAffineFlow(torch.tensor(mask[..., 0])[None], Shift(), Scale())
  bijector = masked_coupling(elementwise.affine("tanh"), net, jnp.asarray(mask))
  x = pictures(3, 4, 4, 3)
  check(bijector, network(own), x, peer.forward, peer.inverse)


def step(i):
  return chain(
    layers.actnorm(), layers.conv_1x1(i), coupling(elementwise.affine("glow"), net)
  )


def glow_step(block, i):
  """The parameters of their block; its P and signs S become ours, which are fixed.

  P L (U + S D) is P S (S L S) (S U + D).
  """
  affine, conv, norm = block.flows
  count = len(conv.log_S)
  order = np.array(layers.permutation(i, count))
  with torch.no_grad():
    conv.L.mul_(conv.sign_S[:, None] * conv.sign_S)
    conv.U.mul_(conv.sign_S[:, None])
  conv.sign_S.fill_(1)
  conv.P.copy_(torch.eye(count)[torch.tensor(order)])
  norm.data_dep_init_done.fill_(1)
  values = lambda p: p.detach().numpy()  # noqa: E731
  return (
    {"shift": -values(norm.t).ravel(), "log_scale": -values(norm.s).ravel()},
    {
      "lower": values(conv.L),
      "upper": values(conv.U),
      "log_diagonal": values(conv.log_S),
    },
    network(affine.flows[1].param_map, -1),
  )


def test_a_level_of_glow():
  """Squeezed pixels, three steps in a scan; and what of L and U does not count.

  Of a squeezed pixel they have the places of a channel side by side, we the channels
  of a place.
  """
  torch.manual_seed(0)
  blocks = [moved(theirs.GlowBlock(12, HIDDEN), 0.05) for _ in range(STEPS)]
  rows = [glow_step(block, i) for i, block in enumerate(blocks)]
  params = ((), jax.tree.map(lambda *a: np.stack(a), *rows), ())
  order = jnp.arange(12).reshape(4, 3).T.ravel()
  level = squeezed(
    chain(
      layers.permute(order),
      repeat(step, STEPS, reversible=True),
      layers.permute(jnp.argsort(order)),
    )
  )
  squeeze = theirs.Squeeze()

  def there(x):
    logdet = torch.zeros(len(x))
    x, _ = squeeze.inverse(x)
    for block in blocks:
      x, more = block.inverse(x)
      logdet = logdet + more
    return squeeze.forward(x)[0], logdet

  def back(z):
    z, _ = squeeze.inverse(z)
    for block in blocks[::-1]:
      z, _ = block.forward(z)
    return squeeze.forward(z)

  check(level, params, pictures(3, 4, 6, 3), there, back)


def test_actnorm_begins_alike():
  """They divide by n - 1."""
  x = 3 + 2 * pictures(4, 3, 3, 5)
  peer = theirs.ActNorm((5, 1, 1))
  peer.inverse(torched(x))
  params, _ = layers.actnorm().init(jax.random.key(0), jnp.asarray(x), COND)
  n = 4 * 3 * 3
  close(-params["shift"], peer.t.ravel())
  close(jnp.exp(-params["log_scale"]) * np.sqrt(n / (n - 1)), peer.s.exp().ravel())


def spline_inputs():
  rng = np.random.default_rng(0)
  x = np.concatenate([rng.uniform(-3, 3, 400), [-9, -3.01, 3.01, 9]])
  return x, rng.normal(size=(len(x), 23))


def our_spline(x, raw, **least):
  g = elementwise.rational_quadratic(8, 3.0, **least)
  x, raw = x[:, None, None, None], raw[:, None, None]
  z, logs = g.forward(x, raw)
  return [np.asarray(a).ravel() for a in (z, logs, g.inverse(z, raw))]


def test_splines_of_the_paper():
  """normflows has the code of Durkan et al., where raw slopes of 0 are not 1."""
  x, raw = spline_inputs()
  with jax.enable_x64(True):
    found = our_spline(jnp.asarray(x), jnp.asarray(raw))
  raw[:, 16:] += np.log(np.expm1(1 - 1e-3))
  parts = torch.tensor(raw).split([8, 8, 7], dim=-1)
  z, logs = unconstrained_rational_quadratic_spline(
    torch.tensor(x), *parts, tail_bound=3.0
  )
  back, _ = unconstrained_rational_quadratic_spline(
    z, *parts, inverse=True, tail_bound=3.0
  )
  for own, peer in zip(found, (z, logs, back), strict=True):
    close(own, peer)


def test_splines_of_zuko():
  """It bounds raw numbers, softly, in place of bins and slopes."""
  x, raw = spline_inputs()
  widths, heights, slopes = np.split(raw, [8, 16], axis=-1)
  log_least = np.log(1e-3)
  peer = MonotonicRQSTransform(*map(torch.tensor, (widths, heights, slopes)), bound=3.0)
  widths, heights = (a / (1 + abs(2 * a / log_least)) for a in (widths, heights))
  slopes = np.exp(slopes / (1 + abs(slopes / log_least)))
  slopes = np.log(np.expm1(slopes) / np.expm1(1))  # softplus and the offset undone
  raw = np.concatenate([widths, heights, slopes], axis=-1)
  with jax.enable_x64(True):
    found = our_spline(
      jnp.asarray(x), jnp.asarray(raw), min_width=0.0, min_height=0.0, min_slope=0.0
    )
  z, logs = peer.call_and_ladj(torch.tensor(x))
  for own, peers in zip(found, (z, logs, peer.inv(z)), strict=True):
    close(own, peers)
