"""What a frozen encoder makes of a caption, and what all of them share."""

import abc
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float


class Encoded(NamedTuple):
  """One caption in bfloat16: a vector for each of its tokens, and one for all."""

  seq: Float[np.ndarray, "l d"]
  pooled: Float[np.ndarray, " e"]


class Measured(NamedTuple):
  """How a tokenizer reads a caption.

  Attributes:
    tokens: how many it has before it is cut.
    unknown: whether a part of it has no token of its own.
  """

  tokens: int
  unknown: bool


Encode = Callable[[Sequence[str]], list[Encoded]]


class Frozen(abc.ABC):
  """A frozen encoder.

  Attributes:
    name: as in `text.frozen`.
    length: most tokens of a caption.
    dim: of their vectors; 0 if there are none.
    pooled_dim: of the pooled vector.
    key: hash of all that the vectors depend on.
  """

  name: str
  length: int
  dim: int
  pooled_dim: int

  @property
  @abc.abstractmethod
  def key(self) -> str:
    """See above."""

  @abc.abstractmethod
  def load(self) -> Encode:
    """captions -> their vectors; holds the weights for as long as it lives."""

  def measured(self, captions: Sequence[str]) -> list[Measured] | None:
    """How each caption is read; None where the tokenizer cannot be asked."""
    return None
