"""MAR: continuous vectors in a random order, each told by a small diffusion.

Li et al. 2024 (arXiv:2406.11838): what a transformer knows of a hidden place, z,
conditions a denoiser of its vector, so that p(x_i | shown) needs no codebook.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree
from ml_collections import ConfigDict

from autoregressive import decoder, diffusion_head, masking, sampling
from autoregressive.settings import refuse_others
from core import checks
from core.errors import UserError
from core.family import (
  Batch,
  Family,
  Given,
  Samples,
  Spec,
  check_spec,
  example_keys,
  keys_at,
  sample_keys,
)
from nets import build
from nets.dit import patchify, unpatchify
from nets.masked import DiffusionHead, Masked, MaskedVectors, Permuted
from text import encoders
from text.cond import Cond, guide

LEAST_HIDDEN, STD = 0.7, 0.25  # of the share that training hides

Vectors = Float[Array, "n l v"]


def make(config: ConfigDict, spec: Spec) -> Family:
  """The family of a masked transformer with a diffusion head.

  A picture is its patches of `model.patch`, of latents say 1. In training a share of
  them is hidden, drawn from N(1, 0.25^2) cut to [0.7, 1]; the loss is the mean over the
  hidden of the mean square of prediction - target, at `autoregressive.draws` noise
  levels each (section 3.2), in the space of `autoregressive.prediction`: eps in the
  paper. It is the eval `loss` too. With another `autoregressive.order` than 'masked'
  the transformer is causal, all places count, and one is drawn at a time (table 1).

  Edits: inpaint, which draws the patches in which the mask is anywhere 1.

  Raises:
    UserError: tokens, or settings that it cannot take.
  """
  check_spec(config.family, spec, latents=True)
  own, settings = config.autoregressive, sampling.make(config.sample)
  masking.check_order(config, ("masked", *masking.CAUSAL))
  causal = own.order in masking.CAUSAL
  used = ("order", "prediction", "head_dim", "head_depth", "draws")
  refuse_others(config, *used, *(() if causal else ("schedule",)))
  checks.refuse_small_pictures(config)
  checks.refuse(config, "sample", top_k=0, top_p=1.0)
  encoders.check_guidance(config.text, settings.guidance_scale)
  diffusion, (height, width, channels) = diffusion_head.make(config), spec.shape
  patch, frames = config.model.patch, min(config.sample.frames, config.sample.steps)
  length, size = (height // patch) * (width // patch), patch * patch * channels
  if causal and config.sample.steps != length:
    raise UserError(
      f"autoregressive.order={own.order!r} draws one place after the other: set"
      f" sample.steps to {length}, not {config.sample.steps}."
    )
  plan = planned("linear" if causal else own.schedule, config.sample.steps, length)
  net = network(config, spec)
  guides = settings.guidance_scale != 1 and config.text.encoder != "none"

  def init(rng: Array, batch: Batch) -> PyTree:
    x = patchify(jnp.asarray(batch["x"][:1]), patch)
    cond = jax.tree.map(lambda a: a[:1], batch["cond"])
    seen = jnp.arange(length)[None] if causal else jnp.zeros(x.shape[:2], bool)
    return net.init(rng, x, seen, cond, method="both")["params"]

  def losses(
    params: PyTree, batch: Batch, rng: Array, training: bool
  ) -> Float[Array, " b"]:
    cond, ids, x = batch["cond"], batch["_id"], patchify(batch["x"], patch)
    keys = jax.vmap(lambda key: jax.random.split(key, 5))(example_keys(rng, ids))
    if training:
      cond = encoders.dropped(config.text, cond, keys[:, 4])
    if causal:
      hidden, count = jnp.ones(x.shape[:2], bool), length
      seen = masking.places(own.order, keys[:, 1], hidden)
    else:
      u = jax.vmap(jax.random.uniform)(keys[:, 0])
      count = masking.count_of(masking.truncated_normal(u, LEAST_HIDDEN, STD), length)
      order = jax.vmap(lambda key: jax.random.uniform(key, (length,)))(keys[:, 1])
      seen = hidden = masking.lowest(order, count)
    how = {"ids": ids, "rngs": {"dropout": rng}} if training else {}
    z = net.apply({"params": params}, x, seen, cond, **how)
    # The draws of a place lie behind one another.
    x, z = (jnp.concatenate([a] * own.draws, axis=1) for a in (x, z))

    def denoise(x_t: Vectors, logsnr: Array) -> Vectors:
      return net.apply({"params": params}, x_t, logsnr, z, method="denoise")

    found = diffusion_head.losses(diffusion, denoise, x, keys[:, 2], keys[:, 3])
    each = found.reshape(len(x), own.draws, length).mean(1)
    return jnp.sum(each * hidden, axis=1) / count

  def drawn(
    params: PyTree,
    rng: Array,
    cond: Cond,
    x: Vectors,
    hidden: Bool[Array, "n l"],
  ) -> Samples:
    """All places in an order, as many at a step as `plan` says.

    Of them the hidden ones are drawn; the others stay as they are. Draw j of a place
    comes from the sample's key and the place.
    """
    n, keys, rows = len(x), sample_keys(rng, len(x)), jnp.arange(len(x))[:, None]
    cond = cond.with_null() if guides else cond.replace(negative=None)
    # Of masked ones any: places that are shown are read whenever they come.
    how = own.order if causal else "random"
    among = hidden if causal else jnp.ones_like(hidden)
    order = masking.places(how, keys_at(keys, 0), among)

    def body(carry: tuple, i: Array) -> tuple[tuple, None]:
      canvas, left, film = carry
      two = (canvas, order if causal else left)
      if guides:
        two = tuple(jnp.concatenate([a, a]) for a in two)
      z = net.apply({"params": params}, *two, cond)
      # Of places that are none the last one stands in, and is not written.
      at = plan.first[i] + jnp.arange(plan.most)
      own_places = jnp.where(at < plan.first[i + 1], at, length - 1)
      places = order[:, own_places]
      both = jnp.concatenate([places, places]) if guides else places
      z = jnp.take_along_axis(z, both[..., None], axis=1)
      scale = sampling.scale_at(settings, plan.first[i + 1] / length)
      own_keys = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)))(keys, places + 1)

      def denoise(x_t: Vectors, logsnr: Array) -> Vectors:
        given = x_t, logsnr
        if guides:
          given = (jnp.concatenate([a, a]) for a in given)
        told = net.apply({"params": params}, *given, z, method="denoise")
        return guide(told, scale) if guides else told

      new = diffusion_head.draw(diffusion, denoise, own_keys, size)
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

  def shown(x: Vectors) -> Float[Array, "n h w c"]:
    images = unpatchify(x, height, width, patch)
    return jnp.clip(images, -1, 1) if spec.pixels else images

  def read(given: Given) -> tuple[Vectors, Bool[Array, "n l"]]:
    hidden = (patchify(given.mask, patch) > 0.5).any(-1)
    return patchify(given.images, patch), hidden

  return masking.family_of(
    config, spec, init=init, losses=losses, draw=drawn, read=read, name="loss"
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
  shares = masking.hidden_shares(schedule, steps)
  left = np.floor(shares * length + masking.ROUNDING).astype(int)
  first = length - np.concatenate([[length], left])
  return Plan(jnp.asarray(first), int(np.diff(first).max()))


def network(config: ConfigDict, spec: Spec) -> MaskedVectors:
  """The network of a config."""
  model, own, dtype = config.model, config.autoregressive, build.dtype(config.model)
  height, width, _ = spec.shape
  encoder = encoders.make(config.text, dtype)
  shape = (height // model.patch, width // model.patch, 1)
  kind = Permuted if own.order in masking.CAUSAL else Masked
  trunk = kind(encoder, decoder.transformer(config), shape)
  return MaskedVectors(trunk, DiffusionHead(own.head_dim, own.head_depth, dtype))
