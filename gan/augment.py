"""Augmentations that gradients pass through, of what the critic sees, real or drawn.

Every draw is from the example's key.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
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
    sides = jnp.array([x.shape[1], x.shape[0]])
    moved = _warped(x, _geometry(geometry, p, sides))
    return _recoloured(moved, _colours(colours, p))

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


class Geometry(NamedTuple):
  """How a picture is moved, in the order of the paper; the defaults leave it."""

  flip: ArrayLike = 0  # 1: mirrored
  quarters: ArrayLike = 0  # of a turn
  pixels: ArrayLike = 0  # [2], right and down
  scale: ArrayLike = 1
  before: ArrayLike = 0  # rotation in radians, ahead of `wider`
  wider: ArrayLike = 1
  after: ArrayLike = 0  # and behind it
  shift: ArrayLike = 0  # [2], in pixels, not whole


class Colours(NamedTuple):
  """How its colours change, likewise."""

  brightness: ArrayLike = 0
  contrast: ArrayLike = 1
  luma_flip: ArrayLike = 0  # 1: mirrored at grey
  hue: ArrayLike = 0  # radians
  saturation: ArrayLike = 1


def _draws(key: Array, gates: int, even: int, normal: int) -> tuple[Array, ...]:
  """So many numbers: gates and even ones in U[0, 1), normal ones.

  All of a kind at once: each call of the generator is compiled by itself, and with one
  a number they took longer than the rest of a small network's training step.
  """
  own = jax.random.split(key, 3)
  return (
    jax.random.uniform(own[0], (gates,)),
    jax.random.uniform(own[1], (even,)),
    jax.random.normal(own[2], (normal,)),
  )


def _if(happens: Array, amounts: Geometry | Colours) -> Geometry | Colours:
  """Each amount where it happens, else what leaves a picture as it is."""
  each = zip(happens, amounts, type(amounts)(), strict=True)
  return type(amounts)(*(jnp.where(on, some, none) for on, some, none in each))


def _geometry(key: Array, p: Array, sides: Array) -> Geometry:
  gates, even, normal = _draws(key, gates=8, even=6, normal=4)
  # Either of the two rotations with probability p.
  rotates = 1 - jnp.sqrt(1 - p)
  happens = gates < jnp.stack([p, p, p, p, rotates, p, rotates, p])
  amounts = Geometry(
    flip=jnp.floor(2 * even[0]),
    quarters=jnp.floor(4 * even[1]),
    pixels=jnp.round((even[2:4] - 0.5) / 4 * sides),
    scale=jnp.exp2(0.2 * normal[0]),
    before=jnp.pi * (2 * even[4] - 1),
    wider=jnp.exp2(0.2 * normal[1]),
    after=jnp.pi * (2 * even[5] - 1),
    shift=0.125 * normal[2:] * sides,
  )
  return _if(happens, amounts)


def _colours(key: Array, p: Array) -> Colours:
  gates, even, normal = _draws(key, gates=5, even=2, normal=3)
  amounts = Colours(
    brightness=0.2 * normal[0],
    contrast=jnp.exp2(0.5 * normal[1]),
    luma_flip=jnp.floor(2 * even[0]),
    hue=jnp.pi * (2 * even[1] - 1),
    saturation=jnp.exp2(normal[2]),
  )
  return _if(gates < p, amounts)


def _warped(x: Array, to: Geometry) -> Array:
  """x, moved: each new pixel's place is followed back, last transformation first."""
  h, w, _ = x.shape
  at = warp.rotated(warp.centred(h, w) - to.shift, jnp.cos(to.after), jnp.sin(to.after))
  at = at / jnp.stack([to.wider, 1 / to.wider])
  at = warp.rotated(at, jnp.cos(to.before), jnp.sin(to.before))
  at = at / to.scale - to.pixels
  # Without rounding, so that pixels stay what they are.
  cosines, sines = jnp.array([1.0, 0, -1, 0]), jnp.array([0.0, 1, 0, -1])
  quarters = jnp.int32(to.quarters)
  at = warp.rotated(at, cosines[quarters], sines[quarters])
  at = at * jnp.stack([1 - 2 * to.flip, 1])
  return warp.looked_up(x, at + warp.middle(h, w))


def _recoloured(x: Array, to: Colours) -> Array:
  """Brightness, contrast, luma flip, hue, saturation; exactly x if all are absent."""
  x = (x + to.brightness) * to.contrast
  x = x - 2 * to.luma_flip * x.mean(-1, keepdims=True)
  if x.shape[-1] != 3:
    return x
  # Rodrigues' formula around the axis of greys.
  across = (jnp.roll(x, 1, -1) - jnp.roll(x, -1, -1)) / jnp.sqrt(3.0)
  grey = x.mean(-1, keepdims=True)
  x = jnp.cos(to.hue) * x + jnp.sin(to.hue) * across + (1 - jnp.cos(to.hue)) * grey
  return x + (to.saturation - 1) * (x - x.mean(-1, keepdims=True))
