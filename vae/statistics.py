"""What an autoencoder's training counts: the spread of latents, the use of codes."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vae import codebook

# A code used less than this share of even use counts as unused: in an average that
# began with all in use, a dead code takes some 300 updates to fall below.
LEAST = 0.05


def moments(
  latents: Float[Array, "b h w c"], mask: Float[Array, " b"]
) -> dict[str, Float[Array, "..."]]:
  """Over the unmasked rows: how many places, sum and sum of squares of each channel."""
  weight = mask[:, None, None, None]
  return {
    "places": jnp.sum(mask) * latents.shape[1] * latents.shape[2],
    "sum": jnp.sum(weight * latents, axis=(0, 1, 2)),
    "square": jnp.sum(weight * latents**2, axis=(0, 1, 2)),
  }


def shift_scale(
  seen: dict[str, Float[Array, "..."]],
) -> tuple[Float[Array, " c"], Float[Array, " c"]]:
  """Mean and standard deviation of each channel; a deviation is 1e-6 or more."""
  mean = seen["sum"] / seen["places"]
  variance = seen["square"] / seen["places"] - mean**2
  return mean, jnp.sqrt(jnp.maximum(variance, 1e-12))


def standard(
  latents: Float[Array, "b h w c"], seen: dict[str, Float[Array, "..."]]
) -> Float[Array, "b h w c"]:
  """(latents - mean) / deviation, channel by channel."""
  mean, deviation = shift_scale(seen)
  return (latents - mean) / deviation


def original(
  latents: Float[Array, "b h w c"], seen: dict[str, Float[Array, "..."]]
) -> Float[Array, "b h w c"]:
  """The inverse of `standard`."""
  mean, deviation = shift_scale(seen)
  return latents * deviation + mean


def counts(
  tokens: Int[Array, "b h w n"], mask: Float[Array, " b"], vocab_size: int
) -> Float[Array, "n {vocab_size}"]:
  """How often each token comes, at each depth, over the unmasked rows."""
  b, h, w, n = tokens.shape
  weight = jnp.broadcast_to(mask[:, None, None, None], tokens.shape)
  depth = jnp.broadcast_to(jnp.arange(n), tokens.shape)
  return jnp.zeros((n, vocab_size)).at[depth, tokens].add(weight)


def use(counts: Float[Array, "n k"]) -> dict[str, Float[Array, ""]]:
  """The share of codes in use and their perplexity, means over the depths.

  A collapsed codebook shows in both.
  """
  even = jnp.mean(counts, -1, keepdims=True)
  used = jnp.where(counts > LEAST * even, counts, 0)
  return {
    "codebook_usage": jnp.mean(codebook.usage(used)),
    "perplexity": jnp.mean(codebook.perplexity(counts)),
  }


def log_frequencies(counts: Float[Array, "n k"]) -> Float[Array, "n k"]:
  """The logarithm of each token's share, -inf where it never comes."""
  return jnp.log(counts) - jnp.log(jnp.sum(counts, -1, keepdims=True))
