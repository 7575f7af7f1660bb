"""Generative adversarial networks: a decoder of noise, taught by a critic alone.

Goodfellow et al. 2014 (arXiv:1406.2661). Which networks, which loss and which penalties
is `config.gan`; a published GAN is a config.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree
from ml_collections import ConfigDict

from core import checks, edits, ema
from core.errors import UserError
from core.family import (
  Batch,
  Family,
  Objective,
  Play,
  Samples,
  Spec,
  State,
  Tracked,
  check_spec,
  example_keys,
  sample_keys,
)
from gan import critic, losses, networks, penalties, spectral
from gan.adversarial import adversarial
from text.cond import Cond

PATH_DECAY = 0.99  # of the mean path length; Karras et al. 2020, appendix B


def make(config: ConfigDict, spec: Spec) -> Family:
  """The GAN of `config.gan`: `gan.generator` of z ~ N(0, I), judged by `gan.critic`.

  With `sample.truncation` t above 0, z is drawn within [-t, t] (Brock et al. 2019,
  arXiv:1809.11096, section 3.1), or StyleGAN2's styles are w_mean + t (w - w_mean). The
  film grows z, or the styles, from 0, or the mean.

  Raises:
    UserError: settings that are unknown, of no use or do not fit the picture.
  """
  gan, styled = config.gan, config.gan.generator == "stylegan2"
  check_spec(config.family, spec, latents=gan.generator in ("stylegan2", "r3gan"))
  checks.refuse_small_pictures(config)
  checks.refuse_guidance(config)
  checks.refuse(config, "text", drop=0.0)
  checks.check_weight(config)
  checks.refuse(config, "gan", family="", adaptive=False, start=0)
  if gan.path_length and not styled:
    raise UserError(
      f"gan.path_length={gan.path_length} needs the styles of gan.generator="
      "'stylegan2': set it to 0."
    )
  net = networks.generator(config, spec)
  limit = 0.0 if styled else config.sample.truncation
  rate = ema.rates_of(config.optim, config.data.batch_size)[""]
  normalised = gan.spectral_norm == "both"
  if normalised:
    spectral.check_network(gan, "generator")

  def noise(keys: Key[Array, " n"], limit: float = 0.0) -> Float[Array, "n k"]:
    shape = (gan.latent_dim,)
    if limit:
      draw = lambda key: jax.random.truncated_normal(key, -limit, limit, shape)  # noqa: E731
    else:
      draw = lambda key: jax.random.normal(key, shape)  # noqa: E731
    return jax.vmap(draw)(keys)

  def variables(rng: Array, batch: Batch) -> PyTree:
    z = jnp.zeros((len(batch["x"]), gan.latent_dim))
    return net.init(rng, z, batch["cond"])

  def track(rng: Array, params: PyTree, batch: Batch) -> dict[str, PyTree]:
    # Averages start at constants, whatever the key.
    found = {"batch_stats": variables(rng, batch).get("batch_stats", {})}
    if normalised:
      found["vectors"] = spectral.init(rng, params["net"])
    if gan.path_length:
      found["path"] = jnp.zeros(())
    return found

  def weights(params: PyTree, tracked: PyTree) -> tuple[PyTree, PyTree]:
    """What the network is applied with, and the next vectors of its norm."""
    moved = {}
    if normalised:
      own, moved = spectral.normalise(params["net"], tracked["vectors"])
      params = params | {"net": own}
    return {"params": params, "batch_stats": tracked["batch_stats"]}, moved

  def play(given: tuple, batch: Batch, rng: Array, axis: str | None) -> Play:
    params, tracked = given
    usable, vectors = weights(params, tracked)
    keys = jax.vmap(lambda key: jax.random.split(key, 3), out_axes=1)(
      example_keys(rng, batch["_id"])
    )
    cond = batch["cond"]
    fakes, moved = net.apply(
      usable,
      noise(keys[0]),
      cond,
      keys[1],
      training=True,
      axis=axis,
      mutable=["batch_stats"],
    )
    # All devices have the same, so their sum is divided by how many there are.
    stats = moved.get("batch_stats", {})
    if not styled:
      # Moments of batch norm, averaged as the weights that they are drawn with are.
      share = rate(tracked["updates"])
      blend = lambda old, new: old + share * (new - old)  # noqa: E731
      stats = jax.tree.map(blend, tracked["batch_stats"], stats)
    sums = {"batch_stats": stats, "vectors": vectors}
    sums["parts"] = jnp.ones(())
    own, metrics = jnp.zeros(len(fakes)), {}
    if gan.path_length:
      own, metrics, sums["path"] = path_penalty(usable, tracked, cond, keys[2])
    return Play(own, jnp.asarray(batch["x"]), fakes, metrics, sums)

  def path_penalty(
    usable: PyTree, tracked: PyTree, cond: Cond, keys: Key[Array, " b"]
  ) -> tuple[Float[Array, " b"], dict[str, Array], Float[Array, ""]]:
    """The penalty of each example, at every `gan.path_every`-th update; metrics; sums.

    (|J_w^T y| - a)^2 with a the mean of past lengths (Karras et al. 2020, eq. 4).
    """
    due = tracked["updates"] % gan.path_every == 0

    def lengths() -> Float[Array, " b"]:
      draws, noises, ways = jax.vmap(lambda key: jax.random.split(key, 3), out_axes=1)(
        keys
      )
      w = net.apply(usable, noise(draws), cond, method="styles")
      synthesis = lambda w: net.apply(usable, w, noises, method="synthesis")  # noqa: E731
      return penalties.path_lengths(synthesis, w, ways)

    found = jax.lax.cond(due, lengths, lambda: jnp.zeros(len(keys)))
    penalty = gan.path_every * gan.path_length * (found - tracked["path"]) ** 2
    return (
      jnp.where(due, penalty, 0),
      # Their mean: of one step it would be 0 but for each `path_every`-th.
      {"path_length": jnp.full(len(keys), tracked["path"])},
      jnp.where(due, jnp.mean(found), -1.0),
    )

  def update(tracked: dict[str, PyTree], sums: PyTree, rng: Array) -> dict[str, PyTree]:
    parts = sums["parts"]
    means = jax.tree.map(lambda a: a / parts, sums)
    moved = dict(tracked)
    moved["batch_stats"] = means["batch_stats"]
    if normalised:
      moved["vectors"] = means["vectors"]
    if gan.path_length:
      old, new = tracked["path"], means["path"]
      step = jnp.where(new < 0, 0, 1 - PATH_DECAY)
      moved["path"] = old + step * (new - old)
    return moved

  def picture(state: State, z: Array, cond: Cond, keys: Array, share: Array) -> Array:
    usable, _ = weights(state.ema["generator"], state.extra["tracked"])
    if styled:
      w = net.apply(usable, z, cond, share, method="styles")
      images = net.apply(usable, w, keys, method="synthesis")
    else:
      images = net.apply(usable, share * z, cond, keys)
    return jnp.clip(images, -1, 1) if spec.pixels else images

  def sample(state: State, rng: Array, cond: Any, n: int) -> Samples:
    draws, noises = jax.vmap(jax.random.split, out_axes=1)(sample_keys(rng, n))
    z, cond = noise(draws, limit), cond.replace(negative=None)
    form = lambda share: picture(state, z, cond, noises, share)  # noqa: E731
    last = (config.sample.truncation or 1.0) if styled else 1.0
    return edits.film(form, config.sample.frames, last)

  def logit(state: State, batch: Batch, rng: Array) -> Float[Array, " b"]:
    """The critic's of a real picture: it falls on held-out ones when it overfits.

    StyleGAN2's sees how much four in a row differ, in the order of evaluation.
    """
    own, x = state.extra["critic"], jnp.asarray(batch["x"])
    ready, _ = judge.ready(state.params["critic"], own)
    given = Play(jnp.zeros(len(x)), x, x)
    keys = example_keys(rng, batch["_id"])
    found = judge.judge(ready, x, batch["cond"], given, keys, own["strength"])
    return losses.mean(found)

  judge = critic.make(config)
  objective = Objective(
    init=lambda rng, batch: variables(rng, batch)["params"],
    play=play,
    tracked=Tracked(track, update),
  )
  base = Family(
    init=None,
    step=None,
    sample=sample,
    evals={"critic_logit": logit},
    objective=objective,
  )
  return adversarial(config, base, judge)
