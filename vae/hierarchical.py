"""A hierarchy of latents, drawn top down: coarse ones first, finer ones given those.

p(x|y) is the integral of p(x|z, y) prod_l p(z_l | z_<l, y) over groups of latents z_l,
all normal, and q(z|x, y) = prod_l q(z_l | z_<l, x, y) takes the same way down: Ladder
VAE (Sønderby et al. 2016, arXiv:1602.02282), NVAE (Vahdat & Kautz 2020,
arXiv:2007.03898), VDVAE (Child 2020, arXiv:2011.10650). The loss is minus the evidence
lower bound on log p(x|y).
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer, Key, PyTree
from ml_collections import ConfigDict

from core.errors import unknown
from core.family import (
  Batch,
  Family,
  Given,
  Samples,
  Spec,
  check_spec,
  example_keys,
  sample_keys,
)
from core.step import UNTRACKED, from_loss
from nets.groups import Normal
from text.cond import Cond
from vae import bounds, likelihoods
from vae.bounds import bits
from vae.hierarchy import Maps, Model, Vec

Weights = tuple[PyTree, dict[str, PyTree]]  # parameters, and what `from_loss` tracks


def kl(q: Normal, p: Normal) -> Float[Array, "b g"]:
  """KL(q || p) of each group in nats.

  The sum of log(sp / sq) + (sq^2 + (mq - mp)^2) / (2 sp^2) - 1/2.
  """
  ratio = q.log_std - p.log_std
  off = (q.mean - p.mean) * jnp.exp(-p.log_std)
  each = (jnp.exp(2 * ratio) + off**2 - 1) / 2 - ratio
  return each.sum((2, 3, 4)).T


def log_ratio(
  q: Normal, p: Normal, eps: Float[Array, "g b h w c"]
) -> Float[Array, " b"]:
  """log p(z) - log q(z) at z = q.at(eps), whose mean is -kl."""
  off = (q.at(eps) - p.mean) * jnp.exp(-p.log_std)
  each = (eps**2 - off**2) / 2 + q.log_std - p.log_std
  return each.sum((0, 2, 3, 4))


def make(config: ConfigDict, spec: Spec) -> Family:
  """The family of `config.vae` and `config.model`.

  The loss is `bounds.loss` in bits a dimension, with `vae.beta`, `vae.warmup_steps` and
  `vae.free_bits` of each group of each example. If the likelihood is a density, each
  draw of z comes with a draw of the noise that dequantizes x; the way up sees x
  without. The condition is dropped at times (`text.drop`), so that the network knows
  p(x) too. Sampling takes no guidance, and shows the mean of p(x|z, y).

  Metrics: kl, reconstruction, and kl_N of the groups of side N. Evals: kl,
  reconstruction and their sum bpd, minus the ELBO in bits a dimension; on request
  bpd_iwae, the tighter bound of `vae.iwae_samples` draws.

  Raises:
    UserError: settings that are unknown or do not fit the picture or one another.
  """
  check_spec(config.family, spec, latents=False)
  model, settings = Model(config, spec), config.vae
  likelihood, dims = model.likelihood, math.prod(spec.shape)
  everything = model.first(sum(settings.groups))

  def descended(
    params: PyTree,
    x: Float[Array, "b h w c"],
    maps: Maps,
    vec: Vec,
    keys: Key[Array, " b"],
  ) -> tuple[Float[Array, " b"], list[Float[Array, "b g"]], Float[Array, " b"]]:
    """log p(x|z), KLs and log p(z) - log q(z|x), at one draw of z an example."""
    keys = jax.vmap(jax.random.split)(keys)
    eps = model.noise(keys[:, 0])
    met = model.run(params, "descend", eps, everything, vec, maps)
    if likelihood.density:
      x = likelihoods.dequantized(x, keys[:, 1])
    pairs = list(zip(met.posteriors, met.priors, strict=True))
    ratios = [log_ratio(*pair, e) for pair, e in zip(pairs, eps, strict=True)]
    return likelihood.log_prob(x, met.out), [kl(*pair) for pair in pairs], sum(ratios)

  def loss(weights: Weights, batch: Batch, rng: Array) -> tuple:
    (params, tracked), x = weights, batch["x"]
    keys = jax.vmap(jax.random.split)(example_keys(rng, batch["_id"]))
    cond = batch["cond"]
    if config.text.drop > 0:
      cond = cond.drop(keys[:, 1], config.text.drop)
    vec = model.run(params, "embed", cond)
    maps = model.run(params, "ascend", x, vec)
    log_px, kls, _ = descended(params, x, maps, vec, keys[:, 0])
    beta = bounds.warmed(settings.beta, tracked["updates"], settings.warmup_steps)
    nats = bounds.loss(
      log_px, jnp.concatenate(kls, axis=1), beta, settings.free_bits * math.log(2)
    )
    metrics = {
      f"kl_{side}": bits(part.sum(1), dims)
      for (_, side, *_), part in zip(model.net.down.shapes, kls, strict=True)
    }
    metrics["kl"] = sum(metrics.values())
    metrics["reconstruction"] = bits(-log_px, dims)
    return bits(nats, dims), metrics, {}

  def draws(weights: Weights, batch: Batch, rng: Array) -> Callable[[Array], tuple]:
    """Draw i -> `descended` of the batch."""
    params, x = weights[0], jnp.asarray(batch["x"])
    vec = model.run(params, "embed", batch["cond"])
    maps = model.run(params, "ascend", x, vec)
    keys = example_keys(rng, batch["_id"])

    def draw(i: Integer[Array, ""]) -> tuple:
      own = jax.vmap(jax.random.fold_in, (0, None))(keys, i)
      return descended(params, x, maps, vec, own)

    return draw

  def kl_of(weights: Weights, batch: Batch, rng: Array) -> Float[Array, " b"]:
    _, kls, _ = draws(weights, batch, rng)(jnp.asarray(0))
    return bits(sum(part.sum(1) for part in kls), dims)

  def reconstruction(weights: Weights, batch: Batch, rng: Array) -> Float[Array, " b"]:
    return bits(-draws(weights, batch, rng)(jnp.asarray(0))[0], dims)

  def bpd(weights: Weights, batch: Batch, rng: Array) -> Float[Array, " b"]:
    return kl_of(weights, batch, rng) + reconstruction(weights, batch, rng)

  def bpd_iwae(weights: Weights, batch: Batch, rng: Array) -> Float[Array, " b"]:
    draw = draws(weights, batch, rng)

    def log_weight(i: Integer[Array, ""]) -> Float[Array, " b"]:
      log_px, _, ratio = draw(i)
      return log_px + ratio

    return bits(-bounds.iwae(log_weight, settings.iwae_samples), dims)

  def film(params: PyTree, eps: tuple, vec: Vec, maps: Maps | None) -> Samples:
    """The pictures, and how they form: more groups drawn, the rest at their mean."""
    n, groups = eps[0].shape[1], sum(settings.groups)
    counts = jnp.linspace(groups, 0, config.sample.frames)[::-1].round().astype(int)

    def picture(count: Integer[Array, ""]) -> Float[Array, "n h w c"]:
      drawn = model.first(count)
      return likelihood.mean(model.run(params, "descend", eps, drawn, vec, maps).out)

    frames = jax.lax.map(picture, counts)
    calls = jnp.full(n, 1 if maps is None else 2, jnp.int32)
    return Samples(frames[-1], frames, calls)

  def sample(weights: Weights, rng: Array, cond: Cond, n: int) -> Samples:
    params, eps = weights[0], model.noise(sample_keys(rng, n))
    return film(params, eps, model.run(params, "embed", cond), None)

  def reconstruct(weights: Weights, rng: Array, cond: Cond, given: Given) -> Samples:
    """From the posterior's means, the coarsest groups' first."""
    params = weights[0]
    vec = model.run(params, "embed", cond)
    maps = model.run(params, "ascend", given.images, vec)
    eps = jax.tree.map(jnp.zeros_like, model.noise(sample_keys(rng, len(given.images))))
    return film(params, eps, vec, maps)

  edits = {"reconstruct": reconstruct}
  if config.sample.edit not in edits:
    raise unknown("sample.edit", config.sample.edit, edits)
  return from_loss(
    config,
    init=model.init,
    loss=loss,
    sample=sample,
    evals={
      "bpd": bpd,
      "kl": kl_of,
      "reconstruction": reconstruction,
      "bpd_iwae": bpd_iwae,
    },
    on_request=("bpd_iwae",),
    edits=edits,
    tracked=UNTRACKED,
  )
