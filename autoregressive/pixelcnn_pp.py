"""PixelCNN++: pixel after pixel, its colours by a mixture of discretised logistics.

Salimans et al. 2017 (arXiv:1701.05517). log p(x | y) = sum over pixels of log p(pixel |
those above and to the left, y), exact.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree
from ml_collections import ConfigDict

from autoregressive import sequence
from autoregressive.settings import refuse_others
from core import checks, logistic_mixture
from core.family import (
  Batch,
  Family,
  Given,
  Metrics,
  Samples,
  Spec,
  check_spec,
  keys_at,
  sample_keys,
)
from core.levels import bits, from_levels, to_levels, total
from core.step import from_loss
from nets import build
from nets.pixelcnn import PixelCNNPP
from text import encoders
from text.cond import Cond


def make(config: ConfigDict, spec: Spec) -> Family:
  """The family of `autoregressive.components` logistics a pixel.

  The loss is minus the log likelihood in bits a dimension, which is exact: eval `bpd`.
  A sample runs the network once for each pixel.

  Edits: complete, which keeps the first 1 - `sample.strength` of the pixels.

  Raises:
    UserError: latents or tokens, or settings that it cannot take.
  """
  check_spec(config.family, spec, latents=False)
  refuse_others(config, "components")
  checks.refuse_small_pictures(config)
  checks.refuse_guidance(config)
  checks.refuse(config, "sample", temperature=1.0, top_k=0, top_p=1.0)
  checks.refuse(config, "text", drop=0.0)
  numbers = sequence.make(config.family, spec)
  height, width, channels = spec.shape
  components = config.autoregressive.components
  dtype, model = build.dtype(config.model), config.model
  encoder = encoders.make(config.text, dtype)
  raw = logistic_mixture.width(channels, components)
  net = PixelCNNPP(raw, tuple(model.widths), model.blocks, model.dropout, dtype)

  def init(rng: Array, batch: Batch) -> PyTree:
    text, own = jax.random.split(rng)
    x = jnp.asarray(batch["x"][:1])
    cond = jax.tree.map(lambda a: a[:1], batch["cond"])
    params = {"text": encoder.init(text, cond).get("params", {})}
    params["net"] = net.init(own, x, encode(params, cond))["params"]
    return params

  def encode(params: PyTree, cond: Cond) -> Cond:
    return encoder.apply({"params": params["text"]}, cond)

  def length(params: PyTree, x: Array, cond: Cond, *ids, **how) -> Float[Array, " b"]:
    """Bits a dimension."""
    x, encoded = jnp.asarray(x), encode(params, cond)
    found = net.apply({"params": params["net"]}, x, encoded, *ids, **how)
    nats = -total(logistic_mixture.log_prob(x, found, components))
    return bits(nats, numbers.length)

  def loss(params: PyTree, batch: Batch, rng: Array) -> tuple[Array, Metrics]:
    ids = batch["_id"]
    rngs = {"dropout": rng}
    return length(params, batch["x"], batch["cond"], ids, rngs=rngs), {}

  def drawn(
    params: PyTree, rng: Array, cond: Cond, n: int, known: Array | None
  ) -> Samples:
    keys = sample_keys(rng, n)
    encoded, count = encode(params, cond.replace(negative=None)), height * width
    kept_share = 0.0 if known is None else 1 - config.sample.strength
    first = round(kept_share * count)
    canvas = jnp.zeros((n, *spec.shape)) if known is None else kept(known, first)

    def body(canvas: Array, i: Array) -> tuple[Array, None]:
      row, column = i // width, i % width
      found = net.apply({"params": params["net"]}, canvas, encoded)[:, row, column]
      own = keys_at(keys, i)
      pixel = logistic_mixture.draw(found, own, channels, components)
      return canvas.at[:, row, column].set(pixel), None

    canvas, _ = jax.lax.scan(body, canvas, jnp.arange(first, count))
    frames = config.sample.frames
    found = numbers.film(numbers.read(canvas), frames, first * channels)
    return found._replace(nfe=jnp.full(n, count - first, jnp.int32))

  def kept(x: Array, count: int) -> Float[Array, "n h w c"]:
    """The first `count` pixels, to the nearest level, and zeros."""
    places = jnp.arange(height * width).reshape(height, width, 1)
    return jnp.where(places < count, from_levels(to_levels(x)), 0.0)

  def sample(params: PyTree, rng: Array, cond: Cond, n: int) -> Samples:
    return drawn(params, rng, cond, n, None)

  def complete(params: PyTree, rng: Array, cond: Cond, given: Given) -> Samples:
    return drawn(params, rng, cond, len(given.images), given.images)

  edits = {"complete": complete}
  checks.check_edit(config, edits)
  return from_loss(
    config,
    init=init,
    loss=loss,
    sample=sample,
    evals={"bpd": lambda params, batch, rng: length(params, batch["x"], batch["cond"])},
    edits=edits,
  )
