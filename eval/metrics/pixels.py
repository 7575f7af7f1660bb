"""PSNR and SSIM, one number a picture, higher is nearer."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from core.errors import UserError

SIZE, SIGMA = 11, 1.5  # SSIM's window


def psnr(
  x: Float[Array, "b h w c"], y: Float[Array, "b h w c"], data_range: float = 2.0
) -> Float[Array, " b"]:
  """10 log10(data_range^2 / mean (x - y)^2) in dB, infinite for equal pictures.

  `data_range` is the largest minus the smallest possible value: 2 for [-1, 1].
  """
  error = jnp.mean((x - y) ** 2, axis=(1, 2, 3))
  return 10 * jnp.log10(data_range**2 / error)


def ssim(
  x: Float[Array, "b h w c"], y: Float[Array, "b h w c"], data_range: float = 2.0
) -> Float[Array, " b"]:
  """Structural similarity in [-1, 1], the mean over places and channels.

    (2 mu_x mu_y + C1) (2 sigma_xy + C2)
    ------------------------------------------------------,  C1 = (0.01 L)^2
    (mu_x^2 + mu_y^2 + C1) (sigma_x^2 + sigma_y^2 + C2)      C2 = (0.03 L)^2

  Wang et al. 2004, eq. 13: means, variances and covariance under an 11 x 11 Gaussian
  window of sigma 1.5, only where the window lies inside the picture, L = `data_range`.
  Channels are taken one by one. Black must be 0 for published numbers: the first factor
  compares means, and those of [-1, 1] may vanish. In scikit-image:
  gaussian_weights=True, use_sample_covariance=False.

  Raises:
    UserError: the pictures are smaller than the window.
  """
  if min(x.shape[1:3]) < SIZE:
    raise UserError(
      f"SSIM needs pictures of at least {SIZE} x {SIZE} pixels, not"
      f" {x.shape[1]} x {x.shape[2]}."
    )
  return _ssim(x, y, data_range)


@jax.jit
def _ssim(
  x: Float[Array, "b h w c"], y: Float[Array, "b h w c"], data_range: Float[Array, ""]
) -> Float[Array, " b"]:
  # Variances and the covariance do not change by a shift, and cancel less near 0.
  shift = jnp.mean(x, axis=(1, 2), keepdims=True)
  u, v = x - shift, y - shift
  mu, mv = _window(u), _window(v)
  uu, vv, uv = _window(u * u) - mu**2, _window(v * v) - mv**2, _window(u * v) - mu * mv
  mx, my = mu + shift, mv + shift
  c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
  luminance = (2 * mx * my + c1) / (mx**2 + my**2 + c1)
  structure = (2 * uv + c2) / (uu + vv + c2)
  return jnp.mean(luminance * structure, axis=(1, 2, 3))


def _window(x: Float[Array, "b h w c"]) -> Float[Array, "b i j c"]:
  """The Gaussian mean around each place, along one axis and then the other."""
  offsets = np.arange(SIZE) - SIZE // 2
  weights = np.exp(-0.5 * (offsets / SIGMA) ** 2)
  weights /= weights.sum()
  for axis in (1, 2):
    places = x.shape[axis] - SIZE + 1
    x = sum(
      w * jax.lax.slice_in_dim(x, i, i + places, axis=axis)
      for i, w in enumerate(weights.tolist())
    )
  return x
