"""MaskGIT: many tokens at a time, the surest first (Chang et al. 2022).

arXiv:2202.04200, sections 3.1 and 3.2.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree
from ml_collections import ConfigDict

from autoregressive import decoder, masking, sampling, sequence
from autoregressive.settings import refuse_others
from core import checks
from core.family import (
  Batch,
  Family,
  Samples,
  Spec,
  example_keys,
  keys_at,
  sample_keys,
)
from core.levels import bits
from nets import build
from nets.masked import Masked, MaskedTokens
from text import encoders
from text.cond import Cond, guide


class _Canvas(NamedTuple):
  numbers: Int[Array, "n l"]
  hidden: Bool[Array, "n l"]
  film: Int[Array, "k n l"]


def make(config: ConfigDict, spec: Spec) -> Family:
  """The family of a transformer that tells hidden numbers from all that are shown.

  In training ceil(gamma(r) N) of N numbers are hidden, r ~ U(0, 1), gamma the
  `autoregressive.schedule`; the loss is the mean over them of -log2 p (eq. 1), with
  `autoregressive.label_smoothing` a: (1 - a) times it and a times the mean of -log2
  over all values. Its eval is `bits_per_hidden`, without the smoothing; it is no
  likelihood of the picture.

  Edits: inpaint, which draws where the mask is 1.

  Raises:
    UserError: latents, or settings that it cannot take.
  """
  numbers, own = sequence.make(config.family, spec), config.autoregressive
  refuse_others(config, "schedule", "label_smoothing")
  settings, steps = sampling.make(config.sample, numbers.vocab), config.sample.steps
  shares = jnp.asarray(masking.hidden_shares(own.schedule, steps), jnp.float32)
  checks.refuse_small_pictures(config)
  encoders.check_guidance(config.text, settings.guidance_scale)
  net = network(config, spec, numbers.vocab)
  guides = settings.guidance_scale != 1 and config.text.encoder != "none"
  length, frames = numbers.length, min(config.sample.frames, steps)

  def init(rng: Array, batch: Batch) -> PyTree:
    x = numbers.read(jnp.asarray(batch["x"][:1]))
    cond = jax.tree.map(lambda a: a[:1], batch["cond"])
    return net.init(rng, x, jnp.zeros(x.shape, bool), cond)["params"]

  def losses(
    params: PyTree, batch: Batch, rng: Array, training: bool
  ) -> Float[Array, " b"]:
    cond, ids = batch["cond"], batch["_id"]
    keys = jax.vmap(lambda key: jax.random.split(key, 3))(example_keys(rng, ids))
    if training:
      cond = encoders.dropped(config.text, cond, keys[:, 2])
    r = jax.vmap(jax.random.uniform)(keys[:, 0])
    order = jax.vmap(lambda key: jax.random.uniform(key, (length,)))(keys[:, 1])
    count = jnp.maximum(masking.count_of(masking.share_at(own.schedule, r), length), 1)
    hidden = masking.lowest(order, count)
    x = numbers.read(jnp.asarray(batch["x"]))
    how = {"ids": ids, "rngs": {"dropout": rng}} if training else {}
    logits = net.apply({"params": params}, x, hidden, cond, **how)
    nats = sequence.cross_entropy(logits, x)
    if training and own.label_smoothing:
      even = -jax.nn.log_softmax(logits.astype(jnp.float32)).mean(-1)
      nats = (1 - own.label_smoothing) * nats + own.label_smoothing * even
    return bits(jnp.sum(hidden * nats, axis=1) / count, 1)

  def drawn(
    params: PyTree,
    rng: Array,
    cond: Cond,
    x: Int[Array, "n l"],
    hidden: Bool[Array, "n l"],
  ) -> Samples:
    """Step t tells all that is hidden, and hides again what it is least sure of.

    Sure is log p + tau (1 - t / steps) Gumbel noise, tau =
    `sample.choice_temperature`, and p guided, but as it is without temperature and
    filters, which make all alike. ceil(gamma(t / steps) N) stay hidden, N of them to
    begin with. A frame is all that is told at its step.
    """
    n, keys, first = len(x), sample_keys(rng, len(x)), hidden.sum(1)
    cond = cond.with_null() if guides else cond.replace(negative=None)

    def told(canvas: _Canvas, i: Array) -> Float[Array, "n l v"]:
      two = canvas.numbers, canvas.hidden
      if not guides:
        return net.apply({"params": params}, *two, cond)
      both = (jnp.concatenate([a, a]) for a in two)
      scale = sampling.scale_at(settings, 1 - shares[i])
      return guide(net.apply({"params": params}, *both, cond), scale)

    def body(canvas: _Canvas, i: Array) -> tuple[_Canvas, None]:
      logits = told(canvas, i)
      found = sampling.draw(sampling.filtered(logits, settings), keys, 2 * i)
      found = jnp.where(canvas.hidden, found, canvas.numbers)
      noise = jax.vmap(lambda key: jax.random.gumbel(key, (length,)))(
        keys_at(keys, 2 * i + 1)
      )
      tau = config.sample.choice_temperature * (1 - (i + 1) / steps)
      sure = -sequence.cross_entropy(logits, found) + tau * noise
      sure = jnp.where(canvas.hidden, sure, jnp.inf)
      hidden = masking.lowest(sure, masking.count_of(shares[i], first))
      # A later estimate overwrites an earlier one of the same frame.
      film = canvas.film.at[i * frames // steps].set(found)
      return _Canvas(found, hidden, film), None

    film = jnp.zeros((frames, *x.shape), x.dtype)
    canvas, _ = jax.lax.scan(body, _Canvas(x, hidden, film), jnp.arange(steps))
    stages = numbers.show(canvas.film.reshape(-1, length))
    return Samples(
      numbers.show(canvas.numbers),
      stages.reshape(frames, n, *spec.shape),
      jnp.full(n, steps, jnp.int32),
    )

  return masking.family_of(
    config,
    spec,
    init=init,
    losses=losses,
    draw=drawn,
    read=masking.reader(numbers),
    name="bits_per_hidden",
  )


def network(config: ConfigDict, spec: Spec, vocab: int) -> MaskedTokens:
  """The network of a config, for numbers of so many values."""
  encoder = encoders.make(config.text, build.dtype(config.model))
  trunk = Masked(encoder, decoder.transformer(config), spec.shape)
  return MaskedTokens(trunk, vocab)
