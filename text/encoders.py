"""From captions and labels to `Cond`: the raw form, and encoders of it."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from core.errors import UserError, unknown
from nets.layers import masked_mean
from nets.transformer import Encoder
from text.bytes import VOCAB_SIZE, tokenize
from text.cond import Cond

KINDS = ("bytes", "label", "none")


class BytesEncoder(nn.Module):
  """A small transformer over bytes, trained together with the generator.

  Attributes:
    dim: width of `seq` and `pooled`.
    depth, heads: of the transformer.
    dtype: of the computation; parameters are float32.
  """

  dim: int
  depth: int
  heads: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, cond: Cond) -> Cond:
    """tokens, mask [b, l] -> seq [b, l, dim], mask, pooled [b, dim] (their mean)."""
    tokens, mask = cond.tokens, cond.mask
    init = nn.initializers.normal(0.02)
    positions = self.param("positions", init, (tokens.shape[1], self.dim))
    seq = nn.Embed(VOCAB_SIZE, self.dim, embedding_init=init, name="bytes")(tokens)
    seq = Encoder(self.dim, self.depth, self.heads, dtype=self.dtype)(
      seq + positions, mask
    )
    return Cond(seq=seq, mask=mask, pooled=masked_mean(seq, mask))


class LabelEncoder(nn.Module):
  """One learned vector a class, and one for "no class" (label -1)."""

  classes: int
  dim: int

  @nn.compact
  def __call__(self, cond: Cond) -> Cond:
    """label [b] -> pooled [b, dim]."""
    table = nn.Embed(self.classes + 1, self.dim, name="classes")
    return Cond(pooled=table(jnp.where(cond.label < 0, self.classes, cond.label)))


class NoEncoder(nn.Module):
  """For unconditional generators: passes an empty condition on."""

  def __call__(self, cond: Cond) -> Cond:
    """Cond() -> Cond()."""
    return cond


def make(text: ConfigDict, dtype: Any = jnp.float32) -> nn.Module:
  """The encoder of `config.text`: raw Cond -> encoded Cond.

  Raises:
    UserError: unknown encoder, or label without `text.classes`.
  """
  match text.encoder:
    case "bytes":
      return BytesEncoder(text.dim, text.depth, text.heads, dtype)
    case "label":
      if text.classes < 1:
        raise UserError(
          "text.encoder='label' needs text.classes, the data's number of classes."
        )
      return LabelEncoder(text.classes, text.dim)
    case "none":
      return NoEncoder()
  raise unknown("text.encoder", text.encoder, KINDS)


def check_guidance(text: ConfigDict, guidance_scale: float) -> None:
  """Raises UserError if guidance asks for a null condition that is never trained."""
  if text.encoder != "none" and guidance_scale != 1 and text.drop <= 0:
    raise UserError(
      f"sample.guidance_scale={guidance_scale} needs a model that was trained without"
      " its condition at times: set text.drop above 0, or sample.guidance_scale to 1."
    )


def raw(text: ConfigDict) -> Callable[[str, int], Cond]:
  """(caption, label) -> the raw Cond of one example, numpy, without a batch axis.

  Raises (when called):
    UserError: a label outside [0, text.classes).
  """
  if text.encoder not in KINDS:
    raise unknown("text.encoder", text.encoder, KINDS)

  def make_cond(caption: str, label: int) -> Cond:
    if text.encoder == "bytes":
      tokens, mask = tokenize(caption, text.max_tokens)
      return Cond(tokens=tokens, mask=mask)
    if text.encoder == "label":
      if not 0 <= label < text.classes:
        raise UserError(
          f"label {label} is not in [0, text.classes={text.classes}); set text.classes"
          " to the data's number of classes, or text.encoder to 'bytes'."
        )
      return Cond(label=np.asarray(label, np.int32))
    return Cond()

  return make_cond
