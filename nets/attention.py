"""Multi-head attention, over a sequence itself or over a text."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from nets.layers import DenseIn, DenseOut, DenseParts

# Products of so many queries and keys are taken a head at a time on CPUs.
MANY = 512 * 512


def attend(
  q: Float[Array, "b l h d"],
  k: Float[Array, "b m h d"],
  v: Float[Array, "b m h d"],
  mask: Bool[Array, "b m"] | Bool[Array, "b l m"] | None = None,
) -> Float[Array, "b l h d"]:
  """softmax(q k^T / sqrt(d)) v, the softmax in float32.

  Vaswani et al. 2017 (arXiv:1706.03762), eq. 1. Keys with a False mask, of an example
  or of each of its queries, get exactly no weight, unless all of a query's are False:
  then all weigh the same.
  """
  q, k, v = (a.transpose(0, 2, 1, 3) for a in (q * q.shape[-1] ** -0.5, k, v))
  if mask is not None and mask.ndim == 2:
    mask = mask[:, None]  # for all queries alike
  if q.shape[2] * k.shape[2] < MANY:
    y = _at_once(q, k, v, mask)
  else:
    both = {"cpu": _by_head, "default": _at_once}
    y = jax.lax.platform_dependent(q, k, v, mask, **both)
  return y.transpose(0, 2, 1, 3)


def _read(
  q: Float[Array, "*n l d"],
  k: Float[Array, "*n m d"],
  v: Float[Array, "*n m d"],
  mask: Bool[Array, "..."] | None,
) -> Float[Array, "*n l d"]:
  """The sum divides the output, not the weights, which are l / d times as many."""
  logits = jnp.matmul(q, k.swapaxes(-1, -2), preferred_element_type=jnp.float32)
  if mask is not None:
    logits = jnp.where(mask, logits, -1e30)
  top = jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True))
  weights = jnp.exp(logits - top)
  total = weights.sum(axis=-1, keepdims=True)
  y = jnp.matmul(weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
  return (y / total).astype(v.dtype)


def _at_once(q: Array, k: Array, v: Array, mask: Array | None) -> Array:
  """Of [b, h, l, d] and a mask [b, 1 or l, m]."""
  return _read(q, k, v, None if mask is None else mask[:, None])


def _by_head(q: Array, k: Array, v: Array, mask: Array | None) -> Array:
  """The same, one head of one example after the other.

  Without weights of all heads in memory, which the gradient computes again: from 512
  tokens on up to eight times as fast on CPUs, with gradients up to one and a half.
  """
  b, h, *_ = q.shape

  @jax.checkpoint
  def one(args: tuple) -> Array:
    i, *qkv = args
    return _read(*qkv, None if mask is None else mask[i // h])

  heads = (a.reshape(b * h, *a.shape[2:]) for a in (q, k, v))
  y = jax.lax.map(one, (jnp.arange(b * h), *heads))
  return y.reshape(q.shape[:-1] + v.shape[-1:])


class SelfAttention(nn.Module):
  """x -> W_o attend(W_q x, W_k x, W_v x); tokens with a False mask are not read.

  With a `text` its keys and values, a linear map of it normalised, lie beside x's own:
  one attention reads both (GLIDE, Nichol et al. 2021, arXiv:2112.10741, section 4.1;
  Imagen, Saharia et al. 2022, arXiv:2205.11487, appendix D.3.1). Without `bias` only
  W_o has one. `inner` is the length of all heads' queries; 0 is that of x.
  """

  heads: int
  dtype: DTypeLike = jnp.float32
  out_init: nn.initializers.Initializer = nn.initializers.lecun_normal()
  bias: bool = True
  inner: int = 0

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "b l d"],
    mask: Bool[Array, "b l"] | Bool[Array, "b l l"] | None = None,
    text: Float[Array, "b m e"] | None = None,
    text_mask: Bool[Array, "b m"] | None = None,
  ) -> Float[Array, "b l d"]:
    """With a text, `mask` is None or has one row an example."""
    b, length, dim = x.shape
    inner = self.inner or dim
    maps = functools.partial(
      DenseParts, features=inner, groups=self.heads, bias=self.bias, dtype=self.dtype
    )
    q, k, v = (y.reshape(b, length, self.heads, -1) for y in maps(3, name="qkv")(x))
    if text is not None:
      text = nn.LayerNorm(dtype=jnp.float32, name="norm_text")(text)
      kv = maps(2, name="text_kv")(text)
      kv = (y.reshape(b, -1, self.heads, inner // self.heads) for y in kv)
      k, v = (jnp.concatenate(pair, axis=1) for pair in zip((k, v), kv, strict=True))
      masks = [
        jnp.ones(a.shape[:2], bool) if m is None else m
        for a, m in ((x, mask), (text, text_mask))
      ]
      mask = jnp.concatenate(masks, axis=1)
    y = attend(q, k, v, mask).reshape(b, length, inner)
    return DenseOut(dim, dtype=self.dtype, kernel_init=self.out_init, name="out")(y)


class CrossAttention(nn.Module):
  """x reads a text: W_o attend(W_q x, [k_0, W_k text], [v_0, W_v text]).

  The learned pair (k_0, v_0) is always there to be read, so a text whose mask is
  all False (the null condition) is well defined: exactly v_0. The text is
  normalised first, which Imagen found to matter (Saharia et al. 2022,
  arXiv:2205.11487, section 2.5), and the output starts at zero. `inner` is as in
  `SelfAttention`.
  """

  heads: int
  dtype: DTypeLike = jnp.float32
  inner: int = 0

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "b l d"],
    text: Float[Array, "b m e"],
    mask: Bool[Array, "b m"] | None,
  ) -> Float[Array, "b l d"]:
    b, length, dim = x.shape
    inner = self.inner or dim
    head_dim = inner // self.heads
    q = DenseIn(inner, dtype=self.dtype, name="q")(x).reshape(
      b, length, self.heads, head_dim
    )
    text = nn.LayerNorm(dtype=jnp.float32, name="norm")(text)
    maps = DenseParts(2, inner, self.heads, dtype=self.dtype, name="kv")
    null = self.param(
      "null", nn.initializers.normal(0.02), (2, self.heads, head_dim)
    ).astype(self.dtype)
    k, v = (
      jnp.concatenate(
        [
          jnp.broadcast_to(first, (b, 1, *first.shape)),
          y.reshape(b, -1, self.heads, head_dim),
        ],
        axis=1,
      )
      for first, y in zip(null, maps(text), strict=True)
    )
    if mask is not None:
      mask = jnp.pad(mask, ((0, 0), (1, 0)), constant_values=True)
    y = attend(q, k, v, mask).reshape(b, length, inner)
    zeros = nn.initializers.zeros
    return DenseOut(dim, dtype=self.dtype, kernel_init=zeros, name="out")(y)
