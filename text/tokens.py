"""Captions to the token ids that a published encoder was trained with."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from core.errors import UserError
from nets.pretrained import hugging_face as hf
from text.encoded import Measured

FILE = "tokenizer.json"
CLIP = ("vocab.json", "merges.txt")


def clean(caption: str) -> str:
  """A caption without outer spaces, zeros, and halves of characters.

  A lone surrogate is no character and has no UTF-8 form: it becomes a question mark.
  """
  text = caption.encode("utf-8", "replace").decode("utf-8")
  return text.replace("\0", " ").strip()


def paths(directory: Path) -> list[Path]:
  """The files that describe the tokenizer: tokenizer.json, or CLIP's older two.

  They are in the directory, or in `tokenizer` beside it, as diffusers has it.

  Raises:
    UserError: they are missing.
  """
  for folder in (directory, directory.parent / "tokenizer"):
    for names in ((FILE,), CLIP):
      found = [folder / name for name in names]
      if all(file.exists() for file in found):
        return found
  raise UserError(
    f"{directory / FILE} is missing: copy it from Hugging Face, or, where a model has"
    " none there, make it with transformers: AutoTokenizer.from_pretrained(DIRECTORY)"
    ".save_pretrained(DIRECTORY)."
  )


def opened(directory: Path) -> Any:
  """The tokenizer of a directory, a tokenizers.Tokenizer.

  Raises:
    UserError: the package or a file is missing, or a file is damaged.
  """
  files = paths(directory)
  try:
    import tokenizers

    from text import bpe
  except ImportError as e:
    raise UserError(
      "frozen text encoders need the package tokenizers: pip install tokenizers."
    ) from e
  try:
    if len(files) == 1:
      return tokenizers.Tokenizer.from_file(str(files[0]))
    return bpe.clip(*files)
  except Exception as e:  # damaged files raise bare Exception
    raise UserError(f"{files[0]} is damaged ({e}); download it again.") from e


def load(
  directory: Path, length: int
) -> Callable[[Sequence[str]], list[Int[np.ndarray, " l"]]]:
  """captions -> ids of each, with those that mark start and end, at most `length`.

  Raises:
    UserError: the package or the file is missing, the file is damaged, or `length` has
      no room for a caption.
  """
  tokenizer = opened(directory)
  tokenizer.no_padding()
  if length <= tokenizer.num_special_tokens_to_add(is_pair=False):
    raise UserError(
      f"text.max_tokens={length} has no room for words beside the marks of"
      f" {paths(directory)[0]}; raise it."
    )
  tokenizer.enable_truncation(length)

  def tokenize(captions: Sequence[str]) -> list[Int[np.ndarray, " l"]]:
    texts = [clean(caption) for caption in captions]
    found = tokenizer.encode_batch(texts)
    return [np.asarray(one.ids, np.int32) for one in found]

  return tokenize


def measure(directory: Path, captions: Sequence[str]) -> list[Measured]:
  """How the tokenizer of a directory reads captions.

  Raises:
    UserError: as `opened`.
  """
  tokenizer = opened(directory)
  tokenizer.no_padding()
  tokenizer.no_truncation()
  model = json.loads(tokenizer.to_str())["model"]
  unknown = model.get("unk_id")
  if unknown is None:
    unknown = tokenizer.token_to_id(model.get("unk_token") or "")
  found = tokenizer.encode_batch([clean(caption) for caption in captions])
  return [
    Measured(
      len(one.ids),
      # Marks of start and end may have the same number.
      any(
        i == unknown and not mark
        for i, mark in zip(one.ids, one.special_tokens_mask, strict=True)
      ),
    )
    for one in found
  ]


def padding(directory: Path) -> int:
  """The id of what fills up a text; 0 where the files beside it do not say."""
  place = paths(directory)[0].parent
  for name in ("special_tokens_map.json", "tokenizer_config.json"):
    file = place / name
    token = hf.read_json(file).get("pad_token") if file.exists() else None
    token = token.get("content") if isinstance(token, dict) else token
    if isinstance(token, str):
      return opened(directory).token_to_id(token) or 0
  return 0
