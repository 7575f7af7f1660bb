"""The encoders of T5, mT5 and umT5."""

from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from nets.layers import Dense, masked_mean
from nets.pretrained import convert as to
from nets.pretrained import hugging_face as hf

# The decoder, and a second copy of the table of tokens.
UNUSED = r"decoder\.|lm_head\.|encoder\.embed_tokens\.weight"


def buckets(length: int, count: int, far: int) -> Int[np.ndarray, "l l"]:
  """The bucket of key j as seen from query i, of `count`.

  Raffel et al. 2019 (arXiv:1910.10683), section 2.1: half of the buckets are for keys
  behind the query. Of each half the first half are distances 0, 1, 2, ... and the
  others grow with their logarithm up to `far`, beyond which all are in the last.
  """
  half, exact = count // 2, count // 4
  offset = np.arange(length)[None] - np.arange(length)[:, None]
  distance = np.abs(offset)
  near = np.maximum(distance, 1).astype(np.float32)
  grown = np.log(near / exact) / np.float32(np.log(far / exact)) * (half - exact)
  large = np.minimum(exact + grown.astype(np.int64), half - 1)
  found = np.where(distance < exact, distance, large)
  return (found + half * (offset > 0)).astype(np.int32)


class RMSNorm(nn.Module):
  """scale x / sqrt(mean(x^2) + eps), in float32."""

  eps: float

  @nn.compact
  def __call__(self, x: Float[Array, "... d"]) -> Float[Array, "... d"]:
    scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + self.eps) * scale


class T5Encoder(nn.Module):
  """(tokens, mask) -> the states of all tokens, and their mean.

  Raffel et al. 2019 (arXiv:1910.10683), section 2.1: x + W_o attention(norm x), then
  x + mlp(norm x), without biases; logits are q k^T, unscaled, plus a learned number for
  each head and bucket of distance. The MLP of T5 is W_2 act(W_1 x); `gated`, as in
  T5 1.1, mT5 and umT5, is W_2 (act(W_1 x) * W_3 x) (Shazeer 2020, arXiv:2002.05202).

  Attributes:
    vocab_size, dim, depth, heads, head_dim, hidden: sizes; `hidden` is the MLP's width.
    act: one of hugging_face.ACTIVATIONS.
    gated: see above.
    own_bias: each layer has numbers of its own for distances (umT5), or all those of
      the first.
    buckets, far: of distances, see `buckets`.
    eps: of the norms.
    dtype: of the products; all else is float32.
  """

  vocab_size: int
  dim: int
  depth: int
  heads: int
  head_dim: int
  hidden: int
  act: str
  gated: bool
  own_bias: bool = False
  buckets: int = 32
  far: int = 128
  eps: float = 1e-6
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self, tokens: Int[Array, "b l"], mask: Bool[Array, "b l"] | None = None
  ) -> tuple[Float[Array, "b l {self.dim}"], Float[Array, "b {self.dim}"]]:
    """Tokens where `mask` is False are not read; None reads all."""
    b, length = tokens.shape
    place = buckets(length, self.buckets, self.far)
    act = hf.ACTIVATIONS[self.act]

    def dense(name: str, features: int, x: Float[Array, "b l d"]) -> Array:
      return Dense(features, use_bias=False, dtype=self.dtype, name=name)(x)

    x = nn.Embed(self.vocab_size, self.dim, name="tokens")(tokens).astype(jnp.float32)
    for i in range(self.depth):
      if i == 0 or self.own_bias:
        init, shape = nn.initializers.normal(0.02), (self.buckets, self.heads)
        table = self.param(f"distances_{i}", init, shape)
        bias = table[place].transpose(2, 0, 1).astype(jnp.float32)
      width = self.heads * self.head_dim
      qkv = dense(f"qkv_{i}", 3 * width, RMSNorm(self.eps, name=f"norm_{i}_0")(x))
      qkv = qkv.reshape(b, length, 3, self.heads, self.head_dim)
      y = biased(*jnp.moveaxis(qkv, 2, 0), bias, mask)
      x = x + dense(f"out_{i}", self.dim, y.reshape(b, length, width))
      y = RMSNorm(self.eps, name=f"norm_{i}_1")(x)
      if self.gated:
        gate, y = jnp.split(dense(f"mlp_in_{i}", 2 * self.hidden, y), 2, axis=-1)
        y = act(gate) * y
      else:
        y = act(dense(f"mlp_in_{i}", self.hidden, y))
      x = x + dense(f"mlp_out_{i}", self.dim, y)
    x = RMSNorm(self.eps, name="norm")(x)
    return x, masked_mean(x, mask)


def biased(
  q: Float[Array, "b l h d"],
  k: Float[Array, "b m h d"],
  v: Float[Array, "b m h d"],
  bias: Float[Array, "h l m"],
  mask: Bool[Array, "b m"] | None,
) -> Float[Array, "b l h d"]:
  """softmax(q k^T + bias) v, the softmax in float32; masked keys get no weight."""
  logits = jnp.einsum("blhd,bmhd->bhlm", q, k, preferred_element_type=jnp.float32)
  logits = logits + bias
  if mask is not None:
    logits = jnp.where(mask[:, None, None], logits, -1e30)
  weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
  return jnp.einsum("bhlm,bmhd->blhd", weights, v)


def names(net: T5Encoder) -> to.Names:
  """Where the parameters are in Hugging Face's files."""
  found = {
    "tokens/embedding": ("shared.weight",),
    "norm/scale": ("encoder.final_layer_norm.weight",),
  }
  for i in range(net.depth):
    attention, mlp = (f"encoder.block.{i}.layer.{part}" for part in (0, 1))
    own = f"{attention}.SelfAttention"
    if i == 0 or net.own_bias:
      found[f"distances_{i}"] = (f"{own}.relative_attention_bias.weight",)
    qkv = (f"{own}.{part}" for part in "qkv")
    found |= to.dense_names(f"qkv_{i}", *qkv, bias=False)
    found |= to.dense_names(f"out_{i}", f"{own}.o", bias=False)
    found[f"norm_{i}_0/scale"] = (f"{attention}.layer_norm.weight",)
    found[f"norm_{i}_1/scale"] = (f"{mlp}.layer_norm.weight",)
    wide = ("wi_0", "wi_1") if net.gated else ("wi",)
    wide = (f"{mlp}.DenseReluDense.{part}" for part in wide)
    found |= to.dense_names(f"mlp_in_{i}", *wide, bias=False)
    found |= to.dense_names(f"mlp_out_{i}", f"{mlp}.DenseReluDense.wo", bias=False)
  return found


def network(directory: Path, dtype: DTypeLike = jnp.float32) -> T5Encoder:
  """The encoder that config.json describes.

  Raises:
    UserError: it cannot be read, or describes what is not built here.
  """
  file = directory / "config.json"
  config = hf.read_json(file)
  with hf.describing(file, "T5"):
    # T5's first files do not say it.
    usual = "relu" if config["model_type"] == "t5" else "gated-gelu"
    kind = config.get("feed_forward_proj", usual)
    gated, act = kind.startswith("gated-"), kind.removeprefix("gated-")
    # What T5 1.1 calls gelu is its approximation by tanh.
    act = "gelu_new" if kind == "gated-gelu" else act
    return T5Encoder(
      vocab_size=config["vocab_size"],
      dim=config["d_model"],
      depth=config["num_layers"],
      heads=config["num_heads"],
      head_dim=config["d_kv"],
      hidden=config["d_ff"],
      act=hf.activation(file, act),
      gated=gated,
      own_bias=config["model_type"] == "umt5",
      buckets=config.get("relative_attention_num_buckets", 32),
      far=config.get("relative_attention_max_distance", 128),
      eps=config.get("layer_norm_epsilon", 1e-6),
      dtype=dtype,
    )


def load(directory: Path, net: T5Encoder) -> to.Params:
  """Its parameters.

  Raises:
    UserError: a file is missing or damaged, or a tensor missing, mis-shaped or left
      over.
  """
  state, file_of = hf.read_tensors(directory)
  tokens = jnp.zeros((1, 1), jnp.int32)
  return to.matched(
    net, names(net), state, file_of, tokens, unused=UNUSED, dtype=net.dtype
  )
