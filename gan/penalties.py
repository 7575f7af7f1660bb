"""What keeps a critic smooth, and the generator's path length even."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree
from ml_collections import ConfigDict

from core.errors import UserError
from core.family import Play, keys_at

Images = Float[Array, "b h w c"]
Critic = Callable[[Images], Float[Array, "b ..."]]


def check(gan: ConfigDict) -> None:
  """Raises UserError for a penalty on a critic whose norm mixes the examples."""
  mixes = gan.critic == "patch" or (gan.critic == "dcgan" and gan.norm)
  for name in ("r1", "r2", "gradient_penalty"):
    if gan[name] and mixes:
      raise UserError(
        f"gan.{name}={gan[name]} needs the critic's gradient by each picture, but batch"
        f" norm mixes pictures in gan.critic={gan.critic!r}: "
        + ("set gan.norm to False, or " * (gan.critic == "dcgan"))
        + "take another critic."
      )


def of_critic(
  gan: ConfigDict,
  judge: Callable[[Images, int], Float[Array, "b ..."]],
  play: Play,
  keys: Key[Array, " b"],
  count: Int[Array, ""],
) -> Float[Array, " b"]:
  """The penalties' sum of each example, at every `gan.penalty_every`-th update.

  Args:
    gan: `config.gan`.
    judge: (pictures, branch of the examples' keys) -> logits.
    play: the pictures.
    keys: of the examples.
    count: updates of the critic before this one.
  """
  zero = jnp.zeros(len(keys))
  if not (gan.r1 or gan.r2 or gan.gradient_penalty):
    return zero

  def penalty() -> Float[Array, " b"]:
    found = zero
    if gan.r1:
      found += gan.r1 / 2 * square_gradient(lambda x: judge(x, 0), play.reals)
    if gan.r2:
      found += gan.r2 / 2 * square_gradient(lambda x: judge(x, 1), play.fakes)
    if gan.gradient_penalty:
      between = keys_at(keys, 3)
      found += gan.gradient_penalty * unit_gradient(
        lambda x: judge(x, 0), play.reals, play.fakes, between
      )
    return found

  every = gan.penalty_every
  if every == 1:
    return penalty()
  # Lazy (Karras et al. 2020, section 3.1): rarer, and as much stronger. At the last
  # update of a cycle, since logs are taken after round numbers of updates.
  due = (count + 1) % every == 0
  return jax.lax.cond(due, lambda: every * penalty(), lambda: zero)


def square_gradient(critic: Critic, x: Images) -> Float[Array, " b"]:
  """|grad_x D(x)|^2 of each example, for R1 (x real) and R2 (x fake).

  The penalties are gamma / 2 times it: Mescheder et al. 2018 (arXiv:1801.04406), eq. 9
  and 10. A patch critic's logits are added up over places.
  """
  grads = jax.grad(lambda x: jnp.sum(critic(x)))(x)
  return jnp.sum(grads.reshape(len(x), -1) ** 2, -1)


def unit_gradient(
  critic: Critic, real: Images, fake: Images, keys: Key[Array, " b"]
) -> Float[Array, " b"]:
  """(|grad D(x)| - 1)^2 at x = u real + (1 - u) fake, u ~ U(0, 1).

  WGAN-GP, Gulrajani et al. 2017 (arXiv:1704.00028), eq. 3, to be weighed by lambda.
  """
  u = jax.vmap(jax.random.uniform)(keys).reshape(-1, 1, 1, 1)
  squares = square_gradient(critic, u * real + (1 - u) * fake)
  # The root has no gradient at 0.
  return (jnp.sqrt(squares + 1e-12) - 1) ** 2


def path_lengths(
  synthesis: Callable[[PyTree], Images], w: PyTree, keys: Key[Array, " b"]
) -> Float[Array, " b"]:
  """|J_w^T y| for pictures G(w) and y ~ N(0, I) / sqrt(h w), of each example.

  Karras et al. 2020 (arXiv:1912.04958), eq. 4; the penalty is (|J_w^T y| - a)^2 with a
  their running mean. Over layers' styles the squares are averaged, as in its code.

  Args:
    synthesis: w -> pictures.
    w: [b, layers, d].
    keys: one an example.
  """
  images, back = jax.vjp(synthesis, w)
  _, height, width, _ = images.shape
  draw = lambda key: jax.random.normal(key, images.shape[1:])  # noqa: E731
  noise = jax.vmap(draw)(keys) / jnp.sqrt(height * width)
  (grads,) = back(noise)
  return jnp.sqrt(jnp.mean(jnp.sum(grads**2, -1), -1))
