"""Denoising diffusion GAN: a diffusion of few large steps, each drawn by a GAN.

Xiao et al. 2022 (arXiv:2112.07804). Over a large step q(x_s | x_t) is no normal, so a
generator of x_t and noise z draws the clean picture, G(x_t, z, t), and
p(x_s | x_t) = q(x_s | x_t, x = G(x_t, z, t)) (eq. 6). A critic that knows x_t tells it
from q(x_s | x_t) (eq. 4).
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree
from ml_collections import ConfigDict

from core import checks, noise
from core.errors import UserError
from core.family import (
  Batch,
  Family,
  Objective,
  Play,
  Samples,
  Spec,
  State,
  check_spec,
  example_keys,
  keys_at,
  sample_keys,
)
from gan import critic, spectral
from gan.adversarial import adversarial
from nets import build
from nets.layers import Dense
from nets.modulated import normalized
from text import encoders
from text.cond import Cond

Images = Float[Array, "b h w c"]


class Generator(nn.Module):
  """(x_t, z, logsnr, raw cond) -> the clean picture.

  z modulates the network as the condition does: a map of it is added to `pooled`. The
  paper maps a normalised z through dense layers to every block's group norm, likewise.

  Attributes:
    text: raw `Cond` -> encoded.
    net: (x_t, logsnr, encoded cond) -> picture.
    dim: width of z's map.
  """

  text: nn.Module
  net: nn.Module
  dim: int

  @nn.compact
  def __call__(
    self,
    x_t: Images,
    z: Float[Array, "b k"],
    logsnr: Float[Array, " b"],
    cond: Cond,
  ) -> Images:
    """Three layers for z; the paper's network ends with tanh."""
    encoded = self.text(cond)
    vec = normalized(z)
    for _ in range(3):
      vec = jax.nn.silu(Dense(self.dim)(vec))
    if encoded.pooled is not None:
      vec = jnp.concatenate([vec, encoded.pooled], -1)
    return jnp.tanh(self.net(x_t, logsnr, encoded.replace(pooled=vec)))


def make(config: ConfigDict, spec: Spec) -> Family:
  """The family of `config.gan`, `config.noise` and `config.model`.

  `noise.timesteps` is T, and a picture calls the generator as often. T = 1 is a GAN
  whose generator is given noise of a picture's shape besides z. The loss of a critic is
  over x_s and x_t, at t uniform over 1/T, ..., 1; with `gan.r1` its gradient is by x_s.
  The film are the estimates of the clean picture.

  Raises:
    UserError: settings that are unknown, of no use or do not fit the picture.
  """
  gan, total = config.gan, config.noise.timesteps
  check_spec(config.family, spec, latents=False)
  checks.refuse_small_pictures(config)
  checks.refuse_learned_noise(config)
  checks.refuse_guidance(config)
  checks.refuse(config, "text", drop=0.0)
  checks.check_weight(config)
  checks.refuse(config, "model", dropout=0.0)
  checks.refuse(config, "gan", family="", generator="dcgan", path_length=0.0)
  checks.refuse(config, "gan", adaptive=False, start=0)
  checks.refuse(config, "sample", truncation=0.0)
  spectral.refuse_both(config)
  schedule = noise.make(config.noise)
  if total < 1:
    raise UserError(
      f"{config.family} takes noise.timesteps steps: set it to 1 or more, not {total}."
    )
  if schedule.scaling != "vp":
    raise UserError(
      f"{config.family} needs a variance preserving noise.schedule, which"
      f" {config.noise.schedule!r} is not: set it to 'linear' or 'cosine'."
    )
  net = Generator(
    encoders.make(config.text, build.dtype(config.model)),
    build.make(config.model, spec.shape[-1]),
    config.text.dim,
  )
  # Of t = 0, 1/T, ..., 1: the clean picture first.
  noisy = schedule.logsnr(jnp.arange(1, total + 1) / total)
  logsnrs = jnp.concatenate([jnp.full(1, jnp.inf), noisy])

  def posterior(x: Images, x_t: Images, i: Int[Array, " b"], eps: Images) -> Images:
    return noise.posterior(x_t, x, eps, logsnrs[i], logsnrs[i - 1], "vp")

  def estimate(
    params: PyTree, x_t: Images, i: Array, cond: Cond, keys: Array
  ) -> Images:
    z = noise.normals(keys, (gan.latent_dim,))
    return net.apply({"params": params}, x_t, z, logsnrs[i], cond)

  def init(rng: Array, batch: Batch) -> PyTree:
    x, z = jnp.asarray(batch["x"]), jnp.zeros((len(batch["x"]), gan.latent_dim))
    return net.init(rng, x, z, jnp.zeros(len(x)), batch["cond"])["params"]

  def play(weights: tuple, batch: Batch, rng: Array, axis: str | None) -> Play:
    x = jnp.asarray(batch["x"])
    times, first, second, draws, last = jax.vmap(
      lambda key: jax.random.split(key, 5), out_axes=1
    )(example_keys(rng, batch["_id"]))
    i = jax.vmap(lambda key: jax.random.randint(key, (), 1, total + 1))(times)
    before, after = logsnrs[i - 1], logsnrs[i]
    x_s = noise.diffuse(x, noise.normals(first, spec.shape), before, "vp")
    x_t = noise.transition(x_s, noise.normals(second, spec.shape), after, before, "vp")
    found = estimate(weights[0], x_t, i, batch["cond"], draws)
    fakes = posterior(found, x_t, i, noise.normals(last, spec.shape))
    own = jnp.zeros(len(x))
    return Play(own, x_s, fakes, context=x_t, logsnr=after)

  def sample(state: State, rng: Array, cond: Any, n: int) -> Samples:
    keys, cond = sample_keys(rng, n), cond.replace(negative=None)

    def down(x_t: Images, i: Int[Array, ""]) -> tuple[Images, Images]:
      draws, last = jax.vmap(jax.random.split, out_axes=1)(keys_at(keys, i))
      each = jnp.full(n, i)
      x = estimate(state.ema["generator"], x_t, each, cond, draws)
      return posterior(x, x_t, each, noise.normals(last, spec.shape)), x

    start = noise.normals(keys_at(keys, 0), spec.shape)
    images, stages = jax.lax.scan(down, start, jnp.arange(total, 0, -1))
    frames = jnp.linspace(0, total - 1, min(config.sample.frames, total))
    # The last step returns the estimate itself.
    film = stages[frames.round().astype(int)].at[-1].set(images)
    return Samples(images, film, jnp.full(n, total, jnp.int32))

  base = Family(
    init=None, step=None, sample=sample, evals={}, objective=Objective(init, play)
  )
  return adversarial(config, base, critic.make(config, noisy=True))
