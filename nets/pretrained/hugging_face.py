"""Directories as Hugging Face keeps them: config.json, and tensors in one file or many.

Read without PyTorch or transformers.
"""

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float

from core import weights
from core.errors import UserError, unknown

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


def quick_gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
  """x sigmoid(1.702 x), which OpenAI's CLIP takes for GELU."""
  return x * jax.nn.sigmoid(1.702 * x)


# By the names that config.json has for them.
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
  "quick_gelu": quick_gelu,
  "gelu": lambda x: jax.nn.gelu(x, approximate=False),
  "gelu_new": jax.nn.gelu,
  "gelu_pytorch_tanh": jax.nn.gelu,
  "relu": jax.nn.relu,
  "silu": jax.nn.silu,
}


def activation(file: Path, name: str) -> str:
  """`name`, which a config.json gives, if it is one of ACTIVATIONS.

  Raises:
    UserError: it is not.
  """
  if name not in ACTIVATIONS:
    raise unknown(f"the activation in {file}", name, ACTIVATIONS)
  return name


def read_json(file: Path) -> dict[str, Any]:
  """The object in a JSON file.

  Raises:
    UserError: it is missing, damaged or no object.
  """
  try:
    found = json.loads(file.read_text(encoding="utf-8"))
  except OSError as e:
    raise UserError(f"{file} cannot be opened: {e.strerror or e}.") from e
  except ValueError as e:
    raise UserError(f"{file} is damaged ({e}); download it again.") from e
  if not isinstance(found, dict):
    raise UserError(f"{file} holds no object; download it again.")
  return found


@contextlib.contextmanager
def describing(file: Path, name: str) -> Iterator[None]:
  """Turns what fails where a config.json is read into a sentence.

  `name` is the network that it should describe.
  """
  try:
    yield
  except (KeyError, TypeError, ValueError, AttributeError) as e:
    raise UserError(
      f"{file} cannot be read as a configuration of {name} ({type(e).__name__}: {e});"
      " copy it again from where the weights are from."
    ) from e


class Tensors(NamedTuple):
  """Tensors by name.

  Attributes:
    state: the arrays.
    file_of: the file in which a tensor is, or should be.
  """

  state: dict[str, np.ndarray]
  file_of: Callable[[str], Path]


def files(directory: Path) -> list[Path]:
  """The files of tensors: model.safetensors, or the shards that an index names.

  Raises:
    UserError: there is neither, or the index is damaged.
  """
  if (directory / WEIGHTS).exists():
    return [directory / WEIGHTS]
  if not (directory / INDEX).exists():
    raise UserError(
      f"{directory} has no {WEIGHTS} and no {INDEX}: copy there what the model has on"
      " Hugging Face."
    )
  return [directory / name for name in sorted(set(_shards(directory).values()))]


def _shards(directory: Path) -> dict[str, str]:
  file = directory / INDEX
  found = read_json(file).get("weight_map")
  if not isinstance(found, dict) or not all(
    isinstance(name, str) and Path(name).name == name for name in found.values()
  ):
    raise UserError(
      f"{file} does not say which file each tensor is in; download it again."
    )
  return found


def read_tensors(directory: Path) -> Tensors:
  """All tensors of a directory.

  Raises:
    UserError: a file is missing or damaged.
  """
  state: dict[str, np.ndarray] = {}
  found = files(directory)
  for file in found:
    state |= weights.read_safetensors(file)
  if found == [directory / WEIGHTS]:
    return Tensors(state, lambda _: directory / WEIGHTS)
  shards = _shards(directory)
  return Tensors(state, lambda name: directory / shards.get(name, INDEX))


def prefix(state: dict[str, np.ndarray], name: str) -> str:
  """`name` if tensors are named so, as where a network is part of another; else ''."""
  return name if any(key.startswith(name) for key in state) else ""
