"""Principal components: a linear autoencoder, whose codes are a short row of tokens.

x is mean + basis c with independent c_i ~ N(0, variance_i), the directions in which the
data vary most, in falling order. unCLIP's autoregressive prior (Ramesh et al. 2022,
arXiv:2204.06125, section 2.2) draws an image embedding so: a token for each component.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from core import checks
from core.errors import UserError
from core.family import Batch, Codec, Family, Metrics, Samples, Spec, State, sample_keys
from core.step import count_skipped, in_parts, keep_if
from text.cond import Cond

NAME = "generator"


class Principal(struct.PyTreeNode):
  """What is known of the data: the `k` directions in which they vary most.

  Attributes:
    mean: of the data.
    basis: orthonormal columns, [d, k].
    variance: of the data along each, falling.
  """

  mean: Float[Array, " d"]
  basis: Float[Array, "d k"]
  variance: Float[Array, " k"]


class Moments(NamedTuple):
  """Of the rows seen so far: how many, the mean, the sum of (x - mean)(x - mean)^T.

  Chan et al. 1979 ("Updating formulae and a pairwise algorithm for computing sample
  variances") join two of them without loss of digits: see `joined`.
  """

  count: Float[Array, ""]
  mean: Float[Array, " d"]
  scatter: Float[Array, "d d"]


def make(config: ConfigDict, spec: Spec) -> Family:
  """The family of `config.pca`; it is trained once all data were seen once.

  A step adds a batch to mean and covariance, exactly, and takes the covariance's
  `components` largest eigenvectors. The loss is |x - x_hat|^2 / |x - mean|^2 of the
  batch, the share that the components leave over.

  Codecs: `latents`, the components over their deviation, of mean 0 and variance 1; and
  `tokens`, the cell of `buckets` that each is in. The cells are equally likely under
  N(0, 1), and a token stands for its cell's median:
  token = floor(buckets Phi(c)), c = Phi^-1((token + 1/2) / buckets).
  (unCLIP does not say where its 1,024 cells lie.) Samples are draws of the Gaussian.

  Raises:
    UserError: more components than numbers, or settings that it cannot take.
  """
  settings, dims = config.pca, math.prod(spec.shape)
  checks.refuse_small_pictures(config)
  if spec.vocab_size:
    raise UserError("vae.pca reads numbers, not tokens: set data.latents to 'latents'.")
  if settings.components > dims:
    raise UserError(
      f"pca.components={settings.components} is more than the {dims} numbers of an"
      f" example; set it to {dims} or less."
    )
  k, buckets = settings.components, settings.buckets

  def rows(x: Float[Array, "b ..."]) -> Float[Array, "b d"]:
    return jnp.asarray(x).reshape(len(x), dims)

  def init(rng: Array, batch: Batch) -> State:
    start = Principal(jnp.zeros(dims), jnp.eye(dims, k), jnp.ones(k))
    moments = Moments(jnp.zeros(()), jnp.zeros(dims), jnp.zeros((dims, dims)))
    return State(
      step=jnp.zeros((), jnp.int32),
      params={NAME: start},
      opt={NAME: moments},
      ema={NAME: jax.tree.map(jnp.array, start)},
      extra={"skipped": jnp.zeros(2, jnp.int32)},
    )

  def sums(mean: Array, own: Principal, batch: Batch) -> tuple[Array, Array, Metrics]:
    x, mask = rows(batch["x"]) - mean, batch["_mask"].astype(jnp.float32)
    lost = left_over(own, rows(batch["x"]))
    metrics = {"loss": jnp.sum(mask * lost), "_count": jnp.sum(mask)}
    return mask @ x, (mask[:, None] * x).T @ x, metrics

  def step(
    state: State, batch: Batch, rng: Array, axis: str | None = None
  ) -> tuple[State, Metrics]:
    own, before = state.params[NAME], state.opt[NAME]
    # Sums around what is known lose fewer digits than those around 0.
    each = functools.partial(sums, before.mean, own)
    found = in_parts(each, batch, config.optim.microbatches)
    if axis is not None:
      found = jax.lax.psum(found, axis)
    total, square, metrics = found
    count = jnp.maximum(metrics.pop("_count"), 1)
    offset = total / count
    new = Moments(
      count, before.mean + offset, square - count * jnp.outer(offset, offset)
    )
    moments = joined(before, new)
    principal = components(moments, k)
    good = jnp.isfinite(jnp.trace(moments.scatter))
    moments, principal = keep_if(good, (moments, principal), (before, own))
    skipped = count_skipped(state.extra["skipped"], good)
    metrics = {name: value / count for name, value in metrics.items()}
    metrics |= {"skipped": skipped[0], "skipped_in_a_row": skipped[1]}
    metrics["explained"] = jnp.sum(principal.variance) / jnp.maximum(
      jnp.trace(moments.scatter) / moments.count, 1e-12
    )
    state = State(
      step=state.step + 1,
      params={NAME: principal},
      opt={NAME: moments},
      ema={NAME: jax.tree.map(jnp.array, principal)},
      extra={"skipped": skipped},
    )
    return state, metrics

  def encode(state: State, x: Array) -> Float[Array, "b 1 k 1"]:
    return coordinates(state.ema[NAME], rows(x))[:, None, :, None]

  def decode(state: State, c: Array) -> Array:
    x = restored(state.ema[NAME], c.reshape(len(c), k))
    return x.reshape(len(c), *spec.shape)

  def tokens(state: State, x: Array) -> Int[Array, "b 1 k 1"]:
    return to_tokens(encode(state, x), buckets)

  def sample(state: State, rng: Array, cond: Cond, n: int) -> Samples:
    keys = sample_keys(rng, n)
    c = jax.vmap(lambda key: jax.random.normal(key, (1, k, 1)))(keys)
    x = decode(state, c)
    mean = decode(state, jnp.zeros_like(c))
    share = jnp.linspace(1.0, 0.0, config.sample.frames)[::-1]
    share = share.reshape(-1, *(1,) * x.ndim)
    return Samples(x, mean + share * (x - mean), jnp.ones(n, jnp.int32))

  def loss(state: State, batch: Batch, rng: Array) -> Float[Array, " b"]:
    return left_over(state.ema[NAME], rows(batch["x"]))

  shape = (1, k, 1)
  return Family(
    init=init,
    step=step,
    sample=sample,
    evals={"loss": loss},
    codecs={
      "latents": Codec(Spec(shape, pixels=False), encode, decode),
      "tokens": Codec(
        Spec(shape, jnp.int32, buckets, pixels=False),
        tokens,
        lambda state, found: decode(state, from_tokens(found, buckets)),
      ),
    },
    averages=False,
  )


def joined(a: Moments, b: Moments) -> Moments:
  """The moments of all rows of both (Chan et al. 1979, eq. 2.1)."""
  count = a.count + b.count
  apart = b.mean - a.mean
  scatter = a.scatter + b.scatter
  scatter += jnp.outer(apart, apart) * a.count * b.count / count
  return Moments(count, a.mean + apart * b.count / count, scatter)


def components(moments: Moments, k: int) -> Principal:
  """The k largest eigenvectors of the covariance, scatter / count."""
  values, vectors = jnp.linalg.eigh(moments.scatter / moments.count)
  variance = jnp.maximum(values[::-1][:k], 1e-12)
  return Principal(moments.mean, vectors[:, ::-1][:, :k], variance)


def coordinates(own: Principal, x: Float[Array, "b d"]) -> Float[Array, "b k"]:
  """Along each component, in deviations."""
  return (x - own.mean) @ own.basis / jnp.sqrt(own.variance)


def restored(own: Principal, c: Float[Array, "b k"]) -> Float[Array, "b d"]:
  """mean + basis (sqrt(variance) c)."""
  return own.mean + (c * jnp.sqrt(own.variance)) @ own.basis.T


def left_over(own: Principal, x: Float[Array, "b d"]) -> Float[Array, " b"]:
  """|x - x_hat|^2 / |x - mean|^2."""
  away = x - own.mean
  rest = away - away @ own.basis @ own.basis.T
  return jnp.sum(rest**2, -1) / jnp.maximum(jnp.sum(away**2, -1), 1e-12)


def to_tokens(c: Float[Array, "..."], buckets: int) -> Int[Array, "..."]:
  """The cell of each of N(0, 1)'s equally likely ones: floor(buckets Phi(c))."""
  cell = jnp.floor(buckets * jax.scipy.stats.norm.cdf(c)).astype(jnp.int32)
  return jnp.clip(cell, 0, buckets - 1)


def from_tokens(tokens: Int[Array, "..."], buckets: int) -> Float[Array, "..."]:
  """The median of each cell: Phi^-1((token + 1/2) / buckets)."""
  return jax.scipy.stats.norm.ppf((tokens + 0.5) / buckets)
