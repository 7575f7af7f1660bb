"""DALL-E 1: a text and its picture's tokens as one stream.

Ramesh et al. 2021 (arXiv:2102.12092), section 2.2: p(text, picture) = p(text)
p(picture | text), both by one decoder. There some layers read rows, columns or a
neighbourhood alone; here all read all before them, with rotary positions, and the text
is bytes.
"""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree
from ml_collections import ConfigDict

from autoregressive import decoder, sequence
from autoregressive.settings import refuse_others
from core.errors import UserError
from core.family import Family, Spec
from core.levels import bits
from nets.stream import JointStream, TextItems
from text.cond import Cond


def make(config: ConfigDict, spec: Spec) -> Family:
  """The family of a joint stream; sampling draws the picture behind a given text.

  The loss is w text + (1 - w) picture, w = `autoregressive.text_weight`, each the mean
  of -log2 p over its own tokens: in the paper w = 1/8. The padding that ends a text
  counts, and a text that is dropped (`text.drop`, for guidance) is told as an empty
  one. Both are evals: `text_bits` a byte, of `text.max_tokens`, and of the picture
  given its text `bpd` or `bits_per_token`.

  Raises:
    UserError: latents, no text, or settings that a decoder cannot take.
  """
  if config.text.encoder != "bytes":
    raise UserError(
      "autoregressive.dalle tells texts too: set text.encoder to 'bytes', not"
      f" {config.text.encoder!r}."
    )
  refuse_others(config, "text_weight")
  numbers = sequence.make(config.family, spec)
  net = decoder.transformer(config)
  stream = JointStream(TextItems(net.dim), net, spec.shape, numbers.vocab)

  def measure(
    params: PyTree, x: Int[Array, "b l"], cond: Cond, **training: Any
  ) -> dict[str, Float[Array, " b"]]:
    logits, text_logits = stream.apply({"params": params}, x, cond, **training)
    text = jnp.where(cond.mask, cond.tokens, 0)
    nats = sequence.cross_entropy(logits, x).sum(1)
    text_nats = sequence.cross_entropy(text_logits, text).sum(1)
    return {
      numbers.bits: bits(nats, numbers.length),
      "text_bits": bits(text_nats, text.shape[1]),
    }

  weight = config.autoregressive.text_weight
  weights = {numbers.bits: 1 - weight, "text_bits": weight}
  return decoder.of_stream(config, numbers, stream, measure, weights)
