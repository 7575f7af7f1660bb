"""Monotone maps of single numbers, for couplings and priors.

Of the `raw` numbers that a network gives, those of one number lie side by side, as in
Glow's code: [b h w c*size] is (c, size) at each place. Zeros give the identity, but for
Glow's factor of 0.88, so that couplings start there when the network's last layer is 0.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from core.errors import UserError, unknown
from flows.bijector import Image
from flows.coupling import Elementwise, Raw

LIMIT = 2.0  # of the logarithm of RealNVP's factor
LEAST = 0.3  # of Glow's factor: the inverse divides by it, at every coupling

LOG_FACTORS = {
  "glow": lambda s: jnp.maximum(jax.nn.log_sigmoid(s + 2), math.log(LEAST)),
  "tanh": lambda s: LIMIT * jnp.tanh(s / LIMIT),
  "jet": lambda s: jax.nn.log_sigmoid(s) + math.log(2),
  "exp": lambda s: -s,
}


def additive() -> Elementwise:
  """z = x + t: NICE (Dinh et al. 2015, arXiv:1410.8516), section 3.2."""
  return Elementwise(1, lambda x, t: (x + t, jnp.zeros_like(x)), lambda z, t: z - t)


def affine(kind: str) -> Elementwise:
  """An affine map by raw = (t, s).

  glow: z = (x + t) max(sigmoid(s + 2), LEAST); Kingma & Dhariwal 2018 have no least
    factor in their code, and then some draws explode (Behrmann et al. 2021,
    arXiv:2006.09347); what it costs is measured in docs/studies/flows.md.
  tanh: z = x exp(a) + t, a = LIMIT tanh(s / LIMIT): RealNVP (Dinh et al. 2017,
    arXiv:1605.08803), eq. 5 and section 4.1, where the limit is learned.
  jet: z = (x + t) 2 sigmoid(s), as in Kolesnikov et al. 2024 (arXiv:2412.15129).
  exp: z = (x - t) exp(-s), so z ~ N(0, 1) if x ~ N(t, exp(s)^2).

  Raises:
    UserError: unknown kind.
  """
  if kind not in LOG_FACTORS:
    raise unknown("the kind of affine map", kind, LOG_FACTORS)

  def parts(x: Image, raw: Raw) -> tuple[Image, Image, Image]:
    """(a, log f, b): z = (x + a) f + b."""
    t, s = jnp.moveaxis(raw.reshape(*x.shape, 2), -1, 0)
    none = jnp.zeros_like(t)
    before, after = {"tanh": (none, t), "exp": (-t, none)}.get(kind, (t, none))
    return before, LOG_FACTORS[kind](s), after

  def forward(x: Image, raw: Raw) -> tuple[Image, Image]:
    before, log, after = parts(x, raw)
    return (x + before) * jnp.exp(log) + after, log

  def inverse(z: Image, raw: Raw) -> Image:
    before, log, after = parts(z, raw)
    return (z - after) * jnp.exp(-log) - before

  return Elementwise(2, forward, inverse)


def rational_quadratic(
  bins: int,
  bound: float,
  min_width: float = 1e-3,
  min_height: float = 1e-3,
  min_slope: float = 1e-3,
) -> Elementwise:
  """Splines of Durkan et al. 2019 (arXiv:1906.04032), section 3.1, on [-bound, bound].

  In each bin z is a ratio of two quadratics of x; outside it is x, with slope 1 at the
  ends, so raw = (widths, heights, inner slopes) is 3 bins - 1 numbers.

  Args:
    bins: how many.
    bound: where the identity begins.
    min_width: of a bin, as a share of all.
    min_height: the same of its image.
    min_slope: where two bins meet.

  Raises:
    UserError: the bins together are wider or higher than all.
  """
  if bins * max(min_width, min_height) >= 1:
    raise UserError(f"{bins} bins of a spline are too many: set flow.bins to fewer.")
  offset = math.log(math.expm1(1 - min_slope))  # raw 0 is slope 1

  def parts(v: Image, raw: Raw, inverse: bool) -> tuple[Float[Array, "b h w c"], ...]:
    """Of the bin of v: left end, width, lower end, height, slopes at both ends."""
    raw = raw.reshape(*v.shape, 3 * bins - 1)
    widths, heights, slopes = jnp.split(raw, [bins, 2 * bins], axis=-1)

    def sizes(raw: Array, least: float) -> tuple[Array, Array]:
      """Ends on the left and sizes of all bins."""
      share = least + (1 - least * bins) * jax.nn.softmax(raw)
      size = 2 * bound * share
      return jnp.cumsum(size, axis=-1) - size - bound, size

    slopes = min_slope + jax.nn.softplus(slopes + offset)
    one = jnp.ones_like(slopes[..., :1])
    left, width = sizes(widths, min_width)
    low, height = sizes(heights, min_height)
    # The bin is how many inner knots are below v, and its numbers are picked by sums:
    # accelerators are slow to search and to gather.
    knots = (low if inverse else left)[..., 1:]
    index = (v[..., None] >= knots).sum(-1, keepdims=True)
    own = index == jnp.arange(bins)
    table = (
      left,
      width,
      low,
      height,
      jnp.concatenate([one, slopes], axis=-1),
      jnp.concatenate([slopes, one], axis=-1),
    )
    return tuple(jnp.where(own, a, 0).sum(-1) for a in table)

  def forward(x: Image, raw: Raw) -> tuple[Image, Image]:
    """Eqs. 4 and 5."""
    inside = jnp.clip(x, -bound, bound)
    left, width, low, height, first, second = parts(inside, raw, inverse=False)
    mean = height / width
    at = (inside - left) / width
    both = at * (1 - at)
    below = mean + (first + second - 2 * mean) * both
    z = low + height * (mean * at**2 + first * both) / below
    slope = second * at**2 + 2 * mean * both + first * (1 - at) ** 2
    log = 2 * jnp.log(mean) + jnp.log(slope) - 2 * jnp.log(below)
    known = abs(x) <= bound
    return jnp.where(known, z, x), jnp.where(known, log, 0)

  def inverse(z: Image, raw: Raw) -> Image:
    """Appendix A.1: of a t^2 + b t + c the root 2 c / (-b - sqrt(b^2 - 4 a c)).

    Written so, nothing cancels.
    """
    inside = jnp.clip(z, -bound, bound)
    left, width, low, height, first, second = parts(inside, raw, inverse=True)
    mean = height / width
    above = inside - low
    bend = above * (first + second - 2 * mean)
    a = height * (mean - first) + bend
    b = height * first - bend
    c = -mean * above
    root = jnp.sqrt(jnp.maximum(b**2 - 4 * a * c, 0))
    at = jnp.clip(2 * c / (-b - root), 0, 1)  # rounding must not leave the bin
    x = left + width * at
    return jnp.where(abs(z) <= bound, x, z)

  return Elementwise(3 * bins - 1, forward, inverse)
