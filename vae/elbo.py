"""A family trained by the evidence lower bound: its loss, evals and settings.

`vae/vae.py` and `vae/hierarchical.py` say what z is and how it is drawn; the rest is
here.
"""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree
from ml_collections import ConfigDict

from core import checks
from core.family import (
  Batch,
  Codec,
  Family,
  Objective,
  Play,
  Samples,
  Spec,
  check_spec,
  example_keys,
  keys_at,
)
from core.levels import bits
from core.step import UNTRACKED, from_loss
from text import encoders
from text.cond import Cond
from vae import bounds

Weights = tuple[PyTree, dict[str, PyTree]]  # parameters, and what `from_loss` tracks


class Draw(NamedTuple):
  """Of one draw of z an example, in nats.

  Attributes:
    log_px: log p(x|z).
    kls: KL(q(z|x) || p(z)) of each channel or group, by the names to log them under.
    log_ratio: log p(z) - log q(z|x).
    picture: the expected picture, in [-1, 1].
  """

  log_px: Float[Array, " b"]
  kls: dict[str, Float[Array, "b _"]]
  log_ratio: Float[Array, " b"]
  picture: Float[Array, "b h w c"]

  def kl(self) -> Float[Array, " b"]:
    """Of all latents."""
    return sum(part.sum(1) for part in self.kls.values())

  def log_weight(self) -> Float[Array, " b"]:
    """log p(x, z) - log q(z|x)."""
    return self.log_px + self.log_ratio


Seen = Callable[[Key[Array, " b"]], Draw]  # keys, one an example -> a draw of z


def family(
  config: ConfigDict,
  spec: Spec,
  *,
  init: Callable[[Array, Batch], PyTree],
  see: Callable[..., Seen],
  sample: Callable[[Weights, Array, Cond, int], Samples],
  edits: Mapping[str, Callable[..., Samples]],
  codecs: Mapping[str, Codec] = {},
  last: tuple[str, ...] = (),
) -> Family:
  """The family whose q(z|x, y) and p(x|z, y) are given.

  The loss is `bounds.loss` in bits a dimension, with `vae.beta`, `vae.warmup_steps` and
  `vae.free_bits` of each channel or group of each example. The condition is dropped at
  times (`text.drop`), so that the network knows p(x) too.

  Evals: kl, reconstruction and their sum bpd, minus the ELBO in bits a dimension; on
  request bpd_iwae, the tighter bound of `vae.iwae_samples` draws.

  Args:
    config: the whole config.
    spec: of the pictures.
    init: (rng, batch) -> parameters.
    see: (params, batch, cond, dropout=None) -> `Seen`, where a key is for dropout.
    sample: as `from_loss` takes it.
    edits: likewise.
    codecs: likewise.
    last: as `Objective.last`.

  Raises:
    UserError: tokens or latents, guidance, or an edit that does not exist.
  """
  check_spec(config.family, spec, latents=False)
  checks.refuse_small_pictures(config)
  checks.refuse_guidance(config)
  checks.check_edit(config, edits)
  vae, dims = config.vae, math.prod(spec.shape)

  def loss(weights: Weights, batch: Batch, rng: Array) -> tuple:
    losses, metrics, *_ = drawn(weights, batch, rng)
    return losses, metrics, {}

  def drawn(weights: Weights, batch: Batch, rng: Array) -> tuple:
    """The losses, the metrics, the draw and a key of each example."""
    (params, tracked), cond = weights, batch["cond"]
    keys = jax.vmap(jax.random.split)(example_keys(rng, batch["_id"]))
    cond = encoders.dropped(config.text, cond, keys[:, 1])
    draw = see(params, batch, cond, rng)(keys[:, 0])
    beta = bounds.warmed(vae.beta, tracked["updates"], vae.warmup_steps)
    kls = jnp.concatenate(list(draw.kls.values()), axis=1)
    nats = bounds.loss(draw.log_px, kls, beta, vae.free_bits * math.log(2))
    metrics = {name: bits(part.sum(1), dims) for name, part in draw.kls.items()}
    metrics["kl"] = sum(metrics.values())
    metrics["reconstruction"] = bits(-draw.log_px, dims)
    return bits(nats, dims), metrics, draw, keys[:, 1]

  def play(weights: Weights, batch: Batch, rng: Array, axis: str | None = None) -> Play:
    """A critic sees both uses of the decoder: every second picture is of the prior.

    VAE-GAN, Larsen et al. 2016 (arXiv:1512.09300), eq. 8.
    """
    losses, metrics, draw, keys = drawn(weights, batch, rng)
    of_prior = sample(weights, keys, batch["cond"], len(keys)).images
    even = (batch["_id"] % 2 == 0).reshape(-1, 1, 1, 1)
    fakes = jnp.where(even, draw.picture, of_prior)
    return Play(losses, jnp.asarray(batch["x"]), fakes, metrics)

  def draws(weights: Weights, batch: Batch, rng: Array) -> Callable[..., Draw]:
    """i -> draw i of z."""
    seen = see(weights[0], batch, batch["cond"])
    keys = example_keys(rng, batch["_id"])
    return lambda i: seen(keys_at(keys, i))

  def scored(of: Callable[..., Float[Array, " b"]]) -> Callable[..., Array]:
    """(i -> draw i) -> nats; as an eval in bits a dimension."""
    return lambda *args: bits(of(draws(*args)), dims)

  kl = scored(lambda drawn: drawn(0).kl())
  reconstruction = scored(lambda drawn: -drawn(0).log_px)

  def iwae(drawn: Callable[..., Draw]) -> Float[Array, " b"]:
    return -bounds.iwae(lambda i: drawn(i).log_weight(), vae.iwae_samples)

  return from_loss(
    config,
    init=init,
    loss=loss,
    sample=sample,
    evals={
      "bpd": lambda *args: kl(*args) + reconstruction(*args),
      "kl": kl,
      "reconstruction": reconstruction,
      "bpd_iwae": scored(iwae),
    },
    on_request=("bpd_iwae",),
    details={"bpd_iwae": {"draws": vae.iwae_samples}},
    edits=edits,
    codecs=codecs,
    tracked=UNTRACKED,
    objective=Objective(init, play, UNTRACKED, last),
  )
