"""A mixture of Gaussians fitted by EM: what drew pictures before deep networks.

p(x, y) = sum_k pi_k p(x | k) p(y | k) over pictures x and conditions y, so that
p(x | y) = sum_k p(k | y) p(x | k) with p(k | y) in proportion to pi_k p(y | k). Each
p(x | k) is a Gaussian with a diagonal or low-rank covariance (`vae/em.py`), and
p(y | k) a share of each class, or of each word as in naive Bayes.
"""

import functools
import math

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key, PyTree
from ml_collections import ConfigDict

from core import checks, levels
from core.errors import UserError, unknown
from core.family import (
  Batch,
  Family,
  Metrics,
  Samples,
  Spec,
  State,
  check_spec,
  example_keys,
  sample_keys,
)
from core.levels import BIN
from core.step import count_skipped, in_parts, keep_if, updates_done
from text import encoders
from text.bytes import VOCAB_SIZE
from text.cond import Cond
from vae import em
from vae.em import Mixture, Statistics

NAME = "generator"
HASH_BITS = 10  # words are told apart by so many bits


def make(config: ConfigDict, spec: Spec) -> Family:
  """The family of `config.mixture`.

  A step is one update of stepwise EM (Cappé & Moulines 2009, arXiv:0712.4273):
  s = (1 - rho) s + rho s(batch) with rho = (t + 2)^-power after t updates, then the M
  step. s(batch) is the mean over the batch's rows of the expected
  statistics, and s starts as what the initial mixture expects. With power 0 and a batch
  of the whole data it is plain EM. s is `state.opt`; it is an average over the steps
  already, so `state.ema` is the parameters themselves.

  The loss is -log2 p(x, y), which EM lowers, and bpd -log2 p(x | y) of pictures with
  uniform noise in their pixels' bins, both a dimension and grey level. `config.optim`
  is read for `microbatches` only, and a rate other than the default refused: there is
  no gradient.

  Raises:
    UserError: settings that are unknown or do not go together.
  """
  check(config, spec)
  settings, dims = config.mixture, math.prod(spec.shape)
  kinds = vocabulary(config.text)
  smoothing = settings.smoothing / config.data.batch_size

  def bits(log_p: Float[Array, " b"]) -> Float[Array, " b"]:
    return levels.bits(-log_p, dims) - math.log2(BIN)

  def rows(x: Float[Array, "b ..."]) -> Float[Array, "b d"]:
    return jnp.reshape(x, (len(x), dims))

  def init(rng: Array, batch: Batch) -> State:
    mixture = em.start(
      rng,
      rows(batch["x"]),
      batch["_id"],
      batch["_mask"],
      (settings.components, settings.rank, kinds),
      settings.floor,
    )
    return State(
      step=jnp.zeros((), jnp.int32),
      params={NAME: mixture},
      opt={NAME: em.expected(mixture)},
      ema={NAME: copied(mixture)},
      extra={"skipped": jnp.zeros(2, jnp.int32)},
    )

  def sums(mixture: Mixture, batch: Batch) -> tuple[Statistics, Metrics]:
    mask = batch["_mask"]
    words = counted(batch["cond"], len(mask), kinds)
    statistics, log_p = em.expect(mixture, rows(batch["x"]), words, mask)
    loss = jnp.sum(jnp.where(mask, bits(log_p), 0.0))
    return statistics, {"loss": loss, "_count": jnp.sum(mask, dtype=jnp.float32)}

  def step(
    state: State, batch: Batch, rng: Array, axis: str | None = None
  ) -> tuple[State, Metrics]:
    mixture, average = state.params[NAME], state.opt[NAME]
    each = functools.partial(sums, mixture)
    found, metrics = in_parts(each, batch, config.optim.microbatches)
    if axis is not None:
      found, metrics = jax.lax.psum((found, metrics), axis)
    count = jnp.maximum(metrics.pop("_count"), 1)
    found, metrics = jax.tree.map(lambda a: a / count, (found, metrics))
    rho = (updates_done(state) + 2.0) ** -settings.power
    moved = jax.tree.map(lambda s, new: (1 - rho) * s + rho * new, average, found)
    new, moved = em.maximise(moved, mixture, floor=settings.floor, smoothing=smoothing)
    good = jnp.isfinite(metrics["loss"]) & jnp.isfinite(optax.tree.norm(new))
    good &= jnp.isfinite(optax.tree.norm(moved))
    new, moved = keep_if(good, (new, moved), (mixture, average))
    skipped = count_skipped(state.extra["skipped"], good)
    metrics |= {
      "perplexity": jnp.exp(jnp.sum(jax.scipy.special.entr(new.weight))),
      "skipped": skipped[0],
      "skipped_in_a_row": skipped[1],
    }
    state = State(
      step=state.step + 1,
      params={NAME: new},
      opt={NAME: moved},
      ema={NAME: copied(new)},
      extra={"skipped": skipped},
    )
    return state, metrics

  def sample(state: State, rng: Array, cond: Cond, n: int) -> Samples:
    mixture, keys = state.ema[NAME], sample_keys(rng, n)
    log_k = em.log_evidence(mixture, counted(cond, n, kinds)).T
    x, mean = jax.vmap(draw, (None, 0, 0))(mixture, keys, log_k)
    overall = jnp.broadcast_to(mixture.weight @ mixture.factors[..., -1], x.shape)
    # Backwards, so that a single frame is the picture, as in `edits.film`.
    times = jnp.linspace(2.0, 0.0, config.sample.frames)[::-1, None, None]
    path = overall + jnp.minimum(times, 1) * (mean - overall)
    path = (path + jnp.maximum(times - 1, 0) * (x - mean)).at[-1].set(x)
    images, frames = jnp.clip(x, -1, 1), jnp.clip(path, -1, 1)
    return Samples(
      images.reshape(n, *spec.shape),
      frames.reshape(-1, n, *spec.shape),
      jnp.ones(n, jnp.int32),
    )

  def loss(state: State, batch: Batch, rng: Array) -> Float[Array, " b"]:
    words = counted(batch["cond"], len(batch["x"]), kinds)
    return bits(em.log_joint(state.ema[NAME], rows(batch["x"]), words))

  def bpd(state: State, batch: Batch, rng: Array) -> Float[Array, " b"]:
    keys = example_keys(rng, batch["_id"])
    words = counted(batch["cond"], len(batch["x"]), kinds)
    x = rows(levels.dequantized(jnp.asarray(batch["x"]), keys))
    return bits(em.log_conditional(state.ema[NAME], x, words))

  evals = {"loss": loss, "bpd": bpd}
  return Family(init=init, step=step, sample=sample, evals=evals, averages=False)


def draw(
  mixture: Mixture, key: Key[Array, ""], log_k: Float[Array, " k"]
) -> tuple[Float[Array, " d"], Float[Array, " d"]]:
  """One x, and the mean of its component, which is drawn first, by log_k + constant."""
  key_k, key_z, key_e = jax.random.split(key, 3)
  k = jax.random.categorical(key_k, log_k)
  factors, noise = mixture.factors[k], mixture.noise[k]
  z = jax.random.normal(key_z, factors.shape[1:])[:-1]
  e = jnp.sqrt(noise) * jax.random.normal(key_e, noise.shape)
  return factors[:, -1] + factors[:, :-1] @ z + e, factors[:, -1]


def check(config: ConfigDict, spec: Spec) -> None:
  """Raises UserError for settings that a mixture has no use for."""
  components, size = config.mixture.components, config.data.batch_size
  if components > size:
    raise UserError(
      f"mixture.components={components} start from as many rows of the first batch;"
      f" set data.batch_size={size} to {components} or more."
    )
  check_spec(config.family, spec, latents=False)
  checks.refuse_small_pictures(config)
  checks.refuse_guidance(config)
  checks.refuse(config, "optim", learning_rate=2e-4, weight_decay=0.0)
  if config.optim.ema == "power":
    raise UserError(
      "vae.mixture keeps no other average than EM's: optim.ema='power' is of no use,"
      " set it to 'warmup'."
    )


def copied(tree: PyTree) -> PyTree:
  """A copy: a buffer that stands twice in a state can't be donated."""
  return jax.tree.map(jnp.copy, tree)


def vocabulary(text: ConfigDict) -> int:
  """How many kinds of words `counted` tells apart.

  Raises:
    UserError: unknown encoder, or label without `text.classes`.
  """
  match text.encoder:
    case "label":
      if text.classes < 1:
        raise UserError(
          "text.encoder='label' needs text.classes, the data's number of classes."
        )
      return text.classes
    case "bytes":
      return 2**HASH_BITS
    case "none":
      return 1  # that never occurs
    case "frozen":
      raise UserError(
        "vae.mixture counts words, and text.encoder='frozen' has none: set it to"
        " 'bytes', 'label' or 'none'."
      )
  raise unknown("text.encoder", text.encoder, encoders.KINDS)


def counted(cond: Cond, n: int, kinds: int) -> Float[Array, "n v"]:
  """How often each kind of word occurs in n raw conditions; zeros in the null one.

  A label is a word. In a caption every byte is one, together with the bytes before and
  after it, hashed (Knuth, The Art of Computer Programming 3, section 6.4).
  """
  if cond.label is not None:
    return jax.nn.one_hot(cond.label, kinds)  # zeros for -1
  if cond.tokens is None:
    return jnp.zeros((n, kinds))
  middle = jnp.where(cond.mask, cond.tokens, 0).astype(jnp.uint32)
  before, after = (
    jnp.pad(middle, ((0, 0), side))[:, cut]
    for side, cut in (((1, 0), slice(None, -1)), ((0, 1), slice(1, None)))
  )
  number = (before * VOCAB_SIZE + middle) * VOCAB_SIZE + after
  bucket = (number * jnp.uint32(2654435761)) >> (32 - HASH_BITS)
  places = jnp.arange(n)[:, None], bucket.astype(jnp.int32)
  return jnp.zeros((n, kinds)).at[places].add(cond.mask.astype(jnp.float32))
