"""The variational autoencoder: a decoder of normal noise, and an encoder to train it.

Kingma & Welling 2014 (arXiv:1312.6114): p(x|y) is the integral of p(x|z, y) over
z ~ N(0, I), and q(z|x, y), a normal, tells which z to look at. The loss is minus the
evidence lower bound on log p(x|y).
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
  Codec,
  Family,
  Given,
  Samples,
  Spec,
  check_spec,
  example_keys,
  sample_keys,
)
from core.step import UNTRACKED, from_loss
from text.cond import Cond
from vae import bounds, likelihoods
from vae.bounds import Posterior, bits
from vae.network import Model

Weights = tuple[PyTree, dict[str, PyTree]]  # parameters, and what `from_loss` tracks


def make(config: ConfigDict, spec: Spec) -> Family:
  """The family of `config.vae` and `config.model`.

  The loss is `bounds.loss` in bits a dimension, with `vae.beta`, `vae.warmup_steps` and
  `vae.free_bits` of each latent channel of each example. If the likelihood is a
  density, each draw of z comes with a draw of the noise that dequantizes x; the encoder
  sees x without. The condition is dropped at times (`text.drop`), so that the network
  knows p(x) too. Sampling takes no guidance: `sample.guidance_scale` is ignored.

  Evals: kl, reconstruction and their sum bpd, minus the ELBO in bits a dimension; on
  request bpd_iwae, the tighter bound of `vae.iwae_samples` draws. The codec's latents
  are the mean of q. It is given no condition, so a conditional model that was never
  trained without its own has none.

  Raises:
    UserError: settings that are unknown or do not fit the picture.
  """
  check_spec(config.family, spec, latents=False)
  model, settings = Model(config, spec), config.vae
  likelihood, dims = model.likelihood, math.prod(spec.shape)

  def likeliness(
    params: PyTree,
    x: Float[Array, "b h w c"],
    q: Posterior,
    vec: Float[Array, "b e"] | None,
    keys: Key[Array, " b"],
    ids: Integer[Array, " b"] | None = None,
    dropout: Array | None = None,
  ) -> tuple[Float[Array, " b"], Float[Array, " b"]]:
    """log p(x|z) and log p(z) - log q(z|x), at one draw of z an example."""
    keys = jax.vmap(jax.random.split)(keys)
    eps = jax.vmap(lambda key: jax.random.normal(key, model.latents))(keys[:, 0])
    raw = model.run(params, "decode", q.at(eps), vec, ids, dropout=dropout)
    if likelihood.density:
      x = likelihoods.dequantized(x, keys[:, 1])
    return likelihood.log_prob(x, raw), q.log_ratio(eps)

  def loss(weights: Weights, batch: Batch, rng: Array) -> tuple:
    (params, tracked), x, ids = weights, batch["x"], batch["_id"]
    keys = jax.vmap(jax.random.split)(example_keys(rng, ids))
    cond = batch["cond"]
    if config.text.drop > 0:
      cond = cond.drop(keys[:, 1], config.text.drop)
    vec = model.run(params, "embed", cond)
    q = model.run(params, "encode", x, vec, ids, dropout=rng)
    log_px, _ = likeliness(params, x, q, vec, keys[:, 0], ids, rng)
    kl = q.kl()
    beta = bounds.warmed(settings.beta, tracked["updates"], settings.warmup_steps)
    nats = bounds.loss(log_px, kl, beta, settings.free_bits * math.log(2))
    metrics = {"kl": bits(kl.sum(-1), dims), "reconstruction": bits(-log_px, dims)}
    return bits(nats, dims), metrics, {}

  def prepare(weights: Weights, batch: Batch, rng: Array) -> tuple:
    params, x = weights[0], jnp.asarray(batch["x"])
    vec = model.run(params, "embed", batch["cond"])
    q = model.run(params, "encode", x, vec)
    keys = example_keys(rng, batch["_id"])

    def draw(i: Array) -> tuple[Float[Array, " b"], Float[Array, " b"]]:
      own = jax.vmap(jax.random.fold_in, (0, None))(keys, i)
      return likeliness(params, x, q, vec, own)

    return q.kl().sum(-1), draw

  def kl(weights: Weights, batch: Batch, rng: Array) -> Float[Array, " b"]:
    return bits(prepare(weights, batch, rng)[0], dims)

  def reconstruction(weights: Weights, batch: Batch, rng: Array) -> Float[Array, " b"]:
    return bits(-prepare(weights, batch, rng)[1](jnp.asarray(0))[0], dims)

  def bpd(weights: Weights, batch: Batch, rng: Array) -> Float[Array, " b"]:
    return kl(weights, batch, rng) + reconstruction(weights, batch, rng)

  def bpd_iwae(weights: Weights, batch: Batch, rng: Array) -> Float[Array, " b"]:
    _, draw = prepare(weights, batch, rng)
    return bits(-bounds.iwae(lambda i: sum(draw(i)), settings.iwae_samples), dims)

  def film(
    params: PyTree, z: Float[Array, "n ..."], vec: Float[Array, "n e"] | None, nfe: int
  ) -> Samples:
    """The pictures, and how they form while z grows from 0."""
    shares = jnp.linspace(1, 0, config.sample.frames)[::-1]
    frames = jax.lax.map(lambda share: model.decoded(params, share * z, vec), shares)
    calls = jnp.full(len(z), nfe, jnp.int32)
    return Samples(model.decoded(params, z, vec), frames, calls)

  def sample(weights: Weights, rng: Array, cond: Cond, n: int) -> Samples:
    keys, params = sample_keys(rng, n), weights[0]
    z = jax.vmap(lambda key: jax.random.normal(key, model.latents))(keys)
    return film(params, z, model.run(params, "embed", cond), 1)

  def edited(between: bool) -> Callable[..., Samples]:
    def edit(weights: Weights, rng: Array, cond: Cond, given: Given) -> Samples:
      params = weights[0]
      vec = model.run(params, "embed", cond)
      z = model.run(params, "encode", given.images, vec).mean
      if between:
        share = jnp.linspace(0, 1, len(z)).reshape(-1, 1, 1, 1)
        z = (1 - share) * z[:1] + share * z[-1:]
      return film(params, z, vec, 2)

    return edit

  # reconstruct: through the latents and back; interpolate: from the first picture to
  # the last in equal steps, straight from one's latents to the other's.
  edits = {"reconstruct": edited(False), "interpolate": edited(True)}
  if config.sample.edit not in edits:
    raise unknown("sample.edit", config.sample.edit, edits)

  def unconditional(params: PyTree, n: int) -> Float[Array, "n e"] | None:
    return model.run(params, "embed", model.null(n))

  def encode(weights: Weights, images: Array) -> Float[Array, "n h w c"]:
    vec = unconditional(weights[0], len(images))
    return model.run(weights[0], "encode", images, vec).mean

  def decode(weights: Weights, latents: Array) -> Float[Array, "n h w c"]:
    vec = unconditional(weights[0], len(latents))
    return model.decoded(weights[0], latents, vec)

  codecs = {}
  if config.text.encoder == "none" or config.text.drop > 0:
    codecs["latents"] = Codec(Spec(model.latents, pixels=False), encode, decode)
  return from_loss(
    config,
    init=model.init,
    loss=loss,
    sample=sample,
    evals={
      "bpd": bpd,
      "kl": kl,
      "reconstruction": reconstruction,
      "bpd_iwae": bpd_iwae,
    },
    on_request=("bpd_iwae",),
    edits=edits,
    codecs=codecs,
    tracked=UNTRACKED,
  )
