"""The text towers of CLIP and SigLIP."""

from pathlib import Path

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from nets.attention import SelfAttention
from nets.layers import Dense, DenseIn, DenseOut, Embed
from nets.pretrained import convert as to
from nets.pretrained import hugging_face as hf


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
    y = DenseIn(self.hidden, dtype=self.dtype, name="mlp_in")(norm("norm_1"))
    y = hf.ACTIVATIONS[self.act](y)
    out = DenseOut(
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
    act: one of hugging_face.ACTIVATIONS.
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
    embed = Embed(self.vocab_size, self.dim, embedding_init=normal(0.02), name="tokens")
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


# The image tower, what weighs image against text, and numbers that are no parameters.
UNUSED = (
  r"vision_model\.|visual_projection\.|logit_|(text_model\.)?embeddings\.position_ids"
)
# What transformers takes where a config.json does not say.
DEFAULTS = {
  "clip_text_model": {
    "vocab_size": 49408,
    "max_position_embeddings": 77,
    "hidden_size": 512,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "intermediate_size": 2048,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "eos_token_id": 49407,
    "projection_dim": 512,
  },
  "siglip_text_model": {
    "vocab_size": 32000,
    "max_position_embeddings": 64,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
  },
}


def network(directory: Path, dtype: DTypeLike = jnp.float32) -> TextTower:
  """The text tower that config.json describes, alone or as a part of CLIP or SigLIP.

  Raises:
    UserError: it cannot be read, or describes what is not built here.
  """
  file = directory / "config.json"
  config = hf.read_json(file)
  with hf.describing(file, "CLIP or SigLIP"):
    kind = config["model_type"]
    causal = kind.startswith("clip")
    alone = kind.endswith("_text_model")
    own = config if alone else hf.part(config, "text")
    own = DEFAULTS["clip_text_model" if causal else "siglip_text_model"] | own
    if causal:
      out = own["projection_dim"] if alone else config.get("projection_dim", 512)
      if alone and "CLIPTextModelWithProjection" not in config.get("architectures", []):
        out = 0
      # 2 stands in old files for the true one, which is the largest.
      eos = -1 if own["eos_token_id"] == 2 else own["eos_token_id"]
    else:
      out, eos = own.get("projection_size", own["hidden_size"]), -1
    return TextTower(
      vocab_size=own["vocab_size"],
      length=own["max_position_embeddings"],
      dim=own["hidden_size"],
      depth=own["num_hidden_layers"],
      heads=own["num_attention_heads"],
      hidden=own["intermediate_size"],
      act=hf.activation(file, own["hidden_act"]),
      eps=own["layer_norm_eps"],
      causal=causal,
      eos=eos,
      out=out,
      out_bias=not causal,
      dtype=dtype,
    )


def load(directory: Path, net: TextTower) -> to.Params:
  """Its parameters.

  Raises:
    UserError: a file is missing or damaged, or a tensor missing, mis-shaped or left
      over.
  """
  state, file_of = hf.read_tensors(directory)
  prefix = hf.prefix(state, "text_model.")
  head = "text_projection" if net.causal else f"{prefix}head"
  return to.matched(
    net,
    names(net, prefix, head),
    state,
    file_of,
    jnp.zeros((1, 1), jnp.int32),
    unused=UNUSED,
    dtype=net.dtype,
  )
