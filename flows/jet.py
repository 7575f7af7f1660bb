"""Jet: couplings by vision transformers, and nothing else (Kolesnikov et al. 2024)."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int
from ml_collections import ConfigDict

from core import checks
from core.errors import UserError
from core.family import Family, Spec
from flows import glow, layers, likelihood
from flows.bijector import Bijector, chain, repeat, squeezed
from flows.coupling import coupling
from nets import build
from nets.conditioners import ViTConditioner

CYCLE = 5  # four couplings of channels, then one of places


def make(config: ConfigDict, spec: Spec) -> Family:
  """`flow.steps` couplings over patches of `model.patch` pixels a side.

  arXiv:2412.15129, section 3: z_2 = (x_2 + t) 2 sigmoid(s), where (t, s) is of a vision
  transformer of `model.depth` blocks that sees the other half. No actnorm, no learned
  mixing, no levels, and N(0, I) at the end.

  Raises:
    UserError: settings that are unknown or do not fit the picture.
  """
  checks.refuse(config, "flow", mixing="conv_1x1")
  likelihood.refuse_regularisers(config)
  check_patches(spec, config.model.patch)
  return likelihood.family(
    config,
    spec,
    lambda guidance_scale: couplings(config, spec, guidance_scale),
    dequantizer=glow.dequantizer(config, glow.conditioner(config)),
  )


def couplings(config: ConfigDict, spec: Spec, guidance_scale: float) -> Bijector:
  """All kinds as one: the numbers in an order of their own, coupled, and put back."""
  model, patch = config.model, config.model.patch
  height, width, channels = spec.shape
  table = orders(
    config.flow.steps, height // patch, width // patch, channels * patch**2
  )
  there, back = jnp.asarray(table), jnp.asarray(table.argsort(1))
  g, dtype = glow.elementwise_of(config, "jet"), build.dtype(model)

  def net(channels: int) -> ViTConditioner:
    size = (model.dim, model.depth, model.heads)
    return ViTConditioner(channels, *size, dtype=dtype, scan=model.scan)

  def step(i: Array) -> Bijector:
    return chain(
      layers.permute_all(there[i]),
      coupling(g, net, guidance_scale),
      layers.permute_all(back[i]),
    )

  return squeezed(
    repeat(step, config.flow.steps, reversible=model.remat, scan=model.scan), patch
  )


def orders(
  count: int, height: int, width: int, channels: int
) -> Int[np.ndarray, "{count} n"]:
  """How each coupling orders all numbers of a map [height, width, channels].

  In that order, reshaped to the map, the first half of the channels is what a coupling
  keeps. Four times in a row it is half of the channels at every place, drawn once and
  for all; then it is every channel at half of the places, each place cut in two: those
  of a checkerboard, vertical or horizontal stripes, or the others, in turn.
  """
  numbers = np.arange(height * width * channels).reshape(-1, channels)
  rows, columns = np.divmod(np.arange(height * width), width)
  halves = [half for a in (rows + columns, columns, rows) for half in (a, a + 1)]
  table = []
  for i in range(count):
    cycle, place = divmod(i, CYCLE)
    if place < CYCLE - 1:
      # These bits, unlike a shuffle's, are the same in every version of NumPy.
      drawn = np.random.Philox(key=i).random_raw(channels)
      table.append(numbers[:, np.argsort(drawn)])
    else:
      half = halves[cycle % len(halves)] % 2
      cut = [numbers[half == side].reshape(-1, channels // 2) for side in (0, 1)]
      table.append(np.concatenate(cut, axis=1))
  return np.stack(table).reshape(count, -1)


def check_patches(spec: Spec, patch: int) -> None:
  """Raises UserError if half of the patches, or half of a patch, is no whole number."""
  height, width, channels = spec.shape
  if height % (2 * patch) or width % (2 * patch):
    raise UserError(
      f"{height}x{width} pictures are not an even number of patches of {patch}x{patch}"
      f" high and wide: set data.size to a multiple of {2 * patch}, or model.patch to"
      " less."
    )
  if channels * patch**2 % 2:
    raise UserError(
      f"a patch of {patch}x{patch}x{channels} numbers has no halves: set model.patch to"
      " an even number."
    )
