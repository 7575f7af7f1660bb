"""Denoising diffusion: one network that tells signal from noise, at every level.

Ho et al. 2020 (arXiv:2006.11239) with any schedule of `core/noise.py` and any
prediction and weight of the loss; flow matching (Lipman et al. 2023; Liu et al. 2022)
is `noise.schedule='rectified_flow'` with `diffusion.prediction='velocity'`.
"""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree
from ml_collections import ConfigDict

from core import levels, noise
from core.errors import unknown
from core.family import (
  Batch,
  Denoiser,
  Family,
  Metrics,
  Spec,
  check_spec,
  example_keys,
)
from core.step import from_loss
from diffusion import augmentation, drawing, evals, likelihood
from diffusion.denoiser import Model, Output, degraded
from diffusion.guidance import threshold
from diffusion.settings import check
from diffusion.weights import fitted
from text import encoders


def make(
  config: ConfigDict,
  spec: Spec,
  guide: ConfigDict | None = None,
  weights: PyTree = None,
) -> Family:
  """The family of `config.diffusion`, `config.noise` and `config.model`.

  The loss of an example is weight |value - target|^2, the mean over its numbers in the
  space of `diffusion.prediction`, with weight = w_loss / w_prediction as `log_weight`
  of `core/noise.py` gives it. So `diffusion.loss` names the space in which the error
  counts evenly: eps with an eps-prediction is L_simple (Ho et al. 2020, eq. 14),
  velocity with an x-prediction Li & He 2025 (arXiv:2511.13720), table 1, edm with an
  edm-prediction Karras et al. 2022, eq. 8. `diffusion.weight_cap` bounds w_loss: 5 with
  eps is Min-SNR-5 (Hang et al. 2023, arXiv:2303.09556, eq. 9). 'vlb' is the variational
  bound in bits a dimension: Ho et al. 2020, eq. 5, or without `noise.timesteps` VDM's,
  eq. 17. A learned variance adds `diffusion.vlb_weight` of that bound to the loss,
  without its gradient in the mean (Nichol & Dhariwal 2021, eq. 16). With
  `diffusion.augment` pictures are transformed to learn from (`augmentation.py`).

  Args:
    config: of the generator.
    spec: of what it generates.
    guide: config of a worse generator, for autoguidance; its parameters are
      `state.extra['guide']`.
    weights: parameters to start from, of `net` and other parts of the denoiser
      (`diffusion/weights.py`).

  Raises:
    UserError: settings that are unknown or do not go together.
  """
  check_spec(config.family, spec, latents=True)
  model = Model(config, spec)
  check(config)
  augmentation.check(config, spec)
  settings, dims = config.diffusion, likelihood.dims(spec.shape)
  theirs = None if guide is None else Model(guide, spec)
  sample = drawing.sampler(config, model, theirs)
  edits = drawing.edits(config, model, theirs)
  if config.sample.edit not in edits:
    raise unknown("sample.edit", config.sample.edit, edits)

  def init(rng: Array, batch: Batch) -> PyTree:
    params = model.init(rng, batch)
    own = {part: fitted(params[part], given) for part, given in (weights or {}).items()}
    return {**params, **own}

  def losses(
    params: PyTree, batch: Batch, rng: Array, training: bool
  ) -> tuple[Float[Array, " b"], Metrics]:
    x, cond, ids, told = batch["x"], batch["cond"], batch["_id"], None
    keys = jax.vmap(lambda key: jax.random.split(key, 6))(example_keys(rng, ids))
    if training and settings.augment:
      x, told = augmentation.augmented(keys[:, 5], x, settings.augment)
    schedule = model.schedule(params)
    if training and config.noise.low_discrepancy:
      u = noise.spread(rng, ids, config.data.batch_size)
    else:
      u = jax.vmap(jax.random.uniform)(keys[:, 0])
    # Without the ends, where a density's inverse may be infinite.
    u = jnp.clip(u, 1e-5, 1 - 1e-5)
    eps = noise.normals(keys[:, 1], spec.shape)
    if training and settings.coupling == "optimal":
      eps = coupled(x, eps)
    if training:
      cond = encoders.dropped(config.text, cond, keys[:, 2])
    if model.low_size:
      level = jax.vmap(jax.random.uniform)(keys[:, 3])
      cond = degraded(cond.replace(image=x), keys[:, 4], level, model.low_size)
    t = schedule.density(u)
    logsnr, vlb_weight = schedule.logsnr(t), None
    if settings.loss == "vlb" and not schedule.timesteps:
      logsnr, vlb_weight = likelihood.continuous_weight(u, schedule)
    x_t = noise.diffuse(x, eps, logsnr, schedule.scaling)
    output = model.predict(
      params,
      x_t,
      logsnr,
      model.encode(params, cond).replace(transformed=told),
      ids if training else None,
      rng if training else None,
    )
    error = (output.value - model.target(x, eps, logsnr)) ** 2
    error = jnp.mean(error, axis=tuple(range(1, x.ndim)))

    def vlb(output: Output) -> Float[Array, " b"]:
      x_hat, _ = model.x_eps(output.value, x_t, logsnr)
      nats = likelihood.step(x, x_hat, output.fraction, t, schedule, model.variance)
      return levels.bits(schedule.timesteps * nats, dims)

    def weight(space: str) -> Float[Array, " b"]:
      scaling, sigma_data = schedule.scaling, model.sigma_data
      ours = noise.log_weight(logsnr, scaling, model.prediction, sigma_data)
      log_weight = noise.log_weight(logsnr, scaling, space, sigma_data)
      if settings.weight_cap and settings.loss != "vlb":
        log_weight = jnp.minimum(log_weight, jnp.log(settings.weight_cap))
      return jnp.exp(log_weight - ours)

    if vlb_weight is not None:
      nats = vlb_weight * weight("eps") * error * dims
      if config.noise.schedule == "learned":  # whose ends these two hold in place
        nats += likelihood.prior(x, schedule)
        end = schedule.logsnr(jnp.zeros(()))
        nats += likelihood.reconstruction(x, eps, end)
      return levels.bits(nats, dims), {}
    if settings.loss == "vlb":
      return vlb(output), {}
    loss = weight(settings.loss) * error
    if settings.learn_variance:
      still = Output(jax.lax.stop_gradient(output.value), output.fraction)
      loss += settings.vlb_weight * vlb(still)
    return loss, {}

  family = from_loss(
    config,
    init=init,
    loss=lambda params, batch, rng: losses(params, batch, rng, True),
    sample=sample,
    evals={
      "loss": lambda params, batch, rng: losses(params, batch, rng, False)[0],
      **evals.bounds(config, model),
    },
    on_request=evals.ON_REQUEST,
    edits=edits,
  )
  if config.noise.schedule != "learned":
    family = family._replace(
      denoiser=Denoiser(
        init,
        noise.make(config.noise),
        model.estimate,
        lambda x: threshold(x, config.sample.threshold, config.sample.percentile),
      )
    )
  if guide is None:
    return family
  # The guide's weights travel in the state.
  return family._replace(
    sample=lambda state, *args: sample(
      state.ema["generator"], *args, state.extra["guide"]
    ),
    edits={
      name: lambda state, *args, fn=fn: fn(
        state.ema["generator"], *args, state.extra["guide"]
      )
      for name, fn in edits.items()
    },
  )


def coupled(
  x: Float[Array, "b ..."], eps: Float[Array, "b ..."]
) -> Float[Array, "b ..."]:
  """The noises in the order that makes the sum of |x_i - eps_i|^2 least.

  Minibatch optimal transport: Pooladian et al. 2023 (arXiv:2304.14772), section 4; Tong
  et al. 2024. Over the rows at hand, so that here alone a result depends on how a batch
  is cut.
  """
  a, b = x.reshape(len(x), -1), eps.reshape(len(eps), -1)
  # |a - b|^2 up to terms that every assignment shares.
  rows, columns = optax.assignment.hungarian_algorithm(-a @ b.T)
  return eps[jnp.zeros(len(x), jnp.int32).at[rows].set(columns)]
