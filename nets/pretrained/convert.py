"""From PyTorch's state dicts to parameters of Flax."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from core.errors import UserError

StateDict = Mapping[str, np.ndarray]
Params = dict[str, Any]


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
