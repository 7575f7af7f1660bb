"""The variational autoencoder: a decoder of normal noise, and an encoder to train it.

Kingma & Welling 2014 (arXiv:1312.6114): p(x|y) is the integral of p(x|z, y) over
z ~ N(0, I), and q(z|x, y), a normal, tells which z to look at. The loss is minus the
evidence lower bound on log p(x|y).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree
from ml_collections import ConfigDict

from core import checks, edits
from core.family import Batch, Codec, Family, Samples, Spec, sample_keys
from text import encoders
from text.cond import Cond
from vae import elbo
from vae.elbo import Draw, Seen, Weights
from vae.network import Model


def make(config: ConfigDict, spec: Spec) -> Family:
  """The family of `config.vae` and `config.model`; loss and evals as `elbo.family` has.

  If the likelihood is a density, each draw of z comes with a draw of the noise that
  dequantizes x; the encoder sees x without. The codec's latents are the mean of q. It
  is given no condition, so a conditional model that was never trained without its own
  has none.

  Raises:
    UserError: settings that are unknown, of no use or do not fit the picture.
  """
  checks.refuse(config, "vae", bottleneck="kl", evenness=0)
  model = Model(config, spec)

  def see(
    params: PyTree, batch: Batch, cond: Cond, dropout: Array | None = None
  ) -> Seen:
    x, ids = jnp.asarray(batch["x"]), None if dropout is None else batch["_id"]
    vec = model.run(params, "embed", cond)
    q = model.run(params, "encode", x, vec, ids, dropout=dropout)

    def draw(keys: Key[Array, " b"]) -> Draw:
      keys = jax.vmap(jax.random.split)(keys)
      eps = noise(keys[:, 0])
      raw = model.run(params, "decode", q.at(eps), vec, ids, dropout=dropout)
      log_px = model.likelihood.log_levels(x, raw, keys[:, 1])
      picture = model.likelihood.mean(raw)
      return Draw(log_px, {"kl": q.kl()}, q.log_ratio(eps), picture)

    return draw

  def noise(keys: Key[Array, " n"]) -> Float[Array, "n h w c"]:
    return jax.vmap(lambda key: jax.random.normal(key, model.latents))(keys)

  def mean(weights: Weights, cond: Cond, images: Array) -> Float[Array, "n h w c"]:
    """Of q."""
    vec = model.run(weights[0], "embed", cond)
    return model.run(weights[0], "encode", images, vec).mean

  def form(weights: Weights, z: Float[Array, "n h w c"], cond: Cond) -> Samples:
    """The pictures of z, and how they form while it grows from 0."""
    vec = model.run(weights[0], "embed", cond)
    picture = lambda share: model.decoded(weights[0], share * z, vec)  # noqa: E731
    return edits.film(picture, config.sample.frames)

  def sample(weights: Weights, rng: Array, cond: Cond, n: int) -> Samples:
    return form(weights, noise(sample_keys(rng, n)), cond)

  def encode(weights: Weights, images: Array) -> Float[Array, "n h w c"]:
    return mean(weights, model.null(len(images)), images)

  def decode(weights: Weights, latents: Array) -> Float[Array, "n h w c"]:
    vec = model.run(weights[0], "embed", model.null(len(latents)))
    return model.decoded(weights[0], latents, vec)

  codecs = {}
  if config.text.encoder == "none" or encoders.knows_null(config.text):
    codecs["latents"] = Codec(Spec(model.latents, pixels=False), encode, decode)
  return elbo.family(
    config,
    spec,
    init=model.init,
    see=see,
    sample=sample,
    edits={
      "reconstruct": edits.reconstruct(mean, form),
      "interpolate": edits.interpolate(mean, form),
    },
    codecs=codecs,
    last=("decoder", "out", "kernel"),
  )
