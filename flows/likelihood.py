"""A family made of a bijector: its exact likelihood is its loss, its inverse draws.

log p(x | y) = log N(z; 0, I) + log |det dz/dx|, z = f(x; y): Dinh et al. 2015 (NICE,
arXiv:1410.8516), eq. 1. Only the encoder f is learned; the decoder is its inverse.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, PyTree
from ml_collections import ConfigDict

from core import checks
from core import edits as editing
from core.errors import UserError, counted
from core.family import (
  Batch,
  Family,
  Metrics,
  Objective,
  Play,
  Samples,
  Spec,
  check_spec,
  example_keys,
  keys_at,
  sample_keys,
)
from core.levels import BIN, bits, log_normal
from core.step import from_loss
from flows import dequantization
from flows.bijector import Bijector, Image, Nats, chain
from flows.dequantization import Dequantizer
from nets import build
from text import encoders
from text.cond import Cond


class Uses(NamedTuple):
  """What a family does with a flow; the solver of a continuous one differs in each.

  Keys hold one an example, for an estimate of the log-determinant.

  Attributes:
    init: (rng, x, cond) -> params.
    train: (params, x, cond, keys) -> (z, log |det dz/dx|, what training minimises
      besides, in bits a dimension, by name).
    score: (params, x, cond, keys) -> (z, log |det dz/dx|), for evals.
    infer: (params, x, cond) -> z.
    invert: (params, z, cond) -> x, with a gradient, and never guided.
    draw: (params, z, cond, count) -> (`count` pictures on the way from z, the last x,
      and how often each called the network). `cond` is guided if the flow is.
    exact: the log-determinant is no estimate.
  """

  init: Callable[[Array, Image, Cond], PyTree]
  train: Callable[[PyTree, Image, Cond, Key[Array, " b"]], tuple[Image, Nats, Metrics]]
  score: Callable[[PyTree, Image, Cond, Key[Array, " b"]], tuple[Image, Nats]]
  infer: Callable[[PyTree, Image, Cond], Image]
  invert: Callable[[PyTree, Image, Cond], Image]
  draw: Callable[
    [PyTree, Image, Cond, int], tuple[Float[Array, "k b h w c"], Int[Array, " b"]]
  ]
  exact: bool = True


def of_bijectors(flow: Bijector, drawing: Bijector) -> Uses:
  """Those of `flow`; `drawing` is the same, guided."""

  def draw(
    params: PyTree, z: Image, cond: Cond, count: int
  ) -> tuple[Float[Array, "k b h w c"], Int[Array, " b"]]:
    calls = jnp.ones(len(z), jnp.int32)  # of the flow as a whole
    if count == 1:
      return drawing.inverse(params, z, cond)[None], calls
    stages = jnp.concatenate([z[None], drawing.path(params, z, cond)])
    picked = np.linspace(0, len(stages) - 1, count).round().astype(int)
    return stages[picked], calls

  return Uses(
    init=lambda rng, x, cond: flow.init(rng, x, cond)[0],
    train=lambda params, x, cond, keys: (*flow.forward(params, x, cond), {}),
    score=lambda params, x, cond, keys: flow.forward(params, x, cond),
    infer=lambda params, x, cond: flow.forward(params, x, cond)[0],
    invert=flow.inverse,
    draw=draw,
  )


def family(
  config: ConfigDict,
  spec: Spec,
  make: Callable[[float], Bijector | Uses],
  *,
  entry: Bijector | None = None,
  dequantizer: Dequantizer | None = None,
) -> Family:
  """The family of a flow.

  The loss is minus the log likelihood in bits a dimension: of the grey levels, by the
  bound that one draw of dequantizing noise gives, or of latents, whose density it is.
  The condition is dropped at times (`text.drop`), so that the network knows p(x) too.

  Evals: bpd, as the loss; on request bpd_iwae, the tighter bound of `flow.draws` draws
  of the noise (Burda et al. 2016, arXiv:1509.00519, eq. 8).

  A sample is the inverse of z ~ N(0, temperature^2 I) (Kingma & Dhariwal 2018, section
  6.1); its frames are the pictures on the way from z.

  Args:
    config: the whole config; reads `flow`, `text`, `model`, `sample`.
    spec: of the pictures, or of latents.
    make: guidance_scale -> the bijector, or the uses of one, guided where it draws.
    entry: a bijector without parameters before all others, for pixels only; pictures
      on the way are shown through it.
    dequantizer: of pixels; uniform by default.

  Raises:
    UserError: tokens, or settings that a flow cannot take.
  """
  check_spec(config.family, spec, latents=True)
  checks.refuse_small_pictures(config)
  checks.refuse(config, "model", dropout=0.0)
  scale, dims = config.sample.guidance_scale, math.prod(spec.shape)
  encoders.check_guidance(config.text, scale)
  encoder = encoders.make(config.text, build.dtype(config.model))
  guides = scale != 1 and config.text.encoder != "none"
  made = make(scale if guides else 1.0)
  uses = made if isinstance(made, Uses) else of_bijectors(make(1.0), made)
  noise = dequantizer or dequantization.uniform()
  if not spec.pixels:
    checks.refuse(config, "flow", dequantization="uniform")  # latents have no levels
    noise, entry = dequantization.none(), None
  entry = entry or chain()  # the identity

  def init(rng: Array, batch: Batch) -> PyTree:
    text, pixels, keys, own = jax.random.split(rng, 4)
    x, cond = jnp.asarray(batch["x"]), batch["cond"]
    params = {"text": encoder.init(text, cond).get("params", {})}
    encoded = encode(params, cond)
    params["dequantizer"] = noise.init(pixels, x, encoded)
    ids = jnp.arange(len(x), dtype=jnp.uint32)
    x, _ = noise.draw(params["dequantizer"], x, example_keys(keys, ids), encoded)
    params["flow"] = uses.init(own, entry.forward((), x, encoded)[0], encoded)
    return params

  def encode(params: PyTree, cond: Cond) -> Cond:
    return encoder.apply({"params": params["text"]}, cond)

  def log_likelihood(
    params: PyTree, x: Image, cond: Cond, keys: Array, use: Callable[..., tuple]
  ) -> tuple[Nats, list]:
    """Of levels in nats: log p(x + u) - log q(u | x), or of latents log p(x).

    And what else `use`, one of `Uses`, tells.
    """
    x, log_q = noise.draw(params["dequantizer"], x, keys, cond)
    x, entered = entry.forward((), x, cond)
    own = keys_at(keys, 0)
    z, logdet, *rest = use(params["flow"], x, cond, own)
    width = dims * math.log(BIN) if spec.pixels else 0.0
    return log_normal(z) + logdet + entered - log_q + width, rest

  def loss(params: PyTree, batch: Batch, rng: Array) -> tuple[Array, Metrics]:
    keys = jax.vmap(jax.random.split)(example_keys(rng, batch["_id"]))
    cond = batch["cond"]
    cond = encoders.dropped(config.text, cond, keys[:, 1])
    x = jnp.asarray(batch["x"])
    encoded = encode(params, cond)
    found, (costs,) = log_likelihood(params, x, encoded, keys[:, 0], uses.train)
    return bits(-found, dims) + sum(costs.values()), costs

  def play(weights: tuple, batch: Batch, rng: Array, axis: str | None = None) -> Play:
    """Flow-GAN's, Grover et al. 2018 (arXiv:1705.08868), eq. 6.

    Its draws are of the model itself: whatever `sample` says, at temperature 1 and
    without guidance.
    """
    (params, _), cond = weights, batch["cond"]
    losses, metrics = loss(params, batch, rng)
    keys = keys_at(example_keys(rng, batch["_id"]), 2)
    encoded = encode(params, cond)
    x = uses.invert(params["flow"], noises(keys), encoded)
    fakes = shown(entry.inverse((), x, encoded), spec)
    return Play(losses, jnp.asarray(batch["x"]), fakes, metrics)

  def draws(params: PyTree, batch: Batch, rng: Array) -> Callable[[Array], Nats]:
    """i -> the log likelihood by draw i of the noise."""
    x, keys = jnp.asarray(batch["x"]), example_keys(rng, batch["_id"])
    cond = encode(params, batch["cond"])
    return lambda i: log_likelihood(params, x, cond, keys_at(keys, i), uses.score)[0]

  def bpd(params: PyTree, batch: Batch, rng: Array) -> Float[Array, " b"]:
    return bits(-draws(params, batch, rng)(jnp.asarray(0)), dims)

  def bpd_iwae(params: PyTree, batch: Batch, rng: Array) -> Float[Array, " b"]:
    each, k = draws(params, batch, rng), config.flow.draws
    found = jax.lax.map(each, jnp.arange(k))
    return bits(math.log(k) - jax.nn.logsumexp(found, axis=0), dims)

  def form(params: PyTree, z: Image, cond: Cond) -> Samples:
    """The pictures of z, and the way to them in `sample.frames`."""
    encoded = encode(
      params, cond.with_null() if guides else cond.replace(negative=None)
    )
    stages, calls = uses.draw(params["flow"], z, encoded, config.sample.frames)
    frames = jax.lax.map(lambda x: shown(entry.inverse((), x, encoded), spec), stages)
    return Samples(frames[-1], frames, calls)

  def sample(params: PyTree, rng: Array, cond: Cond, n: int) -> Samples:
    z = config.sample.temperature * noises(sample_keys(rng, n))
    return form(params, z, cond)

  def noises(keys: Key[Array, " n"]) -> Image:
    return jax.vmap(lambda key: jax.random.normal(key, spec.shape))(keys)

  def infer(params: PyTree, cond: Cond, images: Image) -> Image:
    encoded = encode(params, cond)
    x, _ = entry.forward((), images, encoded)
    return uses.infer(params["flow"], x, encoded)

  edits = {"interpolate": editing.interpolate(infer, form)}  # all else comes back as is
  checks.check_edit(config, edits)
  # Noise in the log-determinant would lift its bound above the log likelihood.
  more = {"bpd_iwae": bpd_iwae} if uses.exact else {}
  return from_loss(
    config,
    init=init,
    loss=loss,
    sample=sample,
    evals={"bpd": bpd, **more},
    on_request=tuple(more),
    details={name: {"draws": config.flow.draws} for name in more},
    edits=edits,
    objective=Objective(init, play),
  )


def shown(x: Image, spec: Spec) -> Image:
  """Pictures are cut to [-1, 1]; latents are not."""
  return jnp.clip(x, -1, 1) if spec.pixels else x


def refuse_regularisers(config: ConfigDict) -> None:
  """Raises UserError for FFJORD's penalties, which couplings do not have."""
  checks.refuse(config, "flow", kinetic_weight=0.0, jacobian_weight=0.0)


def check_halving(spec: Spec, halvings: int) -> None:
  """Raises UserError if the sides cannot be halved so often."""
  height, width, _ = spec.shape
  if height % 2**halvings or width % 2**halvings:
    raise UserError(
      f"pictures of {height}x{width} cannot be halved {counted(halvings)}: set"
      f" data.size to a multiple of {2**halvings}, or flow.levels to fewer."
    )
