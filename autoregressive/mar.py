"""MAR: continuous vectors in a random order, each told by a small diffusion.

Li et al. 2024 (arXiv:2406.11838): what a transformer knows of a hidden place, z,
conditions a denoiser of its vector, so that p(x_i | shown) needs no codebook. The noise
is that of `core/noise.py`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, PyTree
from ml_collections import ConfigDict

from autoregressive import decoder, masking, sampling
from core import checks, noise
from core.errors import unknown
from core.family import (
  Batch,
  Family,
  Given,
  Metrics,
  Samples,
  Spec,
  check_spec,
  example_keys,
  sample_keys,
)
from core.step import from_loss
from nets import build
from nets.dit import patchify, unpatchify
from nets.masked import DiffusionHead, Masked, MaskedVectors
from text import encoders
from text.cond import Cond, guide

LEAST_HIDDEN, STD = 0.7, 0.25  # of the share that training hides

Vectors = Float[Array, "n l v"]


def make(config: ConfigDict, spec: Spec) -> Family:
  """The family of a masked transformer with a diffusion head.

  A picture is its patches of `model.patch`, of latents say 1. In training a share of
  them is hidden, drawn from N(1, 0.25^2) cut to [0.7, 1]; the loss is the mean over the
  hidden of |prediction - target|^2 (eq. 3), at `autoregressive.draws` noise levels
  each, in the space of `autoregressive.prediction`: eps in the paper. It is the eval
  `loss` too.

  Edits: inpaint, which draws the patches in which the mask is anywhere 1.

  Raises:
    UserError: tokens, or settings that it cannot take.
  """
  check_spec(config.family, spec, latents=True)
  own, settings = config.autoregressive, sampling.make(config.sample)
  checks.refuse_small_pictures(config)
  checks.refuse(config, "sample", top_k=0, top_p=1.0)
  encoders.check_guidance(config.text, settings.guidance_scale)
  if own.prediction not in noise.PREDICTIONS:
    raise unknown("autoregressive.prediction", own.prediction, noise.PREDICTIONS)
  schedule, (height, width, _) = noise.make(config.noise), spec.shape
  patch, frames = config.model.patch, min(config.sample.frames, config.sample.steps)
  length = (height // patch) * (width // patch)
  plan = planned(own.schedule, config.sample.steps, length)
  net = network(config, spec)
  guides = settings.guidance_scale != 1 and config.text.encoder != "none"

  def init(rng: Array, batch: Batch) -> PyTree:
    x = patchify(jnp.asarray(batch["x"][:1]), patch)
    cond = jax.tree.map(lambda a: a[:1], batch["cond"])
    hidden = jnp.zeros(x.shape[:2], bool)
    return net.init(rng, x, hidden, cond, method="both")["params"]

  def losses(
    params: PyTree, batch: Batch, rng: Array, training: bool
  ) -> Float[Array, " b"]:
    cond, ids, x = batch["cond"], batch["_id"], patchify(batch["x"], patch)
    keys = jax.vmap(lambda key: jax.random.split(key, 5))(example_keys(rng, ids))
    if training and config.text.drop > 0:
      cond = cond.drop(keys[:, 4], config.text.drop)
    u = jax.vmap(jax.random.uniform)(keys[:, 0])
    count = masking.count_of(masking.truncated_normal(u, LEAST_HIDDEN, STD), length)
    order = jax.vmap(lambda key: jax.random.uniform(key, (length,)))(keys[:, 1])
    hidden = masking.lowest(order, count)
    how = {"ids": ids, "rngs": {"dropout": rng}} if training else {}
    z = net.apply({"params": params}, x, hidden, cond, **how)
    # The draws of a place lie behind one another.
    x, z = (jnp.concatenate([a] * own.draws, axis=1) for a in (x, z))
    t = jax.vmap(lambda key: jax.random.uniform(key, x.shape[1:2]))(keys[:, 2])
    eps = jax.vmap(lambda key: jax.random.normal(key, x.shape[1:]))(keys[:, 3])
    # Without the ends, where a density's inverse may be infinite.
    logsnr = schedule.logsnr(schedule.density(jnp.clip(t, 1e-5, 1 - 1e-5)))
    flat = [a.reshape(-1, *a.shape[2:]) for a in (x, eps, logsnr)]
    x_t = noise.diffuse(*flat, schedule.scaling).reshape(x.shape)
    target = noise.target(*flat, schedule.scaling, own.prediction).reshape(x.shape)
    found = net.apply({"params": params}, x_t, logsnr, z, method="denoise")
    error = jnp.mean((found - target) ** 2, axis=-1).reshape(len(x), own.draws, length)
    return jnp.sum(error.mean(1) * hidden, axis=1) / count

  def loss(params: PyTree, batch: Batch, rng: Array) -> tuple[Array, Metrics]:
    return losses(params, batch, rng, True), {}

  def drawn(
    params: PyTree,
    rng: Array,
    cond: Cond,
    x: Vectors,
    hidden: Bool[Array, "n l"],
  ) -> Samples:
    """All places in a random order, as many at a step as `plan` says.

    Of them the hidden ones are drawn; the others stay as they are.
    """
    n, keys, rows = len(x), sample_keys(rng, len(x)), jnp.arange(len(x))[:, None]
    cond = cond.with_null() if guides else cond.replace(negative=None)
    shuffle = jax.vmap(lambda key: jax.random.uniform(key, (length,)))
    order = jnp.argsort(shuffle(sampling.keys_at(keys, 0)), axis=1)

    def body(carry: tuple, i: Array) -> tuple[tuple, None]:
      canvas, left, film = carry
      two = (canvas, left)
      if guides:
        two = tuple(jnp.concatenate([a, a]) for a in two)
      z = net.apply({"params": params}, *two, cond)
      # Of places that are none the last one stands in, and is not written.
      at = plan.first[i] + jnp.arange(plan.most)
      own_places = jnp.where(at < plan.first[i + 1], at, length - 1)
      places = order[:, own_places]
      both = jnp.concatenate([places, places]) if guides else places
      z = jnp.take_along_axis(z, both[..., None], axis=1)
      scale = sampling.scale_at(settings, plan.first[i] / length)
      new = denoised(params, z, keys, places, scale)
      written = (at < plan.first[i + 1]) & jnp.take_along_axis(hidden, places, axis=1)
      target = jnp.where(written, places, length)
      canvas = canvas.at[rows, target].set(new, mode="drop")
      left = left.at[rows, target].set(False, mode="drop")
      film = film.at[i * frames // config.sample.steps].set(canvas)
      return (canvas, left, film), None

    canvas = jnp.where(hidden[..., None], 0.0, x)
    start = canvas, hidden, jnp.zeros((frames, *x.shape))
    steps = jnp.arange(config.sample.steps)
    (canvas, _, film), _ = jax.lax.scan(body, start, steps)
    stages = jax.lax.map(shown, film)
    return Samples(stages[-1], stages, jnp.full(n, config.sample.steps, jnp.int32))

  def denoised(
    params: PyTree,
    z: Float[Array, "m k d"],
    keys: Key[Array, " n"],
    places: Int[Array, "n k"],
    scale: Float[Array, ""],
  ) -> Float[Array, "n k v"]:
    """Draws of the head: DDPM's steps, with `temperature` times their noise.

    Draw j of a place comes from the sample's key and the place.
    """
    size, count = (*places.shape, patch * patch * spec.shape[-1]), len(keys)
    own_keys = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)))(keys, places + 1)
    flat = own_keys.reshape(-1)
    times = 1 - jnp.arange(config.sample.head_steps) / config.sample.head_steps
    grid = jnp.append(schedule.logsnr(times), jnp.inf)

    def normal(j: Array | int) -> Float[Array, "a v"]:
      drawn = sampling.keys_at(flat, j)
      return jax.vmap(lambda key: jax.random.normal(key, size[-1:]))(drawn)

    def step(x_t: Array, j: Array) -> tuple[Array, None]:
      twice = x_t.reshape(size)
      if guides:
        twice = jnp.concatenate([twice, twice])
      level = jnp.full(twice.shape[:2], grid[j])
      found = net.apply({"params": params}, twice, level, z, method="denoise")
      if guides:
        found = guide(found, scale)
      logsnr, later = (jnp.full(len(x_t), grid[j + k]) for k in (0, 1))
      args = found.reshape(x_t.shape), x_t, logsnr, schedule.scaling, own.prediction
      x_hat, _ = noise.to_x_eps(*args)
      fresh = settings.temperature * normal(j + 1)
      x_s = noise.posterior(x_t, x_hat, fresh, logsnr, later, schedule.scaling)
      return jnp.where(jnp.isposinf(grid[j + 1]), x_hat, x_s), None

    start = noise.prior_std(grid[0], schedule.scaling) * normal(0)
    x, _ = jax.lax.scan(step, start, jnp.arange(config.sample.head_steps))
    return x.reshape(count, *size[1:])

  def shown(x: Vectors) -> Float[Array, "n h w c"]:
    images = unpatchify(x, height, width, patch)
    return jnp.clip(images, -1, 1) if spec.pixels else images

  def sample(params: PyTree, rng: Array, cond: Cond, n: int) -> Samples:
    x = jnp.zeros((n, length, patch * patch * spec.shape[-1]))
    return drawn(params, rng, cond, x, jnp.ones(x.shape[:2], bool))

  def inpaint(params: PyTree, rng: Array, cond: Cond, given: Given) -> Samples:
    hidden = (patchify(given.mask, patch) > 0.5).any(-1)
    return drawn(params, rng, cond, patchify(given.images, patch), hidden)

  edits = {"inpaint": inpaint}
  checks.check_edit(config, edits)
  return from_loss(
    config,
    init=init,
    loss=loss,
    sample=sample,
    evals={"loss": lambda *args: losses(*args, False)},
    edits=edits,
  )


class Plan(NamedTuple):
  """Which places of an order are drawn at which step.

  Attributes:
    first: the first of each step, and the length of the order.
    most: how many a step draws at most.
  """

  first: Int[Array, " points"]
  most: int


def planned(schedule: str, steps: int, length: int) -> Plan:
  """The Plan by which floor(gamma(t / steps) length) places are left after step t.

  As in the authors' code, but that a step may draw none.
  """
  left = np.floor(masking.hidden_shares(schedule, steps) * length + 1e-6).astype(int)
  first = length - np.concatenate([[length], left])
  return Plan(jnp.asarray(first), int(np.diff(first).max()))


def network(config: ConfigDict, spec: Spec) -> MaskedVectors:
  """The network of a config."""
  model, own, dtype = config.model, config.autoregressive, build.dtype(config.model)
  height, width, _ = spec.shape
  encoder = encoders.make(config.text, dtype)
  shape = (height // model.patch, width // model.patch, 1)
  trunk = Masked(encoder, decoder.transformer(config), shape)
  return MaskedVectors(trunk, DiffusionHead(own.head_dim, own.head_depth, dtype))
