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
    raise UserError(
      f"{file} cannot be opened: {e.strerror or e}; copy it from where the weights are"
      " from, or name another directory."
    ) from e
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


def part(config: dict[str, Any], name: str) -> dict[str, Any]:
  """The settings of a tower, text or vision, in the config.json of CLIP or SigLIP.

  Some files have them twice; then those in NAME_config_dict count.
  """
  found = config.get(f"{name}_config_dict")
  return config.get(f"{name}_config") or {} if found is None else found


class Tensors(NamedTuple):
  """Tensors by name.

  Attributes:
    state: the arrays.
    file_of: the file in which a tensor is, or should be.
  """

  state: dict[str, np.ndarray]
  file_of: Callable[[str], Path]


def files(directory: Path, stem: str = "model") -> list[Path]:
  """The files of tensors: `stem`.safetensors, or the shards that an index names.

  Or the same in half precision, `stem`.fp16.safetensors, as diffusers has it.

  Raises:
    UserError: there is neither, or the index is damaged.
  """
  names = [f"{stem}{half}.safetensors" for half in ("", ".fp16")]
  for name in names:
    if (directory / name).exists():
      return [directory / name]
  index = _index(directory, stem)
  if index is None:
    raise UserError(
      f"{directory} has no {names[0]} and no {names[0]}.index.json: copy there what the"
      " model has on Hugging Face."
    )
  return [directory / name for name in sorted(set(_shards(index).values()))]


def _index(directory: Path, stem: str) -> Path | None:
  names = (f"{stem}.safetensors.index{half}.json" for half in ("", ".fp16"))
  return next((directory / name for name in names if (directory / name).exists()), None)


def _shards(file: Path) -> dict[str, str]:
  found = read_json(file).get("weight_map")
  if not isinstance(found, dict) or not all(
    isinstance(name, str) and Path(name).name == name for name in found.values()
  ):
    raise UserError(
      f"{file} does not say which file each tensor is in; download it again."
    )
  return found


def read_tensors(directory: Path, stem: str = "model") -> Tensors:
  """All tensors of a directory, from the `files` of that stem.

  Raises:
    UserError: a file is missing or damaged.
  """
  state: dict[str, np.ndarray] = {}
  places: dict[str, Path] = {}
  found = files(directory, stem)
  for file in found:
    own = weights.read_safetensors(file)
    state |= own
    places |= dict.fromkeys(own, file)
  index = _index(directory, stem)
  if index is None or len(found) == 1:
    return Tensors(state, lambda _: found[0])
  shards = _shards(index)
  should = lambda name: directory / shards.get(name, index.name)  # noqa: E731
  return Tensors(state, lambda name: places.get(name) or should(name))


def prefix(state: dict[str, np.ndarray], name: str) -> str:
  """`name` if tensors are named so, as where a network is part of another; else ''."""
  return name if any(key.startswith(name) for key in state) else ""
