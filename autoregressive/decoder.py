"""A Llama-like decoder over a picture's pixels or tokens.

p(x | y) = prod_i p(x_i | x_0, ..., x_(i-1), y): of pixels as in Image GPT (Chen et al.
2020), of a codec's tokens as in VQGAN (Esser et al. 2021, arXiv:2012.09841) and
LlamaGen (Sun et al. 2024, arXiv:2406.06525), whose decoder this is: RMSNorm, SwiGLU,
rotary positions of two axes, and the condition in front.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree
from ml_collections import ConfigDict

from autoregressive import decoding, sampling, sequence
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


def make(config: ConfigDict, spec: Spec) -> Family:
  """The family of a decoder of `config.model`'s width, depth and heads.

  The loss is minus the log likelihood in bits a number, exact: of pixels, bits a
  dimension. Its eval is `bpd`, or `bits_per_token`. The condition is dropped at times
  (`text.drop`), for guidance.

  Edits: complete, which keeps the first 1 - `sample.strength` of the numbers.

  Raises:
    UserError: latents, or settings that a decoder cannot take.
  """
  numbers = sequence.make(config.family, spec)
  settings = sampling.make(config.sample)
  checks.refuse_small_pictures(config)
  encoders.check_guidance(config.text, settings.guidance_scale)
  stream = network(config, spec, numbers.vocab)
  guides = settings.guidance_scale != 1 and config.text.encoder != "none"

  def init(rng: Array, batch: Batch) -> PyTree:
    x = numbers.read(jnp.asarray(batch["x"][:1]))
    cond = jax.tree.map(lambda a: a[:1], batch["cond"])
    return stream.init(rng, x, cond)["params"]

  def length(params: PyTree, x: Array, cond: Cond, **training) -> Float[Array, " b"]:
    """Bits a number."""
    x = numbers.read(jnp.asarray(x))
    logits = stream.apply({"params": params}, x, cond, **training)
    return bits(sequence.cross_entropy(logits, x).sum(1), numbers.length)

  def loss(params: PyTree, batch: Batch, rng: Array) -> tuple[Array, Metrics]:
    cond, ids = batch["cond"], batch["_id"]
    if config.text.drop > 0:
      cond = cond.drop(example_keys(rng, ids), config.text.drop)
    how = {"ids": ids, "rngs": {"dropout": rng}}
    return length(params, batch["x"], cond, **how), {}

  def drawn(
    params: PyTree, rng: Array, cond: Cond, n: int, known: Int[Array, "n l"] | None
  ) -> Samples:
    cond = cond.with_null() if guides else cond.replace(negative=None)
    batch = 2 * n if guides else n
    start = decoding.begin(stream, params, cond, batch, numbers.length)
    count = round((1 - config.sample.strength) * numbers.length)
    found = decoding.decode(
      *start, sample_keys(rng, n), numbers.length, settings, known, count
    )
    return numbers.film(found, config.sample.frames)

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
    evals={
      numbers.bits: lambda params, batch, rng: length(params, batch["x"], batch["cond"])
    },
    edits=edits,
  )


def network(config: ConfigDict, spec: Spec, vocab: int) -> Stream:
  """The network of a config, for numbers of so many values.

  Raises:
    UserError: heads are not of a multiple of four numbers.
  """
  model, dtype = config.model, build.dtype(config.model)
  if model.dim % (4 * model.heads):
    raise UserError(
      f"model.dim={model.dim} must be a multiple of 4 x model.heads={4 * model.heads}:"
      " half of a head's positions tell the row, half the column."
    )
  decoder = Decoder(
    model.dim,
    model.depth,
    model.heads,
    dropout=model.dropout,
    dtype=dtype,
    remat=model.remat,
    scan=model.scan,
  )
  return Stream(encoders.make(config.text, dtype), decoder, spec.shape, vocab)
