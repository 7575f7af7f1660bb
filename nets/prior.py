"""unCLIP's prior: a causal transformer that denoises the embedding of a picture."""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Integer

from core.errors import UserError
from nets.decoder import Decoder
from nets.embeddings import NoiseEmbedding
from nets.layers import Dense
from text.cond import Cond


class Prior(nn.Module):
  """A denoiser of vectors (Ramesh et al. 2022, arXiv:2204.06125, section 2.2).

  One sequence, each item reading those before it: the encoded text `cond.seq`, the
  text's vector `cond.pooled`, the noise level, the noisy vector, and a learned query,
  whose output is the prediction. Blocks are those of `nets/decoder.py`, with learned
  positions; the paper's are GPT's.

  Attributes:
    dim: width of an item, a multiple of `heads`.
    depth, heads: of the transformer.
    out_channels: numbers predicted.
    dropout, dtype, remat, scan: as in `DiT`.
  """

  dim: int
  depth: int
  heads: int
  out_channels: int
  dropout: float = 0.0
  dtype: DTypeLike = jnp.float32
  remat: bool = False
  scan: bool = True

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "b h w c"],
    logsnr: Float[Array, " b"],
    cond: Cond,
    ids: Integer[Array, " b"] | None = None,
  ) -> Float[Array, "b h w o"]:
    """The output for noisy vectors, [b, 1, 1, c].

    Raises:
      UserError: a map, not a vector.
    """
    b, h, w, c = x.shape
    if h * w != 1:
      raise UserError(
        f"model.net='prior' denoises vectors, not maps of {h}x{w}: set data.codec to a"
        " run of configs/text/clip.py, or model.net to 'dit'."
      )

    def dense(features: int, name: str) -> nn.Module:
      return Dense(features, dtype=self.dtype, name=name)

    query = self.param("query", nn.initializers.normal(0.02), (1, 1, self.dim))
    noise = NoiseEmbedding(self.dim, dtype=self.dtype, name="noise")(logsnr)
    items = [noise[:, None], dense(self.dim, "vector")(x.reshape(b, 1, c))]
    items.append(jnp.broadcast_to(query, (b, 1, self.dim)))
    if cond.pooled is not None:
      items.insert(0, dense(self.dim, "pooled")(cond.pooled)[:, None])
    count = len(items)
    known = jnp.ones((b, count), bool)
    if cond.seq is not None:
      items.insert(0, dense(self.dim, "text")(cond.seq))
      known = jnp.concatenate([cond.mask, known], 1)
    y = jnp.concatenate([item.astype(self.dtype) for item in items], axis=1)
    length = y.shape[1]
    place = self.param("positions", nn.initializers.normal(0.02), (length, self.dim))
    net = Decoder(
      self.dim,
      self.depth,
      self.heads,
      self.dropout,
      self.dtype,
      self.remat,
      self.scan,
      name="decoder",
    )
    still = jnp.zeros((length, self.dim // self.heads // 2))  # no rotation
    y = net(y + place, still, causal(known), ids)[:, -1]
    out = Dense(self.out_channels, kernel_init=nn.initializers.zeros, name="out")(y)
    return out.reshape(b, 1, 1, self.out_channels)


def causal(known: Bool[Array, "b l"]) -> Bool[Array, "b l l"]:
  """Which items each reads: itself, and those before it that are known."""
  length = known.shape[1]
  before = jnp.tril(jnp.ones((length, length), bool))
  return (before & known[:, None]) | jnp.eye(length, dtype=bool)
