"""Moving averages of weights (EMA): how they are tracked, and any length afterwards.

The averages of a network stand side by side in `State.ema`: under its own name the
one to draw with, and under `name@std` those tracked besides it. With
`optim.ema="power"` an average over t updates has the profile

    p(tau) = (gamma + 1) tau^gamma / t^(gamma + 1),  0 <= tau <= t

of relative length std = sigma_rel, so averages of a few lengths, kept from time to
time, give one of any other length (Karras et al. 2024, section 3 and appendix C).
"""

import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree
from ml_collections import ConfigDict

from core.errors import UserError, unknown

MAX_STD = 0.289  # just above that of gamma = 0, the average of all weights
KINDS = ("constant", "halflife", "power", "warmup")

# Updates done -> the share of the newest weights.
Rate = Callable[[Int[Array, ""]], Float[Array, ""]]


class Ema(NamedTuple):
  """How the averages of a family's networks start and move.

  init: {name: params} -> their averages, for `State.ema`.
  update: (averages, {name: params}, done) -> the averages after one more update of
    the weights; `done` counts those before it. `params` has the new weights.
  """

  init: Callable[[Mapping[str, PyTree]], dict[str, PyTree]]
  update: Callable[
    [Mapping[str, PyTree], Mapping[str, PyTree], Int[Array, ""]], dict[str, PyTree]
  ]


def make(optim: ConfigDict, batch_size: int) -> Ema:
  """The averages of `config.optim`: e = e + (1 - d) (params - e), d by its `ema`.

  constant, warmup, halflife: see `decay`. power: d = (1 - 1 / t)^(gamma + 1) for each
  of `ema_std`, the first under the network's own name. The initial weights drop out
  of a power average at its first update.

  Raises:
    UserError: unknown `ema`, or a length out of its range.
  """
  rates = rates_of(optim, batch_size)

  def init(params: Mapping[str, PyTree]) -> dict[str, PyTree]:
    # Copies: a buffer that stands twice in a state can't be donated.
    return {
      name + suffix: jax.tree.map(jnp.copy, tree)
      for name, tree in params.items()
      for suffix in rates
    }

  def update(
    averages: Mapping[str, PyTree],
    params: Mapping[str, PyTree],
    done: Int[Array, ""],
  ) -> dict[str, PyTree]:
    moved = {}
    for suffix, rate in rates.items():
      r = rate(done)
      for name, new in params.items():
        moved[name + suffix] = jax.tree.map(
          lambda e, p, r=r: e + r * (p - e), averages[name + suffix], new
        )
    return moved

  return Ema(init, update)


def rates_of(optim: ConfigDict, batch_size: int) -> dict[str, Rate]:
  """What follows a network's name in `State.ema` -> 1 - d of that average.

  '' is the average to draw with.

  Raises:
    UserError: unknown `ema`, or a length out of its range.
  """
  if optim.ema == "power":
    gammas = {suffix: std_to_gamma(std) for suffix, std in lengths(optim).items()}
    return {s: functools.partial(power_rate, gamma) for s, gamma in gammas.items()}
  d = decay(optim, batch_size)
  return {"": lambda done: 1 - d(done)}


def lengths(optim: ConfigDict) -> dict[str, float]:
  """What follows a network's name in `State.ema` -> the length of that average."""
  first, *others = optim.ema_std
  return {"": first, **{f"@{std}": std for std in others}}


def decay(
  optim: ConfigDict, batch_size: int
) -> Callable[[Int[Array, ""]], Float[Array, ""]]:
  """step -> d in `ema = d ema + (1 - d) params`, by `config.optim`.

  constant: `ema_decay`; warmup: min(ema_decay, (1 + step) / (10 + step)), so
  that the first weights are forgotten fast; halflife: 0.5^(batch_size / h)
  with h = min(ema_halflife images, 5% of those seen), the ramp-up in the code of
  Karras et al. 2022.

  Raises:
    UserError: unknown `ema`, or a half-life that is not positive.
  """
  match optim.ema:
    case "constant":
      return lambda step: jnp.asarray(optim.ema_decay, jnp.float32)
    case "warmup":
      return lambda step: jnp.minimum(optim.ema_decay, (1.0 + step) / (10.0 + step))
    case "halflife":
      if optim.ema_halflife <= 0:
        raise UserError("optim.ema='halflife' needs optim.ema_halflife in images, > 0.")

      def halving(step: Int[Array, ""]) -> Float[Array, ""]:
        seen = 0.05 * batch_size * jnp.maximum(step, 1)
        return 0.5 ** (batch_size / jnp.minimum(seen, optim.ema_halflife))

      return halving
    case other:
      raise unknown("optim.ema", other, KINDS)


def power_rate(gamma: float | int, done: Int[Array, "*n"]) -> Float[Array, "*n"]:
  """1 - (1 - 1 / t)^(gamma + 1), what update t = done + 1 takes of the new weights.

  One minus equation 127 of Karras et al. 2024. So the weights after update i have the
  share (i^(gamma + 1) - (i - 1)^(gamma + 1)) / t^(gamma + 1) of the average after
  update t: what lies of its profile between i - 1 and i, without any error.
  """
  # Not as a difference: after a million updates float32 would lose three digits.
  t = done.astype(jnp.float32) + 1
  return -jnp.expm1((gamma + 1) * jnp.log1p(-1 / t))


def gamma_to_std(gamma: float | int) -> float:
  """sqrt((gamma + 1) / ((gamma + 2)^2 (gamma + 3))): the profile's std by its length.

  Karras et al. 2024, equation 123; falls from 0.2887 as gamma >= 0 grows.
  """
  return float(np.sqrt((gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3))))


def std_to_gamma(std: float | int) -> float:
  """The inverse of `gamma_to_std`.

  The largest real root of gamma^3 + 7 gamma^2 + (16 - std^-2) gamma + 12 - std^-2
  (Karras et al. 2024, equation 126 and algorithm 2).

  Raises:
    UserError: std is not in (0, 0.289).
  """
  if not 0 < std < MAX_STD:
    raise UserError(
      f"the relative length of an EMA must be in (0, {MAX_STD}), not {std}."
    )
  precision = float(std) ** -2
  roots = np.roots([1, 7, 16 - precision, 12 - precision])
  return float(np.max(roots[np.isreal(roots)].real))


def inner_products(
  t_a: Float[np.ndarray, " a"],
  gamma_a: Float[np.ndarray, " a"],
  t_b: Float[np.ndarray, " b"],
  gamma_b: Float[np.ndarray, " b"],
) -> Float[np.ndarray, "a b"]:
  """The integral of p_a(tau) p_b(tau) for profiles that end at t_a and t_b.

  (gamma_a + 1) (gamma_b + 1) / (gamma_a + gamma_b + 1) (low / high)^gamma / high,
  where low and high are the smaller and the larger end, and gamma is that of the
  profile with the larger (Karras et al. 2024, equation 151).
  """
  t_a, gamma_a = t_a[:, None], gamma_a[:, None]
  low, high = np.minimum(t_a, t_b), np.maximum(t_a, t_b)
  gamma = np.where(t_a < t_b, gamma_b, gamma_a)
  scale = (gamma_a + 1) * (gamma_b + 1) / (gamma_a + gamma_b + 1)
  return scale * (low / high) ** gamma / high


def posthoc_weights(
  t: Float[np.ndarray, " n"],
  gamma: Float[np.ndarray, " n"],
  target_t: float | int,
  target_gamma: float | int,
) -> tuple[Float[np.ndarray, " n"], float]:
  """What to take of each kept average to have one of another length.

  The weights minimise the distance of the summed profile to the wanted one, by least
  squares, and are then scaled to sum to 1 (Karras et al. 2024, algorithm 3).

  Args:
    t: after how many updates each average was kept, 1 or more.
    gamma: of each.
    target_t: after how many updates the wanted average ends.
    target_gamma: of the wanted average.

  Returns:
    The weights, and how far off the profile is: ||sum - wanted|| / ||wanted||.
  """
  wanted = np.array([target_t], np.float64), np.array([target_gamma], np.float64)
  norm = inner_products(*wanted, *wanted)[0, 0]
  # All profiles of norm 1, else late ones look small beside early ones.
  scale = np.sqrt(np.diag(inner_products(t, gamma, t, gamma)))
  gram = inner_products(t, gamma, t, gamma) / np.outer(scale, scale)
  target = inner_products(t, gamma, *wanted)[:, 0] / scale
  # Not `solve`: two averages may be the same to the last bit.
  found = np.linalg.lstsq(gram, target)[0]
  found /= np.sum(found / scale)
  off = norm - 2 * found @ target + found @ gram @ found
  return found / scale, float(np.sqrt(max(off, 0.0) / norm))
