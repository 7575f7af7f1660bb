"""The text towers of CLIP and SigLIP."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from nets.attention import SelfAttention
from nets.layers import Dense
from nets.pretrained import convert as to

Activation = Callable[[Array], Array]


def quick_gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
  """x sigmoid(1.702 x), which OpenAI's CLIP takes for GELU."""
  return x * jax.nn.sigmoid(1.702 * x)


# By the names that Hugging Face's config.json has for them.
ACTIVATIONS: dict[str, Activation] = {
  "quick_gelu": quick_gelu,
  "gelu": lambda x: jax.nn.gelu(x, approximate=False),
  "gelu_new": jax.nn.gelu,
  "gelu_pytorch_tanh": jax.nn.gelu,
  "relu": jax.nn.relu,
}


class Layer(nn.Module):
  """x + attention(norm x), then x + W_2 act(W_1 norm x); of text and image towers."""

  heads: int
  hidden: int
  act: str
  eps: float
  out_init: nn.initializers.Initializer = nn.initializers.lecun_normal()
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "b l d"],
    mask: Bool[Array, "b l"] | Bool[Array, "b l l"] | None = None,
  ) -> Float[Array, "b l d"]:
    def norm(name: str) -> Float[Array, "b l d"]:
      y = nn.LayerNorm(self.eps, dtype=jnp.float32, name=name)(x)
      return y.astype(self.dtype)

    attention = SelfAttention(self.heads, self.dtype, self.out_init, name="attention")
    x = x + attention(norm("norm_0"), mask)
    y = Dense(self.hidden, dtype=self.dtype, name="mlp_in")(norm("norm_1"))
    y = ACTIVATIONS[self.act](y)
    out = Dense(
      x.shape[-1], dtype=self.dtype, kernel_init=self.out_init, name="mlp_out"
    )
    return x + out(y)


class TextTower(nn.Module):
  """(tokens, mask) -> the states of all tokens, and one vector of the text.

  CLIP (Radford et al. 2021, arXiv:2103.00020, section 2.4): token i reads those up to
  i, and the vector is that of the first `eos`. SigLIP (Zhai et al. 2023,
  arXiv:2303.15343): all read all, and the vector is the last token's, padding included.
  The states are after the last LayerNorm; the vector then goes through a linear map to
  `out` numbers, if that is not 0. It is not normalised.

  Attributes:
    vocab_size, length: numbers of token ids and of positions.
    dim, depth, heads, hidden: of the transformer; `hidden` is the MLP's width.
    act: one of ACTIVATIONS.
    eps: of the LayerNorms.
    causal: CLIP's kind, or else SigLIP's.
    eos: the token whose state is pooled, of CLIP; -1 for the largest id in the text.
    out: length of the pooled vector; 0 for `dim`, without a map.
    out_bias: of the map; SigLIP has one.
    dtype: of the computation; parameters are float32 unless given otherwise.
  """

  vocab_size: int
  length: int
  dim: int
  depth: int
  heads: int
  hidden: int
  act: str = "quick_gelu"
  eps: float = 1e-5
  causal: bool = True
  eos: int = -1
  out: int = 0
  out_bias: bool = False
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self, tokens: Int[Array, "b l"], mask: Bool[Array, "b l"] | None = None
  ) -> tuple[Float[Array, "b l {self.dim}"], Float[Array, "b e"]]:
    """Tokens where `mask` is False are not read; None reads all."""
    length, normal = tokens.shape[1], nn.initializers.normal
    embed = nn.Embed(
      self.vocab_size, self.dim, embedding_init=normal(0.02), name="tokens"
    )
    positions = self.param("positions", normal(0.01), (self.length, self.dim))
    x = (embed(tokens) + positions[:length]).astype(self.dtype)
    if self.causal:
      before = jnp.tril(jnp.ones((1, length, length), bool))
      read = jnp.broadcast_to(before, (len(tokens), length, length))
      mask = read if mask is None else read & mask[:, None]
    # The sum over all branches starts as large as one of them (GPT-2).
    init = normal(self.dim**-0.5 * (2 * self.depth) ** -0.5)
    for i in range(self.depth):
      x = Layer(
        self.heads,
        self.hidden,
        self.act,
        self.eps,
        init,
        self.dtype,
        name=f"layer_{i}",
      )(x, mask)
    x = nn.LayerNorm(self.eps, dtype=jnp.float32, name="norm")(x)
    if self.causal:
      last = tokens if self.eos < 0 else tokens == self.eos
      pooled = jnp.take_along_axis(x, last.argmax(1)[:, None, None], axis=1)[:, 0]
    else:
      pooled = x[:, -1]
    if self.out:
      head = Dense(self.out, self.out_bias, dtype=self.dtype, name="head")
      pooled = head(pooled.astype(self.dtype))
    return x, pooled.astype(jnp.float32)


def layer_names(path: str, name: str) -> to.Names:
  """Where the parameters of one `Layer` are in files of CLIP and SigLIP."""
  qkv = (f"{name}.self_attn.{part}_proj" for part in "qkv")
  return {
    **to.dense_names(f"{path}/attention/qkv", *qkv),
    **to.dense_names(f"{path}/attention/out", f"{name}.self_attn.out_proj"),
    **to.norm_names(f"{path}/norm_0", f"{name}.layer_norm1"),
    **to.norm_names(f"{path}/norm_1", f"{name}.layer_norm2"),
    **to.dense_names(f"{path}/mlp_in", f"{name}.mlp.fc1"),
    **to.dense_names(f"{path}/mlp_out", f"{name}.mlp.fc2"),
  }


def names(net: TextTower, prefix: str = "text_model.", head: str = "") -> to.Names:
  """Where the parameters are in Hugging Face's files.

  `prefix` is '' in files of the tower alone, as transformers 5 writes them. `head` is
  the linear map: 'text_projection' of CLIP, 'text_model.head' or 'head' of SigLIP.
  """
  found = {
    "tokens/embedding": (f"{prefix}embeddings.token_embedding.weight",),
    "positions": (f"{prefix}embeddings.position_embedding.weight",),
    **to.norm_names("norm", f"{prefix}final_layer_norm"),
  }
  for i in range(net.depth):
    found |= layer_names(f"layer_{i}", f"{prefix}encoder.layers.{i}")
  if net.out:
    found |= to.dense_names("head", head, bias=net.out_bias)
  return found
