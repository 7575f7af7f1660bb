"""Byte-level tokenizer: any language, no vocabulary file."""

import unicodedata

import numpy as np
from jaxtyping import Bool, Int

VOCAB_SIZE = 257  # 0 is padding, byte b is b + 1


def tokenize(
  caption: str, max_tokens: int
) -> tuple[Int[np.ndarray, " l"], Bool[np.ndarray, " l"]]:
  """UTF-8 bytes plus one, cut or padded with 0 to `max_tokens`, and their mask.

  Letter case, outer spaces and the Unicode form (it is made NFC) carry no meaning
  in a caption. Half of a character (a surrogate) becomes a question mark.
  """
  raw = spelled(caption)[:max_tokens]
  tokens = np.zeros(max_tokens, np.int32)
  tokens[: len(raw)] = np.frombuffer(raw, np.uint8).astype(np.int32) + 1
  return tokens, tokens > 0


def spelled(caption: str) -> bytes:
  """What `tokenize` reads of a caption, whole."""
  text = unicodedata.normalize("NFC", caption.strip().lower())
  return text.encode("utf-8", "replace")
