"""A decoder of a picture's numbers in any order: each is told from those before it.

p(x | order) = prod_i p(x_order(i) | x_order(0), ..., x_order(i-1), place order(i)), one
network for all orders: Uria et al. 2014 (arXiv:1310.1757); with a transformer and the
place to tell as a second position the causal rows of MAR, Li et al. 2024
(arXiv:2406.11838), table 1.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree
from ml_collections import ConfigDict

from autoregressive import decoder, decoding, masking, sampling, sequence
from autoregressive.settings import refuse_others
from core import checks
from core.family import (
  Batch,
  Family,
  Samples,
  Spec,
  example_keys,
  keys_at,
  sample_keys,
)
from core.levels import bits
from nets import build
from nets.masked import MaskedTokens, Permuted
from text import encoders
from text.cond import Cond

ORDER = 2**32 - 1  # folded into a sample's key for its order; its draws count from 0


def make(config: ConfigDict, spec: Spec) -> Family:
  """The family of a causal transformer over numbers, in the `autoregressive.order`.

  'random' draws an order for each example; loss and eval are the code length in it, in
  bits a number. Pictures are drawn of the mean of p over orders, whose code length is
  no longer than the mean of theirs. 'raster' is row by row. A picture takes as many
  evaluations as it has numbers, whatever `sample.steps`.

  Edits: inpaint, which draws where the mask is 1; in a random order after all that is
  shown, row by row it reads what is shown before.

  Raises:
    UserError: latents, or settings that it cannot take.
  """
  numbers, order = sequence.make(config.family, spec), config.autoregressive.order
  refuse_others(config, "order")
  masking.check_order(config, masking.CAUSAL)
  settings, length = sampling.make(config.sample, numbers.vocab), numbers.length
  checks.refuse_small_pictures(config)
  encoders.check_guidance(config.text, settings.guidance_scale)
  net = network(config, spec, numbers.vocab)
  guides = settings.guidance_scale != 1 and config.text.encoder != "none"

  def init(rng: Array, batch: Batch) -> PyTree:
    x = numbers.read(jnp.asarray(batch["x"][:1]))
    cond = jax.tree.map(lambda a: a[:1], batch["cond"])
    return net.init(rng, x, jnp.arange(length)[None], cond)["params"]

  def losses(
    params: PyTree, batch: Batch, rng: Array, training: bool
  ) -> Float[Array, " b"]:
    cond, ids = batch["cond"], batch["_id"]
    keys = jax.vmap(lambda key: jax.random.split(key, 2))(example_keys(rng, ids))
    if training:
      cond = encoders.dropped(config.text, cond, keys[:, 1])
    x = numbers.read(jnp.asarray(batch["x"]))
    places = masking.places(order, keys[:, 0], jnp.ones(x.shape, bool))
    how = {"ids": ids, "rngs": {"dropout": rng}} if training else {}
    logits = net.apply({"params": params}, x, places, cond, **how)
    return bits(sequence.cross_entropy(logits, x).sum(1), length)

  def drawn(
    params: PyTree,
    rng: Array,
    cond: Cond,
    x: Int[Array, "n l"],
    hidden: Bool[Array, "n l"],
  ) -> Samples:
    keys = sample_keys(rng, len(x))
    cond = cond.with_null() if guides else cond.replace(negative=None)
    places = masking.places(order, keys_at(keys, ORDER), hidden)
    both = jnp.concatenate([places, places]) if guides else places
    start = decoding.in_order(net, params, cond, both)
    known, kept = (jnp.take_along_axis(a, places, axis=1) for a in (x, ~hidden))
    found = decoding.decode(*start, keys, length, settings, known, kept)
    when = jnp.argsort(places, axis=1)
    found = jnp.take_along_axis(found, when, axis=1)
    return numbers.film(found, config.sample.frames, when=when)

  return masking.family_of(
    config,
    spec,
    init=init,
    losses=losses,
    draw=drawn,
    read=masking.reader(numbers),
    name=numbers.bits,
  )


def network(config: ConfigDict, spec: Spec, vocab: int) -> MaskedTokens:
  """The network of a config, for numbers of so many values."""
  encoder = encoders.make(config.text, build.dtype(config.model))
  trunk = Permuted(encoder, decoder.transformer(config), spec.shape)
  return MaskedTokens(trunk, vocab)
