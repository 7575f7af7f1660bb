"""Guidance and thresholding: what is done to a denoiser's output while sampling."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float
from ml_collections import ConfigDict

from core.errors import UserError, unknown
from core.noise import per_example
from text.cond import guide

THRESHOLDS = ("none", "static", "dynamic")


class Guidance(NamedTuple):
  """How far the output is led away from another one.

  Attributes:
    scale: other + scale (own - other); 1 is none.
    low, high: only where low < sigma / alpha <= high (Kynkaanniemi et al. 2024,
      arXiv:2404.07724, eq. 6).
    rescale: share of the result that keeps the output's standard deviation.
  """

  scale: float | int = 1.0
  low: float | int = 0.0
  high: float | int = 1e9
  rescale: float | int = 0.0

  def where(self, logsnr: Float[Array, " n"]) -> Bool[Array, " n"]:
    """Whether the noise level is in the interval."""
    ratio = jnp.exp(-logsnr / 2)
    return (ratio > self.low) & (ratio <= self.high)

  def everywhere(self) -> bool:
    """Whether there is no interval."""
    return self.low <= 0 and self.high >= 1e9

  def __call__(
    self,
    own: Float[Array, "n ..."],
    other: Float[Array, "n ..."],
    logsnr: Float[Array, " n"],
  ) -> Float[Array, "n ..."]:
    """The guided output, `own` outside of the interval.

    Rescaled (Lin et al. 2023, arXiv:2305.08891, eqs. 14 to 16): the guided output times
    rescale std(own) / std(guided) + 1 - rescale, the deviations over each example.
    """
    out = guide(jnp.concatenate([own, other]), self.scale)
    if self.rescale:
      axes = tuple(range(1, own.ndim))
      ratio = own.std(axes, keepdims=True) / out.std(axes, keepdims=True)
      out = out * (self.rescale * ratio + 1 - self.rescale)
    if self.everywhere():
      return out
    return jnp.where(per_example(self.where(logsnr), own), out, own)


def guidance(sample: ConfigDict) -> Guidance:
  """From `config.sample`.

  Raises:
    UserError: the interval is empty.
  """
  low, high = sample.guidance_min, sample.guidance_max
  if low >= high:
    raise UserError(
      f"sample.guidance_min={low} must be below sample.guidance_max={high}."
    )
  return Guidance(sample.guidance_scale, low, high, sample.guidance_rescale)


def threshold(
  x: Float[Array, "n ..."], kind: str, percentile: float
) -> Float[Array, "n ..."]:
  """An estimate of the clean picture, brought back into [-1, 1].

  static: clipped. dynamic: clipped to [-s, s] and divided by s, the percentile of |x|
  of each example, but at least 1 (Saharia et al. 2022, Imagen, section 2.3 and
  appendix A). none: as it is, for latents.

  Raises:
    UserError: unknown kind.
  """
  match kind:
    case "none":
      return x
    case "static":
      return jnp.clip(x, -1, 1)
    case "dynamic":
      size = jnp.quantile(jnp.abs(x).reshape(len(x), -1), percentile, axis=1)
      size = per_example(jnp.maximum(size, 1), x)
      return jnp.clip(x, -size, size) / size
  raise unknown("sample.threshold", kind, THRESHOLDS)
