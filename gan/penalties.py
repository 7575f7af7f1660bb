"""What keeps a critic smooth, and the generator's path length even."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

Images = Float[Array, "b h w c"]
Critic = Callable[[Images], Float[Array, "b ..."]]


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
