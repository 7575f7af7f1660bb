"""What stands between encoder and decoder: a Gaussian, or codes of three kinds."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree, UInt32
from ml_collections import ConfigDict

from core.errors import unknown
from vae import bounds, codebook, quantizers, statistics
from vae.bounds import Posterior

KINDS = ("kl", "vq", "gumbel", "fsq")
KEPT = 0.9  # of the shares of the codes, an update


class Rows(NamedTuple):
  """What training knows of the rows of a batch besides their pictures."""

  ids: UInt32[Array, " b"]
  keys: Key[Array, " b"]
  mask: Float[Array, " b"]
  updates: Int[Array, ""]  # done so far


class Passed(NamedTuple):
  """What comes through in training.

  Attributes:
    z: what the decoder reads.
    penalty: added to the loss of each example, per place and channel of a picture.
    metrics: of each example.
    sums: over the unmasked rows, for `Bottleneck.update`.
  """

  z: Float[Array, "b h w z"]
  penalty: Float[Array, " b"]
  metrics: dict[str, Float[Array, " b"]]
  sums: PyTree


class Code(NamedTuple):
  """A form in which a picture can be stored.

  Attributes:
    channels: numbers a place.
    vocab_size: values of each; 0 for real numbers.
    encode: (h, tracked) -> [b, h, w, channels].
    decode: (code, tracked) -> z.
  """

  channels: int
  vocab_size: int
  encode: Callable[[Array, PyTree], Array]
  decode: Callable[[Array, PyTree], Array]


class Bottleneck(NamedTuple):
  """One way to code the encoder's output h; `tracked` is what it learns by counting.

  Attributes:
    encoded: channels of h.
    latent: channels of z, which the decoder reads.
    train: (h, tracked, rows) -> Passed.
    codes: by name, 'latents' or 'tokens'.
    init: (key, h) -> tracked.
    update: (tracked, sums, key) -> tracked.
  """

  encoded: int
  latent: int
  train: Callable[[Array, PyTree, Rows], Passed]
  codes: Mapping[str, Code]
  init: Callable[[Array, Array], PyTree] = lambda key, h: {}
  update: Callable[[PyTree, PyTree, Array], PyTree] = lambda tracked, sums, key: tracked


def make(vae: ConfigDict, dims: int, batch_size: int) -> Bottleneck:
  """The bottleneck that `vae.bottleneck` names.

  Args:
    vae: the settings.
    dims: numbers of a picture, of which penalties in nats are shares.
    batch_size: of all devices.

  Raises:
    UserError: unknown kind, or settings that it cannot have.
  """
  match vae.bottleneck:
    case "kl":
      return gaussian(vae, dims)
    case "vq":
      return vector_quantizer(vae, batch_size)
    case "gumbel":
      return even(gumbel(vae, dims), vae.evenness, quantizers.softmax_mean)
    case "fsq":
      levels = tuple(vae.levels)
      mean = lambda h, values: quantizers.soft_mean(h, values, levels)  # noqa: E731
      return even(finite_scalar(levels), vae.evenness, mean)
  raise unknown("vae.bottleneck", vae.bottleneck, KINDS)


def gaussian(vae: ConfigDict, dims: int) -> Bottleneck:
  """h = (mean, logvar), z = mean + exp(logvar / 2) eps; the latents are the means.

  The penalty is `vae.beta` KL(q(z|x) || N(0, I)) in nats a dimension of the
  picture (Rombach et al. 2022, appendix G). logvar is cut to [-30, 20], as published.
  """
  channels = vae.latent_channels

  def train(h: Array, tracked: PyTree, rows: Rows) -> Passed:
    q = Posterior.of(h)
    draw = lambda key: jax.random.normal(key, q.mean.shape[1:])  # noqa: E731
    kl = q.kl().sum(-1) / dims
    beta = bounds.warmed(vae.beta, rows.updates, vae.warmup_steps)
    z = q.at(jax.vmap(draw)(rows.keys))
    return Passed(z, beta * kl, {"kl": kl}, {})

  latents = Code(channels, 0, lambda h, _: Posterior.of(h).mean, lambda z, _: z)
  return Bottleneck(2 * channels, channels, train, {"latents": latents})


def vector_quantizer(vae: ConfigDict, batch_size: int) -> Bottleneck:
  """z is the nearest of `vae.codes` vectors, which follow what they stand for.

  With `vae.quantizers` above 1 each further one codes what those before leave over. The
  penalty is `vae.commitment` times `codebook.commitment`. See `vae/codebook.py`.
  """
  channels = vae.latent_channels

  def init(key: Array, h: Array) -> PyTree:
    return codebook.init(key, h.reshape(-1, channels), vae.codes, vae.quantizers)

  def train(h: Array, tracked: PyTree, rows: Rows) -> Passed:
    z, tokens = codebook.quantize(tracked.codes, h)
    commitment = codebook.commitment(tracked.codes, h, tokens)
    sums = codebook.statistics(
      tracked.codes, h, tokens, rows.ids, rows.keys, rows.mask, batch_size
    )
    z = codebook.straight_through(h, z)
    return Passed(z, vae.commitment * commitment, {"commitment": commitment}, sums)

  def update(tracked: PyTree, sums: PyTree, key: Array) -> PyTree:
    return codebook.update(tracked, sums, vae.codebook_decay, vae.revive_below, key)

  codes = {
    # To take the nearest code is the decoder's part (Rombach et al. 2022, section 3.1).
    "latents": Code(
      channels,
      0,
      lambda h, tracked: h,
      lambda h, tracked: codebook.quantize(tracked.codes, h)[0],
    ),
    "tokens": Code(
      vae.quantizers,
      vae.codes,
      lambda h, tracked: codebook.quantize(tracked.codes, h)[1],
      lambda tokens, tracked: codebook.lookup(tracked.codes, tokens),
    ),
  }
  return Bottleneck(channels, channels, train, codes, init, update)


def gumbel(vae: ConfigDict, dims: int) -> Bottleneck:
  """h are logits of `vae.codes` codes, z a relaxed draw of one of them.

  The penalty is `vae.beta` KL(q(code|x) || uniform) in nats a dimension of the
  picture; the temperature falls from `temperature_start` to `temperature_end` (Ramesh
  et al. 2021, appendix A.2).
  """
  anneal = vae.temperature_start, vae.temperature_end, vae.temperature_steps

  def train(h: Array, tracked: PyTree, rows: Rows) -> Passed:
    temperature = quantizers.annealed(rows.updates, *anneal)
    kl = quantizers.kl_to_uniform(h) / dims
    beta = bounds.warmed(vae.beta, rows.updates, vae.warmup_steps)
    metrics = {"kl": kl, "temperature": jnp.broadcast_to(temperature, kl.shape)}
    z = quantizers.relaxed(h, rows.keys, temperature)
    return Passed(z, beta * kl, metrics, {})

  tokens = Code(
    1,
    vae.codes,
    lambda h, tracked: quantizers.likeliest(h)[..., None],
    lambda tokens, tracked: jax.nn.one_hot(tokens[..., 0], vae.codes),
  )
  return Bottleneck(vae.codes, vae.codes, train, {"tokens": tokens})


def finite_scalar(levels: tuple[int, ...]) -> Bottleneck:
  """Each channel of z takes one of a few levels, a code is one of their combinations.

  Mentzer et al. 2023 (arXiv:2309.15505): no codebook, so nothing to collapse. Yet a
  short training on simple pictures leaves channels alike, and many combinations unused.
  """
  codes, channels = quantizers.check_levels(levels), len(levels)

  def z_of(h: Array) -> Array:
    return quantizers.finite_scalar(h, levels)

  def train(h: Array, tracked: PyTree, rows: Rows) -> Passed:
    return Passed(z_of(h), jnp.zeros(len(h)), {}, {})

  forms = {
    "latents": Code(channels, 0, lambda h, tracked: h, lambda h, tracked: z_of(h)),
    "tokens": Code(
      1,
      codes,
      lambda h, tracked: quantizers.to_index(z_of(h), levels)[..., None],
      lambda tokens, tracked: quantizers.from_index(tokens[..., 0], levels),
    ),
  }
  return Bottleneck(channels, channels, train, forms)


def even(
  plain: Bottleneck, weight: float, mean: Callable[[Array, Array], Array]
) -> Bottleneck:
  """A bottleneck that counts nothing, with pressure towards even use of its codes.

  The penalty grows by `weight` times the mean over the places of sum_k q(k|h) log
  share_k, with the shares of the codes taken, averaged over updates. Where the shares
  are the means of q, its gradient is that of sum_k E[q_k] log E[q_k], minus the entropy
  of the use of the codes: the second term of the penalty of lookup-free quantization
  (Yu et al. 2024, arXiv:2310.05737, eq. 5).

  Args:
    plain: has one token a place.
    weight: `vae.evenness`; 0 gives `plain` back.
    mean: (h, values [k]) -> sum_k q(k|h) values_k at each place.
  """
  if not weight:
    return plain
  tokens = plain.codes["tokens"]
  codes = tokens.vocab_size

  def init(key: Array, h: Array) -> PyTree:
    return {"shares": jnp.full(codes, 1 / codes)}

  def train(h: Array, tracked: PyTree, rows: Rows) -> Passed:
    passed = plain.train(h, tracked, rows)
    values = quantizers.log_shares(tracked["shares"])
    share = jnp.mean(mean(h, values), axis=(1, 2))
    taken = tokens.encode(jax.lax.stop_gradient(h), tracked)
    return passed._replace(
      penalty=passed.penalty + weight * share,
      metrics=passed.metrics | {"log_share": share},
      sums=statistics.counts(taken, rows.mask, codes)[0],
    )

  def update(tracked: PyTree, sums: PyTree, key: Array) -> PyTree:
    new = sums / jnp.maximum(jnp.sum(sums), 1.0)
    return {"shares": KEPT * tracked["shares"] + (1 - KEPT) * new}

  return plain._replace(train=train, init=init, update=update)
