"""Scores of pairs of pictures, such as reconstructions and what they are of."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from core import weights
from core.errors import UserError
from eval.images import ImageSet
from eval.metrics import pixels
from nets.pretrained import lpips
from nets.pretrained.vgg import SMALLEST

METRICS = ("psnr", "ssim", "lpips")
ROWS = 32  # pairs at a time
SCALE = np.float32(2 / 255)  # of 256 levels to [-1, 1]
# The smallest side of pictures.
LEAST = {"psnr": 1, "ssim": pixels.SIZE, "lpips": SMALLEST["vgg16"]}


def records(
  names: Sequence[str], generated: ImageSet, reference: ImageSet
) -> list[dict[str, Any]]:
  """The mean of each metric over all pairs, with its standard error.

  LPIPS is by AlexNet, as scores usually are, or by VGG16 if a picture is too small for
  that; its name tells.

  Raises:
    UserError: the two sets do not hold the same names or sizes.
  """
  found = []
  for name, values in of_pairs(names, generated, reference).items():
    record = {"metric": name, "value": float(np.mean(values))}
    if np.isfinite(values).all() and len(values) > 1:
      record["error"] = float(np.std(values) / (len(values) - 1) ** 0.5)
    if name.startswith("LPIPS"):
      net = "alexnet" if name.endswith("AlexNet") else "vgg16"
      record["weights_sha256"] = weights.sha256(lpips.path(net))
    found.append(record)
  return found


def shape_of_pair(i: int, generated: ImageSet, reference: ImageSet) -> tuple[int, ...]:
  """The size of both i-th pictures.

  Raises:
    UserError: they differ.
  """
  x, y = (pictures.read(i).shape for pictures in (generated, reference))
  if x != y:
    raise UserError(
      f"picture {i} is {x[1]}x{x[0]} in {generated.name} and {y[1]}x{y[0]} in"
      f" {reference.name}: make them one size."
    )
  return x


def alike(shapes: Sequence[tuple[int, ...]]) -> Iterator[list[int]]:
  """Neighbours of one shape, `ROWS` at a time, and one by one what is left over.

  So there are two programs a shape, however many pictures there are.
  """
  for _, same in itertools.groupby(range(len(shapes)), lambda i: shapes[i]):
    rows = list(same)
    whole = len(rows) // ROWS * ROWS
    yield from (rows[i : i + ROWS] for i in range(0, whole, ROWS))
    yield from ([i] for i in rows[whole:])


def of_pairs(
  names: Sequence[str], generated: ImageSet, reference: ImageSet
) -> dict[str, Float[np.ndarray, " n"]]:
  """What each metric is called -> its value of each pair.

  Raises:
    UserError: as `records`.
  """
  if generated.files != reference.files or generated.length != reference.length:
    odd = sorted(set(generated.files) ^ set(reference.files))
    hint = f"{odd[0]} is in one only" if odd else "they differ in number"
    raise UserError(
      f"{', '.join(names)} compare pictures of the same name, but {generated.name} and"
      f" {reference.name} hold different ones ({hint})."
    )
  shapes = [shape_of_pair(i, generated, reference) for i in range(generated.length)]
  net = "alexnet"
  if "lpips" in names and min(min(s[:2]) for s in shapes) < SMALLEST["alexnet"]:
    net = "vgg16"
  functions = {
    "psnr": jax.jit(pixels.psnr),
    # Its luminance term is meant for brightness, from 0 on.
    "ssim": jax.jit(lambda x, y: pixels.ssim(x + 1, y + 1)),
  }
  if "lpips" in names:
    model, params = lpips.LPIPS(net), lpips.load(net)
    functions["lpips"] = jax.jit(lambda x, y: model.apply({"params": params}, x, y))
  values = {name: [] for name in names}
  for rows in alike(shapes):
    x, y = (
      np.stack([kind.read(i) for i in rows]).astype(np.float32) * SCALE - 1
      for kind in (generated, reference)
    )
    try:
      with jax.default_matmul_precision("highest"):
        for name in names:
          values[name] += np.asarray(functions[name](x, y)).tolist()
    except UserError as error:
      raise UserError(f"picture {rows[0]} of {generated.name}: {error}") from error
  lpips_name = {"vgg16": "LPIPS-VGG16", "alexnet": "LPIPS-AlexNet"}[net]
  called = {"psnr": "PSNR", "ssim": "SSIM", "lpips": lpips_name}
  return {called[name]: np.asarray(values[name]) for name in names}
