"""BERT and XLM-R, and sentence encoders that are one, such as MiniLM."""

import re
from pathlib import Path

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from nets.attention import SelfAttention
from nets.layers import Dense, masked_mean
from nets.pretrained import convert as to
from nets.pretrained import hugging_face as hf

# By config.json's model_type, what tensors are called first where BERT is part of more.
PREFIXES = {"bert": "bert.", "roberta": "roberta.", "xlm-roberta": "roberta."}
# Heads that are trained for other tasks, and numbers that are no parameters.
UNUSED = r"pooler\.|cls\.|lm_head\.|classifier\.|embeddings\.position_ids"


class Bert(nn.Module):
  """(tokens, mask) -> the states of all tokens, and one vector of the text.

  Devlin et al. 2018 (arXiv:1810.04805), section 3; a layer is x -> norm(x +
  attention(x)) -> norm(x + mlp(x)), and the MLP W_2 act(W_1 x). Every token is of the
  first segment. XLM-R (Conneau et al. 2019, arXiv:1911.02116) differs in `first`. The
  vector is the mean of the text's tokens (`pool` 'mean') or the first one's state
  ('cls').

  Attributes:
    vocab_size, length, segments: rows of the tables.
    first: row of the first token's position.
    dim, depth, heads, hidden: of the transformer; `hidden` is the MLP's width.
    act: one of hugging_face.ACTIVATIONS.
    eps: of the LayerNorms.
    pool: 'mean' or 'cls'.
    dtype: of the computation; norms are float32.
  """

  vocab_size: int
  length: int
  segments: int
  first: int
  dim: int
  depth: int
  heads: int
  hidden: int
  act: str
  eps: float
  pool: str = "mean"
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self, tokens: Int[Array, "b l"], mask: Bool[Array, "b l"] | None = None
  ) -> tuple[Float[Array, "b l {self.dim}"], Float[Array, "b {self.dim}"]]:
    """Tokens where `mask` is False are not read; None reads all."""

    def norm(name: str, x: Float[Array, "b l d"]) -> Float[Array, "b l d"]:
      return nn.LayerNorm(self.eps, dtype=jnp.float32, name=name)(x)

    def table(name: str, rows: int) -> nn.Embed:
      return nn.Embed(rows, self.dim, name=name)

    places = self.first + jnp.arange(tokens.shape[1])
    x = table("tokens", self.vocab_size)(tokens)
    x = x + table("positions", self.length)(places)
    x = x + table("segments", self.segments)(jnp.zeros((1, 1), jnp.int32))
    x = norm("norm", x)
    for i in range(self.depth):
      attention = SelfAttention(self.heads, self.dtype, name=f"attention_{i}")
      x = norm(f"norm_{i}_0", x + attention(x, mask))
      y = Dense(self.hidden, dtype=self.dtype, name=f"mlp_in_{i}")(x)
      y = hf.ACTIVATIONS[self.act](y)
      y = Dense(self.dim, dtype=self.dtype, name=f"mlp_out_{i}")(y)
      x = norm(f"norm_{i}_1", x + y)
    return x, x[:, 0] if self.pool == "cls" else masked_mean(x, mask)


def names(net: Bert, prefix: str = "") -> to.Names:
  """Where the parameters are in Hugging Face's files."""
  tables = {"tokens": "word", "positions": "position", "segments": "token_type"}
  found = {
    f"{own}/embedding": (f"{prefix}embeddings.{name}_embeddings.weight",)
    for own, name in tables.items()
  }
  found |= to.norm_names("norm", f"{prefix}embeddings.LayerNorm")
  for i in range(net.depth):
    layer = f"{prefix}encoder.layer.{i}"
    qkv = (f"{layer}.attention.self.{part}" for part in ("query", "key", "value"))
    found |= to.dense_names(f"attention_{i}/qkv", *qkv)
    found |= to.dense_names(f"attention_{i}/out", f"{layer}.attention.output.dense")
    found |= to.norm_names(f"norm_{i}_0", f"{layer}.attention.output.LayerNorm")
    found |= to.dense_names(f"mlp_in_{i}", f"{layer}.intermediate.dense")
    found |= to.dense_names(f"mlp_out_{i}", f"{layer}.output.dense")
    found |= to.norm_names(f"norm_{i}_1", f"{layer}.output.LayerNorm")
  return found


def network(
  directory: Path, dtype: DTypeLike = jnp.float32, pool: str = "mean"
) -> Bert:
  """The network that config.json describes.

  Raises:
    UserError: it cannot be read, or describes what is not built here.
  """
  file = directory / "config.json"
  config = hf.read_json(file)
  with hf.describing(file, "BERT"):
    kind = config.get("position_embedding_type", "absolute")
    if kind != "absolute":
      raise ValueError(f"position_embedding_type={kind!r}, not 'absolute'")
    # In XLM-R and RoBERTa the first positions are of padding.
    first = 0 if config["model_type"] == "bert" else config["pad_token_id"] + 1
    return Bert(
      vocab_size=config["vocab_size"],
      length=config["max_position_embeddings"],
      segments=config["type_vocab_size"],
      first=first,
      dim=config["hidden_size"],
      depth=config["num_hidden_layers"],
      heads=config["num_attention_heads"],
      hidden=config["intermediate_size"],
      act=hf.activation(file, config["hidden_act"]),
      eps=config["layer_norm_eps"],
      pool=pool,
      dtype=dtype,
    )


def load(directory: Path, net: Bert) -> to.Params:
  """Its parameters.

  Raises:
    UserError: a file is missing or damaged, or a tensor missing, mis-shaped or left
      over.
  """
  state, file_of = hf.read_tensors(directory)
  # What old files call the two parameters of a LayerNorm.
  old = {
    name: re.sub(r"\.beta$", ".bias", re.sub(r"\.gamma$", ".weight", name))
    for name in state
  }
  state = {old[name]: array for name, array in state.items()}
  kind = hf.read_json(directory / "config.json")["model_type"]
  prefix = hf.prefix(state, PREFIXES[kind])
  unused = rf"({re.escape(prefix)})?({UNUSED})"
  tokens = jnp.zeros((1, 1), jnp.int32)
  return to.matched(
    net, names(net, prefix), state, file_of, tokens, unused=unused, dtype=net.dtype
  )
