"""Expectation maximisation for a mixture of factor analysers with words.

Component k of weight pi_k draws z ~ N(0, I_r), then x = W_k z + mu_k + e with
e ~ N(0, diag(psi_k)), and words independently of x and of each other. So x is
N(mu_k, W_k W_k^T + diag(psi_k)); rank r = 0 is a mixture of diagonal Gaussians.
Ghahramani & Hinton 1996 (CRG-TR-96-1), section 3; for images Richardson & Weiss 2018
(arXiv:1805.12462).

Appending 1 to z makes the mean one more column: x = F [z, 1] + e, F = [W, mu].
"""

import functools
import math

import jax
import jax.numpy as jnp
from flax import struct
from jax.scipy.linalg import solve_triangular
from jax.scipy.special import logsumexp
from jaxtyping import Array, Bool, Float, Key, UInt32

from core.family import example_keys

# Without it, accelerators multiply in fewer bits than small variances need.
einsum = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)

# Below such a share of the rows, a component has no rows to learn from.
EMPTY = 1e-12


class Mixture(struct.PyTreeNode):
  """The parameters of k components, of d numbers, s = r + 1 and v words."""

  weight: Float[Array, " k"]  # pi, sums to 1
  factors: Float[Array, "k d s"]  # [W, mu]
  noise: Float[Array, "k d"]  # psi
  words: Float[Array, "k v"]  # log p(word | k)


class Statistics(struct.PyTreeNode):
  """Expected sums over rows, weighted by the responsibilities q = p(k | x, y)."""

  zz: Float[Array, "k s s"]  # q E[[z, 1] [z, 1]^T]; its last entry is the sum of q
  xz: Float[Array, "k d s"]  # q x E[z, 1]^T
  xx: Float[Array, "k d"]  # q x^2
  words: Float[Array, "k v"]  # q times the count of each word


def log_density(
  mixture: Mixture, x: Float[Array, "b d"]
) -> tuple[Float[Array, "k b"], Float[Array, "k b r"]]:
  """log p(x | k), and E[z | x, k].

  With C = W W^T + Psi and A = I + W^T Psi^-1 W (r x r) the determinant lemma gives
  log |C| = log |Psi| + log |A|, and Woodbury's identity E[z] = A^-1 W^T Psi^-1 (x - mu)
  and (x - mu)^T C^-1 (x - mu) = |x - mu - W E[z]|^2_Psi^-1 + |E[z]|^2. No d x d matrix
  is made. Written so, the square is a sum of positive terms: the usual difference loses
  all digits in float32 where psi is small.
  """
  loadings, noise = mixture.factors[..., :-1], mixture.noise[..., None]
  log_det_a, cov = latent(mixture)
  log_det = jnp.sum(jnp.log(mixture.noise), -1) + log_det_a
  gain = einsum("kdr,krs->kds", loadings / noise, cov)

  # One component after the other: [k, b, d] would not fit.
  def one(part: tuple) -> tuple[Float[Array, " b"], Float[Array, "b r"]]:
    factors, noise, gain = part
    off = x - factors[:, -1]
    z = einsum("bd,dr->br", off, gain)
    rest = off - einsum("br,dr->bd", z, factors[:, :-1])
    return jnp.sum(rest**2 / noise, -1) + jnp.sum(z**2, -1), z

  square, z = jax.lax.map(one, (mixture.factors, mixture.noise, gain))
  constant = x.shape[-1] * math.log(2 * math.pi)
  return -0.5 * (constant + log_det[:, None] + square), z


def latent(
  mixture: Mixture,
) -> tuple[Float[Array, " k"], Float[Array, "k r r"]]:
  """log |A| and A^-1 = Cov[z | x, k], the same for every x, of A = I + W^T Psi^-1 W.

  By the triangle R of [Psi^-1/2 W; I] = Q R, so that A = R^T R. A itself has the square
  of its condition, and in float32 soon no Cholesky root.
  """
  scaled = mixture.factors[..., :-1] / jnp.sqrt(mixture.noise)[..., None]
  identity = jnp.eye(scaled.shape[-1])
  stack = lambda part: jnp.concatenate([part, identity])  # noqa: E731
  root = jnp.linalg.qr(jax.vmap(stack)(scaled), mode="r")
  inverse = jax.vmap(lambda r: solve_triangular(r, identity))(root)
  diagonal = jnp.abs(jnp.diagonal(root, axis1=1, axis2=2))
  return 2 * jnp.sum(jnp.log(diagonal), -1), einsum("kqr,ksr->kqs", inverse, inverse)


def log_evidence(mixture: Mixture, words: Float[Array, "b v"]) -> Float[Array, "k b"]:
  """log p(k) p(y | k) of counted words y: log pi_k + sum_v y_v log p(v | k)."""
  weight = jnp.log(jnp.maximum(mixture.weight, EMPTY))
  return weight[:, None] + einsum("kv,bv->kb", mixture.words, words)


def log_joint(
  mixture: Mixture, x: Float[Array, "b d"], words: Float[Array, "b v"]
) -> Float[Array, " b"]:
  """log p(x, y) = log sum_k p(k) p(y | k) p(x | k)."""
  joint = log_density(mixture, x)[0] + log_evidence(mixture, words)
  return logsumexp(joint, axis=0)


def log_conditional(
  mixture: Mixture, x: Float[Array, "b d"], words: Float[Array, "b v"]
) -> Float[Array, " b"]:
  """log p(x | y) = log p(x, y) - log p(y), with p(y) = sum_k p(k) p(y | k)."""
  log_y = logsumexp(log_evidence(mixture, words), axis=0)
  return log_joint(mixture, x, words) - log_y


def expect(
  mixture: Mixture,
  x: Float[Array, "b d"],
  words: Float[Array, "b v"],
  mask: Bool[Array, " b"],
) -> tuple[Statistics, Float[Array, " b"]]:
  """The E step: sums over the unmasked rows, and log p(x, y) of each row.

  E[z z^T] = Cov[z] + E[z] E[z]^T (Ghahramani & Hinton 1996, equations 2 and 4).
  """
  log_p, z = log_density(mixture, x)
  joint = log_p + log_evidence(mixture, words)
  total = logsumexp(joint, axis=0)
  q = jnp.where(mask, jnp.exp(joint - total), 0.0)
  z = jnp.concatenate([z, jnp.ones((*q.shape, 1))], -1)
  qz = q[..., None] * z
  cov = jnp.pad(latent(mixture)[1], ((0, 0), (0, 1), (0, 1)))
  statistics = Statistics(
    zz=einsum("kbr,kbs->krs", qz, z) + q.sum(1)[:, None, None] * cov,
    xz=einsum("bd,kbs->kds", x, qz),
    xx=einsum("bd,kb->kd", x**2, q),
    words=einsum("kb,bv->kv", q, words),
  )
  return statistics, total


def maximise(
  statistics: Statistics,
  before: Mixture,
  *,
  floor: float | Float[Array, ""],
  smoothing: float | Float[Array, ""],
) -> tuple[Mixture, Statistics]:
  """The M step: the parameters that make the expected log-likelihood greatest.

  F = xz zz^-1, psi = (xx - diag(F xz^T)) / n, pi = n / sum n with n the sum of q
  (Ghahramani & Hinton 1996, equations 5 and 6, with the mean as one more column and the
  rows weighted by q), and p(v | k) the share of word v.

  Then z is measured anew, to have mean 0 and covariance 1 over the rows: PX-EM (Liu,
  Rubin & Wu 1998, Biometrika 85), which like EM never lowers the likelihood. Many
  pixels tell z almost exactly, whatever its scale, and EM alone hardly ever finds the
  one at which z is N(0, I), as drawing takes it to be. With zz = n B B^T it is
  F = xz B^-T / n, and xz B^-T and B^-1 zz B^-T are the statistics of the new z.

  Args:
    statistics: of any scale: sums or means over rows.
    before: what a component without rows keeps.
    floor: least psi. The greatest likelihood under such a bound has max(psi, floor).
    smoothing: added to the count of every word (the mode under a symmetric Dirichlet
      prior with parameter 1 + smoothing), in the statistics' scale. Above 0.
  """
  count = statistics.zz[:, -1, -1]
  some = (count > EMPTY)[:, None]
  n = jnp.where(some, count[:, None], 1.0)[..., None]
  basis = jax.vmap(square_root)(statistics.zz / n)
  inverse = jnp.linalg.inv(basis)
  xz = einsum("kds,kts->kdt", statistics.xz, inverse)
  zz = einsum("kpq,kqs,kts->kpt", inverse, statistics.zz, inverse)
  factors = xz / n
  noise = jnp.maximum(statistics.xx / n[..., 0] - jnp.sum(factors**2, -1), floor)
  new = Mixture(
    weight=count / jnp.sum(count),
    factors=jnp.where(some[..., None], factors, before.factors),
    noise=jnp.where(some, noise, before.noise),
    words=jax.nn.log_softmax(jnp.log(statistics.words + smoothing)),
  )
  return new, statistics.replace(
    xz=jnp.where(some[..., None], xz, statistics.xz),
    zz=jnp.where(some[..., None], zz, statistics.zz),
  )


def square_root(second: Float[Array, "s s"]) -> Float[Array, "s s"]:
  """B = [[L, m], [0, 1]] with B B^T the second moments of [z, 1]; L L^T = Cov[z]."""
  mean = second[:-1, -1:]
  # Few rows leave directions without any variance.
  jitter = 1e-6 * jnp.eye(len(mean))
  root = jnp.linalg.cholesky(second[:-1, :-1] - mean * mean.T + jitter)
  return jnp.pad(jnp.concatenate([root, mean], 1), ((0, 1), (0, 0))).at[-1, -1].set(1.0)


def start(
  rng: Key[Array, ""],
  x: Float[Array, "b d"],
  ids: UInt32[Array, " b"],
  mask: Bool[Array, " b"],
  sizes: tuple[int, int, int],
  floor: float,
) -> Mixture:
  """Even components around different rows of x, all with the variance of the rows.

  Half of the variance is the noise's; the other half is that of loadings W drawn at
  random, since from W = 0 EM never moves.

  Args:
    rng: key of the draws. That of a row comes from its id.
    x: data; with fewer rows than components, rows are taken again.
    ids: of the rows.
    mask: which rows count.
    sizes: how many components, the rank and how many words.
    floor: least psi.
  """
  components, rank, kinds = sizes
  rows_key, loadings_key = jax.random.split(rng)
  order = jax.vmap(jax.random.uniform)(example_keys(rows_key, ids))
  chosen = jnp.resize(jnp.argsort(jnp.where(mask, order, 2.0)), components)
  mean = x[chosen]
  share = mask[:, None] / jnp.maximum(jnp.sum(mask), 1)
  variance = jnp.sum(share * (x - jnp.sum(share * x, 0)) ** 2, 0)
  variance = jnp.maximum(variance / (2 if rank else 1), floor)
  loadings = jax.random.normal(loadings_key, (*mean.shape, rank)) / max(rank, 1) ** 0.5
  loadings *= jnp.sqrt(variance)[:, None]
  return Mixture(
    weight=jnp.full(components, 1 / components, x.dtype),
    factors=jnp.concatenate([loadings, mean[..., None]], -1),
    noise=jnp.broadcast_to(variance, mean.shape),
    words=jnp.full((components, kinds), -math.log(kinds), x.dtype),
  )


def expected(mixture: Mixture) -> Statistics:
  """The statistics of a row that the mixture itself draws, but for its words.

  Where stepwise EM starts: `maximise` of them gives back the mixture, with even words.
  """
  weight, (*_, size) = mixture.weight, mixture.factors.shape
  xx = jnp.sum(mixture.factors**2, -1) + mixture.noise
  return Statistics(
    zz=weight[:, None, None] * jnp.eye(size),
    xz=weight[:, None, None] * mixture.factors,
    xx=weight[:, None] * xx,
    words=jnp.zeros_like(mixture.words),
  )
