"""What MaskGIT, MAR and permuted decoders share: what is hidden, orders, the family."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, PyTree, Shaped
from ml_collections import ConfigDict

from autoregressive.sequence import Sequence
from core import checks
from core.errors import unknown
from core.family import Batch, Family, Given, Metrics, Samples, Spec
from core.step import from_loss
from text.cond import Cond

# Progress in [0, 1] -> the share that is hidden, from 1 to 0.
SCHEDULES: dict[str, Callable[[Array], Array]] = {
  "cosine": lambda r: jnp.cos(jnp.pi * r / 2),
  "linear": lambda r: 1 - r,
  "square": lambda r: 1 - r**2,
  "cubic": lambda r: 1 - r**3,
  "root": lambda r: 1 - jnp.sqrt(r),
}
CAUSAL = ("random", "raster")  # orders in which a place reads those before it
ROUNDING = 1e-3  # of a share times a length; no more than that is float32's error

# (params, batch, rng, training) -> the loss of each example.
Losses = Callable[[PyTree, Batch, Array, bool], Float[Array, " b"]]
# (params, rng, raw Cond, sequences, what of them is to be drawn) -> Samples.
Draw = Callable[
  [PyTree, Array, Cond, Shaped[Array, "n l ..."], Bool[Array, "n l"]], Samples
]
# Given pictures -> sequences, and what of them is hidden.
Read = Callable[[Given], tuple[Shaped[Array, "n l ..."], Bool[Array, "n l"]]]


def family_of(
  config: ConfigDict,
  spec: Spec,
  *,
  init: Callable[[Array, Batch], PyTree],
  losses: Losses,
  draw: Draw,
  read: Read,
  name: str,
) -> Family:
  """The family of a network that tells what is hidden from what is shown.

  Its edit is inpaint. A sample is the inpainting of a picture that is hidden whole.

  Args:
    config: the whole config.
    spec: what is generated.
    init: (rng, batch) -> params.
    losses: of training, and of evaluation.
    draw: fills in what is hidden, and never reads it.
    read: given pictures -> sequences, and what of them is hidden.
    name: of the eval that is the loss of evaluation.

  Raises:
    UserError: an edit that it has not.
  """

  def loss(params: PyTree, batch: Batch, rng: Array) -> tuple[Array, Metrics]:
    return losses(params, batch, rng, True), {}

  def inpaint(params: PyTree, rng: Array, cond: Cond, given: Given) -> Samples:
    return draw(params, rng, cond, *read(given))

  def sample(params: PyTree, rng: Array, cond: Cond, n: int) -> Samples:
    empty = jnp.zeros((n, *spec.shape), spec.dtype)
    return inpaint(params, rng, cond, Given(empty, jnp.ones((*empty.shape[:3], 1))))

  edits = {"inpaint": inpaint}
  checks.check_edit(config, edits)
  return from_loss(
    config,
    init=init,
    loss=loss,
    sample=sample,
    evals={name: lambda *args: losses(*args, False)},
    edits=edits,
  )


def reader(numbers: Sequence) -> Read:
  """Given pictures -> their numbers, and which of them are to be drawn."""

  def read(given: Given) -> tuple[Int[Array, "n l"], Bool[Array, "n l"]]:
    mask = jnp.broadcast_to(given.mask > 0.5, given.images.shape)
    return numbers.read(given.images), mask.reshape(len(mask), -1)

  return read


def share_at(schedule: str, r: Float[Array, "..."]) -> Float[Array, "..."]:
  """gamma(r).

  Chang et al. 2022 (arXiv:2202.04200), section 3.3 and figure 3: cosine is
  cos(pi r / 2).

  Raises:
    UserError: unknown schedule.
  """
  if schedule not in SCHEDULES:
    raise unknown("autoregressive.schedule", schedule, SCHEDULES)
  return SCHEDULES[schedule](r)


def hidden_shares(schedule: str, steps: int) -> Float[np.ndarray, " points"]:
  """gamma(t / steps), t = 1, ..., steps: the share that is hidden after each step.

  Raises:
    UserError: unknown schedule.
  """
  shares = np.array(share_at(schedule, jnp.arange(1, steps + 1) / steps))
  shares[-1] = 0.0  # the cosine of pi / 2 is not
  return shares


def count_of(
  share: Float[Array, "..."] | float, length: Int[Array, "..."] | int
) -> Int[Array, "..."]:
  """ceil(share length), not one more for a rounding error."""
  return jnp.ceil(share * length - ROUNDING).astype(jnp.int32)


def lowest(score: Float[Array, "b l"], count: Int[Array, " b"]) -> Bool[Array, "b l"]:
  """True at the `count` lowest of each row; of equals the first."""
  order = jnp.argsort(score, axis=1, stable=True)
  rank = jnp.argsort(order, axis=1)
  return rank < count[:, None]


def places(
  order: str, keys: Key[Array, " b"], hidden: Bool[Array, "b l"]
) -> Int[Array, "b l"]:
  """Row by row; or if 'random' by the keys, the shown places before the hidden ones.

  Row by row what is shown stays where it is: a network has seen no other order.
  """
  if order == "raster":
    return jnp.broadcast_to(jnp.arange(hidden.shape[1]), hidden.shape)
  score = jax.vmap(lambda key: jax.random.uniform(key, hidden.shape[1:]))(keys)
  return jnp.lexsort((score, hidden), axis=1)


def check_order(config: ConfigDict, known: tuple[str, ...]) -> None:
  """Raises UserError for an `autoregressive.order` that a family has not."""
  if config.autoregressive.order not in known:
    raise unknown("autoregressive.order", config.autoregressive.order, known)


def truncated_normal(u: Float[Array, " b"], low: float, std: float) -> Array:
  """A draw of N(1, std^2) cut to [low, 1], from u ~ U(0, 1)."""
  cdf = jax.scipy.stats.norm.cdf
  least = cdf((low - 1) / std)
  z = jax.scipy.special.ndtri(least + u * (0.5 - least))
  return jnp.clip(1 + std * z, low, 1)
