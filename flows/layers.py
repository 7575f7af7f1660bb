"""Bijectors that couple nothing: scales, mixings of channels, permutations, the logit.

What a layer draws and training leaves alone, such as a permutation, is no parameter,
for all parameters are trained: it is drawn again from the layer's index, which `repeat`
gives, at every call.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from core.levels import BIN, total
from flows.bijector import Bijector, Image, Nats, single
from text.cond import Cond

SEED = 0  # of all permutations
LEAST = 1e-5  # a smaller deviation is that of a constant
HALF = BIN / 2  # of a grey level


def same(x: Image, value: Float[Array, ""]) -> Nats:
  """`value` for each example."""
  return jnp.full(len(x), value, x.dtype)


def actnorm() -> Bijector:
  """z = (x + shift) exp(log_scale), for each channel.

  Kingma & Dhariwal 2018 (arXiv:1807.03039), section 3.1: at first z has mean 0 and
  variance 1 over the batch that `init` sees. A constant channel keeps its scale.
  """

  def init(rng: Array, x: Image, cond: Cond) -> PyTree:
    std = x.std((0, 1, 2))
    log_scale = -jnp.log(jnp.where(std > LEAST, std, 1))
    return {"shift": -x.mean((0, 1, 2)), "log_scale": log_scale}

  def forward(params: PyTree, x: Image, cond: Cond) -> tuple[Image, Nats]:
    z = (x + params["shift"]) * jnp.exp(params["log_scale"])
    return z, same(x, math.prod(x.shape[1:3]) * params["log_scale"].sum())

  def inverse(params: PyTree, z: Image, cond: Cond) -> Image:
    return z * jnp.exp(-params["log_scale"]) - params["shift"]

  return single(init, forward, inverse)


def conv_1x1(i: int | Int[Array, ""]) -> Bijector:
  """z = P L U x at every pixel, a learned mixing of the channels.

  Kingma & Dhariwal 2018, section 3.2: P is a fixed permutation, L is lower triangular
  with ones on its diagonal, U upper triangular with a positive diagonal, given by its
  logarithm. At first the product is a random rotation or reflection.

  There P and the signs of the diagonal come from a decomposition R = P' L' S U of a
  random rotation, with S a diagonal of signs. Here L = S L' S, so L U = S P'^T R, and P
  may be any permutation: the product is orthogonal still.

  Args:
    i: which permutation.
  """

  def init(rng: Array, x: Image, cond: Cond) -> PyTree:
    channels = x.shape[-1]
    rotation = jax.random.orthogonal(rng, channels, dtype=x.dtype)
    _, lower, upper = jax.scipy.linalg.lu(rotation)
    signs = jnp.sign(jnp.diag(upper))
    return {
      "lower": jnp.tril(signs[:, None] * lower * signs, -1),
      "upper": jnp.triu(signs[:, None] * upper, 1),
      "log_diagonal": jnp.log(abs(jnp.diag(upper))),
    }

  def triangles(params: PyTree) -> tuple[Array, Array]:
    """(L, U); what training did to the other halves does not count."""
    one = jnp.eye(len(params["log_diagonal"]))
    diagonal = one * jnp.exp(params["log_diagonal"])
    return jnp.tril(params["lower"], -1) + one, jnp.triu(params["upper"], 1) + diagonal

  def times(x: Image, matrix: Float[Array, "c c"]) -> Image:
    """In full float32, which accelerators do not use unless told."""
    return jnp.einsum("bhwc,dc->bhwd", x, matrix, precision="highest")

  def forward(params: PyTree, x: Image, cond: Cond) -> tuple[Image, Nats]:
    lower, upper = triangles(params)
    order = permutation(i, x.shape[-1])
    matrix = jnp.matmul(lower, upper, precision="highest")[order]
    logdet = math.prod(x.shape[1:3]) * params["log_diagonal"].sum()
    return times(x, matrix), same(x, logdet)

  def inverse(params: PyTree, z: Image, cond: Cond) -> Image:
    lower, upper = triangles(params)
    solve = jax.scipy.linalg.solve_triangular
    half = solve(lower, jnp.eye(len(lower)), lower=True, unit_diagonal=True)
    back = jnp.argsort(permutation(i, z.shape[-1]))
    return times(z[..., back], solve(upper, half))

  return single(init, forward, inverse)


def permutation(i: int | Int[Array, ""], count: int) -> Int[Array, " count"]:
  """The i-th random order of `count` things."""
  key = jax.random.fold_in(jax.random.key(SEED, impl="threefry2x32"), i)
  return jnp.argsort(jax.random.bits(key, count))


def permute(order: Int[Array, " c"]) -> Bijector:
  """Channel k of z is channel order[k] of x."""
  return fixed(lambda x: x[..., order], lambda z: z[..., jnp.argsort(order)])


def shuffle(i: int | Int[Array, ""]) -> Bijector:
  """The i-th random order of the channels; compared in Glow, figure 3."""
  return fixed(
    lambda x: x[..., permutation(i, x.shape[-1])],
    lambda z: z[..., jnp.argsort(permutation(i, z.shape[-1]))],
  )


def reverse() -> Bijector:
  """The channels in reversed order: Glow, figure 3, as in RealNVP."""
  return fixed(lambda x: x[..., ::-1], lambda z: z[..., ::-1])


def permute_all(order: Int[Array, " n"]) -> Bijector:
  """Number k of z is number order[k] of x, of all h w c numbers of a picture."""

  def reorder(x: Image, order: Array) -> Image:
    return x.reshape(len(x), -1)[:, order].reshape(x.shape)

  return fixed(lambda x: reorder(x, order), lambda z: reorder(z, jnp.argsort(order)))


def logit(edge: float = 0.05) -> Bijector:
  """z = log(p / (1 - p)), p = edge + (1 - 2 edge) y, for pixels with noise.

  y in [0, 1] is x from [-1 - 1/255, 1 + 1/255], half a level beyond black and white.
  Dinh et al. 2017 (arXiv:1605.08803), section 4.1, write edge + (1 - edge) y, which has
  no logit at y = 1; this is what their code does.
  """
  width = 2 + 2 * HALF
  log_slope = math.log((1 - 2 * edge) / width)

  def forward(params: PyTree, x: Image, cond: Cond) -> tuple[Image, Nats]:
    p = edge + (1 - 2 * edge) * (x + 1 + HALF) / width
    logs = log_slope - jnp.log(p) - jnp.log1p(-p)
    return jnp.log(p) - jnp.log1p(-p), total(logs)

  def inverse(params: PyTree, z: Image, cond: Cond) -> Image:
    y = (jax.nn.sigmoid(z) - edge) / (1 - 2 * edge)
    return y * width - 1 - HALF

  return single(lambda *_: (), forward, inverse)


def fixed(
  forward: Callable[[Image], Image], inverse: Callable[[Image], Image]
) -> Bijector:
  """A bijector without parameters or change of volume."""
  return single(
    lambda *_: (),
    lambda params, x, cond: (forward(x), same(x, jnp.zeros(()))),
    lambda params, z, cond: inverse(z),
  )
