"""Spectral normalisation: each kernel divided by its largest singular value.

Miyato et al. 2018 (arXiv:1802.05957), eq. 8 and algorithm 1. It acts on a tree of
parameters, so a network need not know of it. What encodes a condition keeps its own
scale, so a logit's slope by the picture is bounded by the condition's vector.
"""

import jax
import jax.numpy as jnp
from flax import traverse_util
from jaxtyping import Array, Float, PyTree
from ml_collections import ConfigDict

from core.errors import UserError

Vectors = dict[str, Float[Array, " o"]]  # path of a kernel -> its singular vector

# What a network does with its kernels that the norm does not go with.
UNFIT = {
  "r3gan": "has kernels that start at zero",  # 0 / 0
  "stylegan2": "scales them again where it uses them",
}


def check_network(gan: ConfigDict, field: str) -> None:
  """Raises UserError for a network whose layers would not have norm 1."""
  if gan[field] in UNFIT:
    raise UserError(
      f"gan.spectral_norm={gan.spectral_norm!r} divides kernels by their norm, but"
      f" gan.{field}={gan[field]!r} {UNFIT[gan[field]]}: set it to 'none'."
    )


def refuse_both(config: ConfigDict) -> None:
  """Raises UserError for the norm in a generator that does not read it."""
  if config.gan.spectral_norm == "both":
    raise UserError(
      f"gan.spectral_norm='both' is of gan.gan alone, not of {config.family}: set it to"
      " 'critic'."
    )


def init(rng: Array, params: PyTree) -> Vectors:
  """Random unit vectors, one for each kernel."""
  found = {}
  for i, (path, leaf) in enumerate(_kernels(params).items()):
    u = jax.random.normal(jax.random.fold_in(rng, i), leaf.shape[-1:])
    found[path] = u / jnp.linalg.norm(u)
  return found


def normalise(params: PyTree, vectors: Vectors) -> tuple[PyTree, Vectors]:
  """(W / sigma(W) for each kernel, the vectors after one more power iteration).

  W [inputs, o] has all axes but the last as inputs. With v = W u / |W u| and then
  u = W^T v / |W^T v|, sigma = v^T W u. The vectors are constants for gradients
  (algorithm 1; eq. 9 is the gradient that follows).
  """
  flat, moved = traverse_util.flatten_dict(params, sep="/"), {}
  for path, u in vectors.items():
    kernel = flat[path].reshape(-1, flat[path].shape[-1])
    fixed = jax.lax.stop_gradient(kernel)
    v = _unit(fixed @ u)
    u = _unit(v @ fixed)
    flat[path] = flat[path] / (v @ kernel @ u)
    moved[path] = u
  return traverse_util.unflatten_dict(flat, sep="/"), moved


def _kernels(params: PyTree) -> dict[str, Array]:
  flat = traverse_util.flatten_dict(params, sep="/")
  return {path: a for path, a in flat.items() if path.endswith("kernel")}


def _unit(a: Float[Array, " n"]) -> Float[Array, " n"]:
  return a / (jnp.linalg.norm(a) + 1e-12)
