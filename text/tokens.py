"""Captions to the token ids that a published encoder was trained with."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int

from core.errors import UserError
from nets.pretrained import hugging_face as hf

FILE = "tokenizer.json"


def clean(caption: str) -> str:
  """A caption without outer spaces, zeros, and halves of characters.

  A lone surrogate is no character and has no UTF-8 form: it becomes a question mark.
  """
  text = caption.encode("utf-8", "replace").decode("utf-8")
  return text.replace("\0", " ").strip()


def path(directory: Path) -> Path:
  """The file that describes the tokenizer, of the fast kind.

  Raises:
    UserError: it is missing.
  """
  file = directory / FILE
  if not file.exists():
    raise UserError(
      f"{file} is missing: copy it from Hugging Face, or, where a model has none there,"
      " make it with transformers: AutoTokenizer.from_pretrained(DIRECTORY)"
      ".save_pretrained(DIRECTORY)."
    )
  return file


def load(
  directory: Path, length: int
) -> Callable[[Sequence[str]], list[Int[np.ndarray, " l"]]]:
  """captions -> ids of each, with those that mark start and end, at most `length`.

  Raises:
    UserError: the package or the file is missing, the file is damaged, or `length` has
      no room for a caption.
  """
  file = path(directory)
  try:
    import tokenizers
  except ImportError as e:
    raise UserError(
      "frozen text encoders need the package tokenizers: pip install tokenizers."
    ) from e
  try:
    tokenizer = tokenizers.Tokenizer.from_file(str(file))
  except Exception as e:  # damaged files raise bare Exception
    raise UserError(f"{file} is damaged ({e}); download it again.") from e
  tokenizer.no_padding()
  if length <= tokenizer.num_special_tokens_to_add(is_pair=False):
    raise UserError(
      f"text.max_tokens={length} has no room for words beside the marks of {file};"
      " raise it."
    )
  tokenizer.enable_truncation(length)

  def tokenize(captions: Sequence[str]) -> list[Int[np.ndarray, " l"]]:
    texts = [clean(caption) for caption in captions]
    found = tokenizer.encode_batch(texts)
    return [np.asarray(one.ids, np.int32) for one in found]

  return tokenize


def padding(directory: Path) -> int:
  """The id of what fills up a text; 0 where tokenizer_config.json does not say."""
  file = directory / "tokenizer_config.json"
  if not file.exists():
    return 0
  token = hf.read_json(file).get("pad_token")
  token = token.get("content") if isinstance(token, dict) else token
  vocabulary = hf.read_json(path(directory))
  for added in vocabulary.get("added_tokens", []):
    if added.get("content") == token:
      return int(added["id"])
  return 0
