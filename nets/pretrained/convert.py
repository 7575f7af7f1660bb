"""From PyTorch's state dicts to parameters of Flax."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax.typing import DTypeLike

from core.errors import UserError

StateDict = Mapping[str, np.ndarray]
Params = dict[str, Any]
# Path of a parameter, such as 'norm/scale' -> the tensors that it is made of.
Names = dict[str, tuple[str, ...]]


def conv(state: StateDict, name: str) -> Params:
  """A convolution: kernel [o i h w] -> [h w i o], and its bias if it has one."""
  params = {"kernel": state[f"{name}.weight"].transpose(2, 3, 1, 0)}
  if f"{name}.bias" in state:
    params["bias"] = state[f"{name}.bias"]
  return params


def conv_norm(state: StateDict, name: str, norm: str, eps: float) -> Params:
  """A convolution without bias and the batch norm behind it, as one convolution.

  scale (conv(x) - mean) / sqrt(var + eps) + bias is a convolution whose kernel is
  multiplied by scale / sqrt(var + eps).
  """
  scale, bias, mean, var = (
    state[f"{norm}.{part}"].astype(np.float64)
    for part in ("weight", "bias", "running_mean", "running_var")
  )
  gain = scale / np.sqrt(var + eps)
  kernel = conv(state, name)["kernel"] * gain
  return {
    "kernel": kernel.astype(np.float32),
    "bias": (bias - mean * gain).astype(np.float32),
  }


def dense(state: StateDict, *names: str) -> Params:
  """Linear layers over the same input, as one wide one."""
  return {
    "kernel": np.concatenate([state[f"{name}.weight"].T for name in names], axis=1),
    "bias": np.concatenate([state[f"{name}.bias"] for name in names]),
  }


def checked(
  path: Path, net: nn.Module, convert: Callable[[Any], Params], state: Any, *inputs: Any
) -> Params:
  """convert(state) in float32, if it is what `net` needs for inputs like these.

  Raises:
    UserError: the file at `path`, where `state` was read, is of another network.
  """
  name = type(net).__name__
  try:
    params = convert(state)
  # Another network may lack a name, or hold something else under it.
  except (KeyError, TypeError, ValueError, IndexError, AttributeError) as e:
    raise UserError(
      f"{path} does not hold the weights of {name} ({type(e).__name__}: {e})."
    ) from e
  wanted = jax.eval_shape(net.init, jax.random.key(0), *inputs)["params"]
  found, wanted = (
    {jax.tree_util.keystr(k): v.shape for k, v in jax.tree.leaves_with_path(tree)}
    for tree in (params, wanted)
  )
  for key in sorted(found | wanted):
    if found.get(key) != wanted.get(key):
      raise UserError(
        f"{path} does not hold the weights of {name}: {key} is {found.get(key)}, not"
        f" {wanted.get(key)}."
      )
  return jax.tree.map(lambda array: jnp.asarray(array, jnp.float32), params)


def dense_names(path: str, *names: str, bias: bool = True) -> Names:
  """A linear layer at `path`: linear layers over the same input, side by side."""
  found = {f"{path}/kernel": tuple(f"{name}.weight" for name in names)}
  if bias:
    found[f"{path}/bias"] = tuple(f"{name}.bias" for name in names)
  return found


def norm_names(path: str, name: str) -> Names:
  """A LayerNorm at `path`."""
  return {f"{path}/scale": (f"{name}.weight",), f"{path}/bias": (f"{name}.bias",)}


def matched(
  net: nn.Module,
  names: Names,
  state: StateDict,
  file_of: Callable[[str], Path],
  *inputs: Any,
  unused: str = "",
  dtype: DTypeLike = jnp.float32,
) -> Params:
  """The parameters of `net`, each made of the tensors that `names` tells.

  A kernel's tensor is [o i] or, of a convolution, [o i h w]; the other way round in
  Flax. Several tensors lie side by side in the last axis of one parameter.

  Args:
    net: the network.
    names: of all its parameters.
    state: tensors by name.
    file_of: the file in which a tensor is, or should be.
    *inputs: what `net` is initialised with, for shapes.
    unused: regular expression of tensors that are of something else.
    dtype: of the parameters.

  Raises:
    UserError: a tensor is missing, of another shape, or left over.
  """
  wanted = jax.eval_shape(net.init, jax.random.key(0), *inputs)["params"]
  wanted = traverse_util.flatten_dict(wanted, sep="/")
  if wanted.keys() != names.keys():
    raise ValueError(f"not named alike: {sorted(wanted.keys() ^ names.keys())}")
  known = {name for own in names.values() for name in own}
  left = (k for k in state if k not in known and not (unused and re.match(unused, k)))
  if extra := min(left, default=None):
    raise UserError(
      f"{file_of(extra)} has a tensor {extra}, which is no part of {type(net).__name__}"
      " as config.json describes it; take both files from one place."
    )

  def part(name: str, shape: tuple[int, ...], axes: tuple[int, ...]) -> np.ndarray:
    if name not in state:
      raise UserError(f"{file_of(name)} has no tensor {name}; download it again.")
    array = state[name]
    own = tuple(shape[axes.index(i)] for i in range(len(shape)))
    if array.shape != own:
      raise UserError(
        f"{file_of(name)} has a tensor {name} of shape {array.shape}, and config.json"
        f" describes one of {own}; take both files from one place."
      )
    return array.transpose(axes)

  found = {}
  for path, own in names.items():
    *rest, last = wanted[path].shape
    axes = tuple(range(len(rest) + 1))
    if path.endswith("kernel"):
      axes = (2, 3, 1, 0) if len(axes) == 4 else axes[::-1]
    parts = [part(name, (*rest, last // len(own)), axes) for name in own]
    found[path] = jnp.asarray(np.concatenate(parts, axis=-1), dtype)
  return traverse_util.unflatten_dict(found, sep="/")
