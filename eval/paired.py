"""Scores of pairs of pictures, such as reconstructions and what they are of."""

from collections.abc import Sequence
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
  sides = (min(generated.read(i).shape[:2]) for i in range(generated.length))
  small = "lpips" in names and any(side < SMALLEST["alexnet"] for side in sides)
  net = "vgg16" if small else "alexnet"
  functions = {
    "psnr": jax.jit(pixels.psnr),
    # Its luminance term is meant for brightness, from 0 on.
    "ssim": jax.jit(lambda x, y: pixels.ssim(x + 1, y + 1)),
  }
  if "lpips" in names:
    model, params = lpips.LPIPS(net), lpips.load(net)
    functions["lpips"] = jax.jit(lambda x, y: model.apply({"params": params}, x, y))
  values = {name: [] for name in names}
  for i in range(generated.length):
    x, y = generated.read(i), reference.read(i)
    if x.shape != y.shape:
      raise UserError(
        f"picture {i} is {x.shape[1]}x{x.shape[0]} in {generated.name} and"
        f" {y.shape[1]}x{y.shape[0]} in {reference.name}: make them one size."
      )
    x, y = (p[None].astype(np.float32) * np.float32(2 / 255) - 1 for p in (x, y))
    try:
      with jax.default_matmul_precision("highest"):
        for name in names:
          values[name].append(float(functions[name](x, y)[0]))
    except UserError as error:
      raise UserError(f"picture {i} of {generated.name}: {error}") from error
  lpips_name = {"vgg16": "LPIPS-VGG16", "alexnet": "LPIPS-AlexNet"}[net]
  called = {"psnr": "PSNR", "ssim": "SSIM", "lpips": lpips_name}
  return {called[name]: np.asarray(values[name]) for name in names}
