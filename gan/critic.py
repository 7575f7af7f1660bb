"""A critic as pure functions: its parameters, what it sees of a picture, its logits."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree
from ml_collections import ConfigDict

from core import checks, noise
from core.errors import UserError, unknown
from core.family import Play
from gan import augment, networks, spectral
from text.cond import Cond

AUGMENTS = ("none", "diff", "ada", "noise")
SPECTRAL = ("none", "critic", "both")


class Critic(NamedTuple):
  """A judge of pictures, to be trained beside any generator.

  init: (rng, play, cond) -> (params, extra).
  ready: (params, extra) -> (weights to judge with, extra after an update).
  judge: (weights, x, cond, play, keys, strength, axis) -> logits [B, ...] of pictures
    that stand in the place of those of `play`; `strength` in [0, 1] is that of
    augmentation.
  together: rows in a row that see one another, a multiple of two.
  """

  init: Callable[[Array, Play, Cond], tuple[PyTree, PyTree]]
  ready: Callable[[PyTree, PyTree], tuple[PyTree, PyTree]]
  judge: Callable[..., Float[Array, "b ..."]]
  together: int = 2


def make(config: ConfigDict, noisy: bool = False) -> Critic:
  """The critic of `config.gan`.

  `gan.augment` is what a critic sees of a picture, real or fake alike: itself (none),
  DiffAugment (diff), each transformation of ADA with a probability that adapts (ada),
  or the picture noised to a logsnr that it is told, up to a time that adapts (noise:
  Diffusion-GAN, Wang et al. 2022, arXiv:2206.02262), by `config.noise`. Times are even
  from 0 to that; in the paper's code half of the pictures stay without noise.

  Args:
    config: the whole config.
    noisy: a picture comes with a logsnr, that of `Play`.

  Raises:
    UserError: settings that are unknown or do not go together.
  """
  gan = config.gan
  if gan.augment not in AUGMENTS:
    raise unknown("gan.augment", gan.augment, AUGMENTS)
  if gan.spectral_norm not in SPECTRAL:
    raise unknown("gan.spectral_norm", gan.spectral_norm, SPECTRAL)
  if gan.augment == "diff":
    augment.check_policy(gan.policy)
  blurred = gan.augment == "noise"
  if blurred and noisy:
    raise UserError(
      f"{config.family} noises pictures already: set gan.augment to 'none'."
    )
  if blurred:
    checks.refuse_learned_noise(config)
  schedule = noise.make(config.noise) if blurred else None
  net = networks.critic(config, noisy or blurred)
  normalised = gan.spectral_norm != "none"
  if normalised:
    spectral.check_network(gan, "critic")

  def init(rng: Array, play: Play, cond: Cond) -> tuple[PyTree, PyTree]:
    own, vectors = jax.random.split(rng)
    x = play.reals if play.context is None else beside(play.reals, play.context)
    logsnr = jnp.zeros(len(x)) if noisy or blurred else None
    params = net.init(own, x, cond, logsnr)["params"]
    extra = {"strength": jnp.zeros(())}
    if normalised:
      extra["vectors"] = spectral.init(vectors, params["net"])
    return params, extra

  def ready(params: PyTree, extra: PyTree) -> tuple[PyTree, PyTree]:
    if not normalised:
      return params, extra
    own, vectors = spectral.normalise(params["net"], extra["vectors"])
    return params | {"net": own}, extra | {"vectors": vectors}

  def judge(
    weights: PyTree,
    x: Float[Array, "b h w c"],
    cond: Cond,
    play: Play,
    keys: Key[Array, " b"],
    strength: Float[Array, ""],
    axis: str | None = None,
  ) -> Float[Array, "b ..."]:
    logsnr = play.logsnr
    match gan.augment:
      case "diff":
        x = augment.diff_augment(keys, x, tuple(gan.policy))
      case "ada":
        x = augment.adaptive(keys, x, strength)
      case "noise":
        times, draws = jax.vmap(jax.random.split, out_axes=1)(keys)
        logsnr = schedule.logsnr(strength * jax.vmap(jax.random.uniform)(times))
        eps = noise.normals(draws, x.shape[1:])
        x = noise.diffuse(x, eps, logsnr, schedule.scaling)
    if play.context is not None:
      x = beside(x, play.context)
    return net.apply({"params": weights}, x, cond, logsnr, axis)

  # The others couple pairs at most, or, by batch norm, all rows of all devices.
  together = net.net.group if gan.critic == "stylegan2" else 2
  return Critic(init, ready, judge, together)


def beside(
  x: Float[Array, "b h w c"], context: Float[Array, "b h w d"]
) -> Float[Array, "b h w e"]:
  """The channels of both."""
  return jnp.concatenate([x, context], axis=-1)
