"""`Dataset`: pictures with captions and labels, read at random, decoded on demand."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Shaped, UInt8

from core.errors import UserError

Captions = Mapping[str, tuple[str, ...]]

# Decoded pictures are kept in memory up to this size; beyond it every reading
# decodes again.
CACHE_BYTES = 2**30


class Example(NamedTuple):
  """One picture [size, size, channels], its captions by language, its label.

  Pixels are uint8, latents are not. `captions` may be empty; `label` is -1 when there
  is none. `embedding` is a vector of the picture where a generator reads one.
  """

  image: Shaped[np.ndarray, "..."]
  captions: Captions
  label: int
  embedding: Float[np.ndarray, " d"] | None = None


class Dataset:
  """A finite sequence of examples.

  Attributes:
    name: what messages call it.
    classes: their names, label 0 first; empty when the data have none.
    languages: codes of the languages that captions come in.
    cached: decoded pictures stay in memory.
  """

  def __init__(
    self,
    name: str,
    length: int,
    read: Callable[[int], Example],
    *,
    shape: tuple[int, int, int],
    captions: Callable[[int], Captions],
    classes: Sequence[str] = (),
    languages: Iterable[str] = (),
  ):
    """`read(i)` decodes example i; `captions(i)` gives its text without decoding.

    Both may be called from several threads. `shape` is that of every picture.
    """
    self.name = name
    self.classes = tuple(classes)
    self.languages = tuple(sorted(languages))
    self.cached = length * int(np.prod(shape)) <= CACHE_BYTES
    self.captions = captions
    self._read = read
    self._memory: list[Example | None] = [None] * length

  def __len__(self) -> int:
    return len(self._memory)

  def __getitem__(self, i: int) -> Example:
    example = self._memory[i]
    if example is None:
      example = self._read(i)
      if self.cached:
        self._memory[i] = example
    return example

  def image(self, i: int) -> UInt8[np.ndarray, "h w c"]:
    """The pixels of example i."""
    return self[i].image

  def label(self, i: int) -> int:
    """The class of example i, -1 if it has none."""
    return self[i].label

  def check_languages(self, languages: Iterable[str]) -> None:
    """Raises UserError if the captions lack one of `languages`.

    Data without any caption pass: they train an unconditional model.
    """
    missing = [code for code in languages if code not in self.languages]
    if self.languages and missing:
      raise UserError(
        f"{self.name} has no captions in {', '.join(missing)}: choose "
        f"data.languages among {', '.join(self.languages)}."
      )


def words(name: str) -> str:
  """A class name as a caption: 'ice_cream' -> 'ice cream'."""
  return name.replace("_", " ").strip()


def matches(pattern: str) -> Callable[[Captions], bool]:
  """The test `data.match` makes: is `pattern` found in an English caption?

  In any caption, when there is no English one. The empty pattern passes all.

  Raises:
    UserError: `pattern` is not a regular expression.
  """
  try:
    search = re.compile(pattern).search
  except re.error as error:
    raise UserError(
      f"data.match {pattern!r} is not a valid regular expression: {error}."
    ) from error

  def test(captions: Captions) -> bool:
    texts = captions.get("en") or [t for own in captions.values() for t in own]
    return any(search(text) for text in texts)

  return test if pattern else lambda captions: True


def nothing_matches(name: str, split: str, pattern: str) -> UserError:
  """The refusal of a `data.match` that leaves no example."""
  return UserError(
    f"No caption in the {split} split of {name} matches data.match {pattern!r}: "
    "change the expression, or set it to '' to keep everything."
  )
