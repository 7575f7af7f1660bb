"""Augmentations that gradients pass through, of what the critic sees, real or drawn.

Every draw is from the example's key.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from core import warp
from core.errors import UserError, unknown
from core.family import keys_at


def diff_augment(
  keys: Key[Array, " b"], x: Float[Array, "b h w c"], policy: tuple[str, ...]
) -> Float[Array, "b h w c"]:
  """DiffAugment: 'color', 'translation' and 'cutout', in the order of `policy`.

  Zhao et al. 2020 (arXiv:2006.10738), section 4. Saturation is left out unless there
  are three channels.
  """
  for i, name in enumerate(policy):
    own = keys_at(keys, i)
    x = jax.vmap(POLICIES[name])(own, x)
  return x


def _color(key: Key[Array, ""], x: Float[Array, "h w c"]) -> Float[Array, "h w c"]:
  """Brightness x + U(-1/2, 1/2); saturation and contrast.

  x <- m + s (x - m), with m a pixel's mean and s ~ U(0, 2), then with m the picture's
  mean and s ~ U(1/2, 3/2).
  """
  brightness, saturation, contrast = jax.random.uniform(key, (3,))
  x = x + brightness - 0.5
  if x.shape[-1] == 3:
    mean = x.mean(-1, keepdims=True)
    x = mean + 2 * saturation * (x - mean)
  return x.mean() + (contrast + 0.5) * (x - x.mean())


def _translation(
  key: Key[Array, ""], x: Float[Array, "h w c"]
) -> Float[Array, "h w c"]:
  """Shifted by up to 1/8 of each side; zeros come in."""
  h, w, _ = x.shape
  down, right = (h + 4) // 8, (w + 4) // 8
  wide = jnp.pad(x, ((down, down), (right, right), (0, 0)))
  most = jnp.array([down, right])
  first = jax.random.randint(key, (2,), 0, 2 * most + 1)
  return jax.lax.dynamic_slice(wide, (*first, 0), x.shape)


def _cutout(key: Key[Array, ""], x: Float[Array, "h w c"]) -> Float[Array, "h w c"]:
  """Zeros in a square of half the side, as much of it as is in the picture."""
  inside = jnp.ones(())
  for axis, own in enumerate(jax.random.split(key)):
    size = x.shape[axis]
    side = (size + 1) // 2
    first = jax.random.randint(own, (), 0, size + 1 - side % 2) - side // 2
    place = jnp.arange(size) - first
    cut = ((place >= 0) & (place < side)).astype(x.dtype)
    inside = inside * jnp.expand_dims(cut, (1 - axis, 2))
  return x * (1 - inside)


POLICIES = {"color": _color, "translation": _translation, "cutout": _cutout}


def check_policy(policy: tuple[str, ...]) -> None:
  """Raises UserError for a name that `diff_augment` does not know, or none at all."""
  if not policy:
    raise UserError(
      "gan.policy is empty, so gan.augment='diff' would do nothing: name some of"
      f" {', '.join(POLICIES)}, or set gan.augment to 'none'."
    )
  for name in policy:
    if name not in POLICIES:
      raise unknown("gan.policy", name, POLICIES)


def adaptive(
  keys: Key[Array, " b"], x: Float[Array, "b h w c"], p: Float[Array, ""]
) -> Float[Array, "b h w c"]:
  """ADA's geometric and colour transformations, each with probability p.

  Karras et al. 2020 (arXiv:2006.06676), appendix B, with its amounts, in its order. All
  geometry is one bilinear look-up, reflected at the edges without end; against aliasing
  the paper also doubles the picture before and halves it after by a wavelet's filter.
  Filters, noise and cutout, which are not in the paper's final choice, are left out.
  Hue and saturation need three channels. At p = 0 this is x exactly.
  """

  def one(key: Array, x: Array) -> Array:
    geometry, colours = jax.random.split(key)
    return _recoloured(colours, _warped(geometry, x, p), p)

  return jax.vmap(one)(keys, x)


def adjust(
  p: Float[Array, ""],
  sign_mean: Float[Array, ""],
  batch_size: int,
  target: float = 0.6,
  kimg: float = 500.0,
) -> Float[Array, ""]:
  """p + sign(r - target) batch_size / (1000 kimg), in [0, 1].

  r = E[sign D(real)] tells how much the critic overfits (arXiv:2006.06676, eq. 1; of
  losses whose logits have no level, D(real) - D(fake)), and p can go from 0 to 1 in
  `kimg` thousand pictures. The paper averages r over four updates.
  """
  step = jnp.sign(sign_mean - target) * (batch_size / (1000 * kimg))
  return jnp.clip(p + step, 0, 1)


def _sometimes(
  key: Array, i: int, p: Array, draw: Callable[[Array], Array], neutral: int
) -> Array:
  """The i-th transformation's amount with probability p, else `neutral`."""
  gate, own = jax.random.split(jax.random.fold_in(key, i))
  return jnp.where(jax.random.uniform(gate) < p, draw(own), neutral)


def _warped(key: Array, x: Array, p: Array) -> Array:
  """x, moved: each new pixel's place is followed back, last transformation first."""
  h, w, _ = x.shape
  sides = jnp.array([w, h])

  def angle(key: Array) -> Array:
    return jax.random.uniform(key, (), minval=-jnp.pi, maxval=jnp.pi)

  def stretch(key: Array) -> Array:
    return jnp.exp2(0.2 * jax.random.normal(key))

  def whole(key: Array) -> Array:
    return jnp.round(jax.random.uniform(key, (2,), minval=-0.125, maxval=0.125) * sides)

  # Either of the two rotations with probability p.
  rotates = 1 - jnp.sqrt(1 - p)
  flip = _sometimes(key, 0, p, lambda k: jax.random.randint(k, (), 0, 2), 0)
  quarters = _sometimes(key, 1, p, lambda k: jax.random.randint(k, (), 0, 4), 0)
  pixels = _sometimes(key, 2, p, whole, 0)
  scale = _sometimes(key, 3, p, stretch, 1)
  before = _sometimes(key, 4, rotates, angle, 0)
  wider = _sometimes(key, 5, p, stretch, 1)
  after = _sometimes(key, 6, rotates, angle, 0)
  shift = _sometimes(key, 7, p, lambda k: 0.125 * jax.random.normal(k, (2,)) * sides, 0)

  at = warp.rotated(warp.centred(h, w) - shift, jnp.cos(after), jnp.sin(after))
  at = at / jnp.stack([wider, 1 / wider])
  at = warp.rotated(at, jnp.cos(before), jnp.sin(before))
  at = at / scale - pixels
  # Without rounding, so that pixels stay what they are.
  cosines, sines = jnp.array([1.0, 0, -1, 0]), jnp.array([0.0, 1, 0, -1])
  at = warp.rotated(at, cosines[quarters], sines[quarters])
  at = at * jnp.stack([1 - 2 * flip, 1])
  return warp.looked_up(x, at + warp.middle(h, w))


def _recoloured(key: Array, x: Array, p: Array) -> Array:
  """Brightness, contrast, luma flip, hue, saturation; exactly x if all are absent."""
  normal, colours = jax.random.normal, x.shape[-1] == 3
  x = x + _sometimes(key, 0, p, lambda k: 0.2 * normal(k), 0)
  x = x * _sometimes(key, 1, p, lambda k: jnp.exp2(0.5 * normal(k)), 1)
  flip = _sometimes(key, 2, p, lambda k: jax.random.randint(k, (), 0, 2), 0)
  x = x - 2 * flip * x.mean(-1, keepdims=True)
  if not colours:
    return x
  turn = lambda k: jax.random.uniform(k, (), minval=-jnp.pi, maxval=jnp.pi)  # noqa: E731
  hue = _sometimes(key, 3, p, turn, 0)
  more = _sometimes(key, 4, p, lambda k: jnp.exp2(normal(k)), 1)
  # Rodrigues' formula around the axis of greys.
  across = (jnp.roll(x, 1, -1) - jnp.roll(x, -1, -1)) / jnp.sqrt(3.0)
  grey = x.mean(-1, keepdims=True)
  x = jnp.cos(hue) * x + jnp.sin(hue) * across + (1 - jnp.cos(hue)) * grey
  return x + (more - 1) * (x - x.mean(-1, keepdims=True))
