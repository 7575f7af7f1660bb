"""Autoencoders for generators to work in: pictures to latents or tokens, and back.

The first stage of latent diffusion (Rombach et al. 2022, arXiv:2112.10752), of VQ-VAE
(van den Oord et al. 2017, arXiv:1711.00937) and RQ-VAE, of DALL-E (Ramesh et al. 2021,
arXiv:2102.12092) and of FSQ (Mentzer et al. 2023, arXiv:2309.15505): one loss, and the
bottleneck between encoder and decoder is `vae.bottleneck`.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree
from ml_collections import ConfigDict

from core import checks, edits
from core.errors import UserError, unknown
from core.family import (
  Batch,
  Codec,
  Family,
  Objective,
  Play,
  Samples,
  Spec,
  Tracked,
  check_spec,
  example_keys,
  sample_keys,
)
from core.step import from_loss
from nets import build
from nets.autoencoder import Autoencoder
from nets.pretrained.lpips import LPIPS
from vae import bottlenecks, likelihoods, statistics
from vae.bottlenecks import Code, Rows

LOSSES = ("l1", "l2", "laplace")
DECAY = 0.99  # of the averages of latents and of the codes' use


def make(
  config: ConfigDict,
  spec: Spec,
  perceptual: PyTree = None,
  weights: PyTree = None,
) -> Family:
  """The autoencoder of `config.vae`, with the networks of `config.model`.

  The loss of an example is |x - x_hat| (or its square, or -log of the logit-Laplace
  density), the mean over its numbers, + `vae.perceptual_weight` LPIPS(x, x_hat) + the
  bottleneck's own term (`vae/bottlenecks.py`).

  Of the latents the mean and deviation of each channel, of tokens the frequencies are
  averaged over training. `codecs["latents"]` has mean 0 and deviation 1 by them, or is
  the encoder's output times `vae.latent_scale`, and a sample draws each place on its
  own by them: it shows what a prior is needed for.

  Args:
    config: the whole config.
    spec: of the pictures.
    perceptual: parameters of LPIPS('vgg16'), where `vae.perceptual_weight` is above 0.
    weights: the network's parameters to start from.

  Raises:
    UserError: settings that are unknown or do not go together.
  """
  settings, widths = config.vae, config.model.widths
  check_spec(config.family, spec, latents=False)
  checks.refuse_small_pictures(config)
  checks.refuse(config, "vae", latent_dim=0, free_bits=0)
  if settings.bottleneck not in ("gumbel", "fsq"):
    checks.refuse(config, "vae", evenness=0)
  if settings.bottleneck not in ("kl", "gumbel"):
    checks.refuse(config, "vae", warmup_steps=0)
  if settings.bottleneck != "vq":
    checks.refuse(config, "vae", quantizers=1)
  if settings.loss not in LOSSES:
    raise unknown("vae.loss", settings.loss, LOSSES)
  if config.text.encoder != "none":
    raise UserError(
      "vae.autoencoder reads no condition: set text.encoder to 'none', not"
      f" {config.text.encoder!r}."
    )
  height, width, channels = spec.shape
  dims, f = height * width * channels, 2 ** (len(widths) - 1)
  laplace = likelihoods.laplace(channels)
  bottleneck = bottlenecks.make(settings, dims, config.data.batch_size)
  vectors = config.data.batch_size * (height // f) * (width // f)
  if settings.bottleneck == "vq" and vectors < settings.codes:
    raise UserError(
      f"the first batch has {vectors} vectors to start vae.codes={settings.codes} codes"
      " from; give a larger data.batch_size, or fewer codes."
    )
  net = network(config, spec)

  def encode(params: PyTree, x: Array, **training: Any) -> Float[Array, "b i j c"]:
    return net.apply({"params": params}, x, method="encode", **training)

  def decode(params: PyTree, z: Array, **training: Any) -> Float[Array, "b h w c"]:
    return net.apply({"params": params}, z, method="decode", **training)

  def picture(params: PyTree, z: Array) -> Float[Array, "b h w c"]:
    raw = decode(params, z)
    return laplace.mean(raw) if settings.loss == "laplace" else jnp.clip(raw, -1, 1)

  def init(rng: Array, batch: Batch) -> PyTree:
    if weights is not None:
      return jax.tree.map(jnp.asarray, weights)
    return net.init(rng, batch["x"][:1])["params"]

  def played(weights: PyTree, batch: Batch, rng: Array, training: bool) -> Play:
    (params, tracked), x, ids = weights, jnp.asarray(batch["x"]), batch["_id"]
    how = {"ids": ids, "rngs": {"dropout": rng}} if training else {}
    h = encode(params, x, **how)
    mask = batch["_mask"].astype(jnp.float32)
    keys = jax.vmap(jax.random.split)(example_keys(rng, ids))
    rows = Rows(ids, keys[:, 0], mask, tracked["updates"])
    passed = bottleneck.train(h, tracked["bottleneck"], rows)
    raw = decode(params, passed.z, **how)
    found = raw
    if settings.loss == "laplace":
      found = laplace.mean(raw)
      reconstruction = -laplace.log_levels(x, raw, keys[:, 1]) / dims
    else:
      power = {"l1": 1, "l2": 2}[settings.loss]
      reconstruction = jnp.mean(jnp.abs(x - raw) ** power, axis=(1, 2, 3))
    loss = reconstruction + passed.penalty
    metrics = {"reconstruction": reconstruction, **passed.metrics}
    if settings.perceptual_weight:
      distance = LPIPS().apply(
        {"params": tracked["perceptual"]}, colour(x), colour(found)
      )
      loss += settings.perceptual_weight * distance
      metrics["perceptual"] = distance
    if "tokens" in bottleneck.codes:
      used = statistics.use(tracked["seen"]["tokens"])
      metrics |= {name: jnp.broadcast_to(v, len(x)) for name, v in used.items()}
    sums = {"bottleneck": passed.sums, "seen": see(h, tracked, mask)}
    return Play(loss, x, found, metrics, sums)

  def see(h: Array, tracked: PyTree, mask: Array) -> PyTree:
    """What is counted of each form, over the unmasked rows."""
    found = {}
    for name, code in bottleneck.codes.items():
      coded = jax.lax.stop_gradient(code.encode(h, tracked["bottleneck"]))
      if code.vocab_size:
        found[name] = statistics.counts(coded, mask, code.vocab_size)
      else:
        found[name] = statistics.moments(coded, mask)
    return found

  def track(rng: Array, params: PyTree, batch: Batch) -> dict[str, PyTree]:
    # No more at a time than a step has.
    size = -(-len(batch["x"]) // config.optim.microbatches)
    one = lambda x: encode(params, x[None])[0]  # noqa: E731
    h = jax.lax.map(one, jnp.asarray(batch["x"]), batch_size=size)
    tracked = {"bottleneck": bottleneck.init(rng, h)}
    if perceptual is not None:
      tracked["perceptual"] = jax.tree.map(jnp.asarray, perceptual)
    mask = batch["_mask"].astype(jnp.float32)
    return tracked | {"seen": see(h, tracked, mask)}

  def update(tracked: dict[str, PyTree], sums: PyTree, rng: Array) -> dict[str, PyTree]:
    average = lambda old, new: DECAY * old + (1 - DECAY) * new  # noqa: E731
    return tracked | {
      "bottleneck": bottleneck.update(tracked["bottleneck"], sums["bottleneck"], rng),
      "seen": jax.tree.map(average, tracked["seen"], sums["seen"]),
    }

  def codec(name: str, code: Code) -> Codec:
    shape = (height // f, width // f, code.channels)
    dtype = jnp.int32 if code.vocab_size else jnp.float32
    stored = Spec(shape, dtype, code.vocab_size, pixels=False)

    def to_code(weights: PyTree, x: Array) -> Array:
      params, tracked = weights
      found = code.encode(encode(params, x), tracked["bottleneck"])
      if code.vocab_size:
        return found
      if settings.latent_scale:
        return settings.latent_scale * found
      return statistics.standard(found, tracked["seen"][name])

    def to_picture(weights: PyTree, coded: Array) -> Array:
      params, tracked = weights
      if not code.vocab_size and settings.latent_scale:
        coded = coded / settings.latent_scale
      elif not code.vocab_size:
        coded = statistics.original(coded, tracked["seen"][name])
      return picture(params, code.decode(coded, tracked["bottleneck"]))

    return Codec(stored, to_code, to_picture)

  codecs = {name: codec(name, code) for name, code in bottleneck.codes.items()}
  # Tokens where there are any: what is decoded is what would be stored.
  own, form = list(codecs.items())[-1]

  def formed(name: str, weights: PyTree, code: Array, cond: Any) -> Samples:
    """Pictures of codes: latents grow from 0, tokens take the usual one's places."""
    form, seen = codecs[name], weights[1]["seen"][name]

    def picture(share: Array) -> Float[Array, "n h w c"]:
      if not form.spec.vocab_size:
        return form.decode(weights, share * code)
      usual = jnp.argmax(statistics.log_frequencies(seen), -1).astype(jnp.int32)
      places = jnp.arange(code[0, ..., 0].size).reshape(*code.shape[1:3], 1) + 1
      return form.decode(weights, jnp.where(places <= share * places.size, code, usual))

    return edits.film(picture, config.sample.frames)

  def sample(weights: PyTree, rng: Array, cond: Any, n: int) -> Samples:
    shape, draw = form.spec.shape, jax.random.normal
    if form.spec.vocab_size:
      logits = statistics.log_frequencies(weights[1]["seen"][own])
      draw = lambda key, shape: jax.random.categorical(key, logits, shape=shape)  # noqa: E731
    code = jax.vmap(lambda key: draw(key, shape))(sample_keys(rng, n))
    return formed(own, weights, code.astype(form.spec.dtype), cond)

  def play(weights: PyTree, batch: Batch, rng: Array, axis: str | None = None) -> Play:
    return played(weights, batch, rng, True)

  def loss(weights: PyTree, batch: Batch, rng: Array) -> tuple:
    found = play(weights, batch, rng)
    return found.losses, found.metrics, found.sums

  tracked = Tracked(track, update)
  offered = edits.of_codecs(codecs, formed)
  checks.check_edit(config, offered)
  return from_loss(
    config,
    init=init,
    loss=loss,
    sample=sample,
    evals={
      "loss": lambda *args: played(*args, False).losses,
      "reconstruction": lambda *args: played(*args, False).metrics["reconstruction"],
    },
    edits=offered,
    codecs=codecs,
    tracked=tracked,
    objective=Objective(init, play, tracked, ("decoder", "out", "kernel")),
  )


def network(config: ConfigDict, spec: Spec) -> Autoencoder:
  """The encoder and decoder of a config."""
  model, channels = config.model, spec.shape[-1]
  bottleneck = bottlenecks.make(config.vae, 1, config.data.batch_size)
  laplace = config.vae.loss == "laplace"
  return Autoencoder(
    image_channels=likelihoods.laplace(channels).channels if laplace else channels,
    encoded=bottleneck.encoded,
    latent=bottleneck.latent,
    widths=tuple(model.widths),
    blocks=model.blocks,
    attention=tuple(model.attention),
    head_dim=model.head_dim,
    groups=model.groups,
    dropout=model.dropout,
    dtype=build.dtype(model),
    remat=model.remat,
  )


def colour(x: Float[Array, "b h w c"]) -> Float[Array, "b h w 3"]:
  """Grey repeated for three channels, as LPIPS reads it."""
  return jnp.repeat(x, 3, axis=-1) if x.shape[-1] == 1 else x
