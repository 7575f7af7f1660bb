"""A Llama-like decoder over a picture's pixels or tokens.

p(x | y) = prod_i p(x_i | x_0, ..., x_(i-1), y): of pixels as in Image GPT (Chen et al.
2020), of a codec's tokens as in VQGAN (Esser et al. 2021, arXiv:2012.09841) and
LlamaGen (Sun et al. 2024, arXiv:2406.06525), whose decoder this is: RMSNorm, SwiGLU,
rotary positions of two axes, and the condition in front.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree
from ml_collections import ConfigDict

from autoregressive import decoding, sampling, sequence
from autoregressive.sequence import Sequence
from core import checks
from core.errors import UserError
from core.family import (
  Batch,
  Family,
  Given,
  Metrics,
  Samples,
  Spec,
  example_keys,
  sample_keys,
)
from core.levels import bits
from core.step import from_loss
from nets import build
from nets.decoder import Decoder
from nets.stream import Stream
from text import encoders
from text.cond import Cond

# (params, numbers, raw Cond, training=...) -> code lengths of each example, by name.
Measure = Callable[..., dict[str, Float[Array, " b"]]]


def make(config: ConfigDict, spec: Spec) -> Family:
  """The family of a decoder of `config.model`'s width, depth and heads.

  The loss is minus the log likelihood in bits a number, exact: of pixels, bits a
  dimension. Its eval is `bpd`, or `bits_per_token`.

  Raises:
    UserError: latents, or settings that a decoder cannot take.
  """
  numbers = sequence.make(config.family, spec)
  stream = network(config, spec, numbers.vocab)

  def measure(
    params: PyTree, x: Int[Array, "b l"], cond: Cond, **training: Any
  ) -> dict[str, Float[Array, " b"]]:
    logits = stream.apply({"params": params}, x, cond, **training)
    nats = sequence.cross_entropy(logits, x).sum(1)
    return {numbers.bits: bits(nats, numbers.length)}

  return of_stream(config, numbers, stream, measure, {numbers.bits: 1.0})


def of_stream(
  config: ConfigDict,
  numbers: Sequence,
  stream: Stream,
  measure: Measure,
  weights: Mapping[str, float | int],
) -> Family:
  """The family of a stream; the loss is the sum of what it measures times `weights`.

  The condition is dropped at times (`text.drop`), for guidance.

  Evals: all that is measured.

  Edits: complete, which keeps the first 1 - `sample.strength` of the numbers.

  Raises:
    UserError: settings that it cannot take.
  """
  settings = sampling.make(config.sample, numbers.vocab)
  checks.refuse_small_pictures(config)
  encoders.check_guidance(config.text, settings.guidance_scale)
  guides = settings.guidance_scale != 1 and encoders.conditional(config.text)

  def init(rng: Array, batch: Batch) -> PyTree:
    x = numbers.read(jnp.asarray(batch["x"][:1]))
    cond = jax.tree.map(lambda a: a[:1], batch["cond"])
    return stream.init(rng, x, cond)["params"]

  def loss(params: PyTree, batch: Batch, rng: Array) -> tuple[Array, Metrics]:
    cond, ids = batch["cond"], batch["_id"]
    cond = encoders.dropped(config.text, cond, example_keys(rng, ids))
    x = numbers.read(jnp.asarray(batch["x"]))
    found = measure(params, x, cond, ids=ids, rngs={"dropout": rng})
    total = sum(weight * found[name] for name, weight in weights.items())
    return total, found if len(found) > 1 else {}

  def evaluate(
    name: str, params: PyTree, batch: Batch, rng: Array
  ) -> Float[Array, " b"]:
    return measure(params, numbers.read(jnp.asarray(batch["x"])), batch["cond"])[name]

  def drawn(
    params: PyTree, rng: Array, cond: Cond, n: int, known: Int[Array, "n l"] | None
  ) -> Samples:
    cond = cond.with_null() if guides else cond.replace(negative=None)
    batch = 2 * n if guides else n
    start = decoding.begin(stream, params, cond, batch, numbers.length)
    kept_share = 0.0 if known is None else 1 - config.sample.strength
    count = round(kept_share * numbers.length)
    kept = None if known is None else (jnp.arange(numbers.length) < count)[None]
    found = decoding.decode(
      *start, sample_keys(rng, n), numbers.length, settings, known, kept
    )
    return numbers.film(found, config.sample.frames, count)

  def sample(params: PyTree, rng: Array, cond: Cond, n: int) -> Samples:
    return drawn(params, rng, cond, n, None)

  def complete(params: PyTree, rng: Array, cond: Cond, given: Given) -> Samples:
    known = numbers.read(given.images)
    return drawn(params, rng, cond, len(known), known)

  edits = {"complete": complete}
  checks.check_edit(config, edits)
  return from_loss(
    config,
    init=init,
    loss=loss,
    sample=sample,
    evals={name: functools.partial(evaluate, name) for name in weights},
    edits=edits,
  )


def network(config: ConfigDict, spec: Spec, vocab: int) -> Stream:
  """The network of a config, for numbers of so many values."""
  encoder = encoders.make(config.text, build.dtype(config.model))
  return Stream(encoder, transformer(config), spec.shape, vocab)


def transformer(config: ConfigDict) -> Decoder:
  """The decoder of `config.model`.

  Raises:
    UserError: heads are not of a multiple of four numbers.
  """
  model, dtype = config.model, build.dtype(config.model)
  if model.dim % (4 * model.heads):
    raise UserError(
      f"model.dim={model.dim} must be a multiple of 4 x model.heads={4 * model.heads}:"
      " half of a head's positions tell the row, half the column."
    )
  return Decoder(
    model.dim,
    model.depth,
    model.heads,
    dropout=model.dropout,
    dtype=dtype,
    remat=model.remat,
    scan=model.scan,
  )
