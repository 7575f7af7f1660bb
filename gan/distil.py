"""A trained diffusion, distilled into one that draws in one to four steps.

Adversarial diffusion distillation, Sauer et al. 2023 (arXiv:2311.17042): the student
starts as a copy of the teacher. A critic tells its estimates from pictures of the data,
and the teacher, to which an estimate is shown with noise, says what it should be.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree
from ml_collections import ConfigDict

from core import checks, family, noise
from core.errors import UserError
from core.family import (
  Batch,
  Denoiser,
  Family,
  Objective,
  Play,
  Samples,
  Spec,
  State,
  Tracked,
  example_keys,
  keys_at,
  sample_keys,
)
from gan import critic, spectral
from gan.adversarial import adversarial
from text.cond import Cond

Images = Float[Array, "b h w c"]

# How much the student's estimate may magnify what its network outputs; 15 of Stable
# Diffusion, which the paper distils.
LIMIT = 20.0


def make(config: ConfigDict, spec: Spec, teacher: PyTree = None) -> Family:
  """The student of `config.distil`, a diffusion of `gan.family`, judged by a critic.

  At a noise level s, drawn evenly from t = 1/N, ..., 1 with N = `distil.steps`, the
  student sees x_s of a picture, or nothing but noise at t = 1, where drawing starts.
  Its own loss is `distil.weight` times

    c(t) mean |x_hat - target|^2,  target = teacher(alpha x_hat + sigma eps, t)

  with t of the teacher's own density, c(t) the alpha of variance preserving noise, and
  no gradient through the target (eq. 4 and section 3.3, exponential weighting).

  It draws in K = `sample.steps` <= N steps, each a call: it estimates the picture at
  one of its levels, ceil(N (K - j) / K) of N for j < K, and noises it to the next. The
  film are the estimates. The teacher's weights are `state.extra["tracked"]["teacher"]`.

  Args:
    config: of the student; what its network is must be as the teacher has it.
    spec: of what both generate.
    teacher: its weights; without them both start from random ones.

  Raises:
    UserError: settings that are unknown, of no use or do not go together.
  """
  own, total, steps = config.distil, config.distil.steps, config.sample.steps
  checks.refuse_small_pictures(config)
  checks.refuse_guidance(config)
  checks.refuse(config, "text", drop=0.0)
  checks.refuse(config, "model", dropout=0.0)
  checks.refuse(config, "gan", generator="dcgan", adaptive=False, path_length=0.0)
  checks.refuse(config, "sample", truncation=0.0)
  spectral.refuse_both(config)
  if not (config.gan.weight or own.weight):
    raise UserError(
      "gan.weight=0 and distil.weight=0 leave a student nothing to learn from: set one"
      " above 0."
    )
  if own.guidance != 1 and config.text.encoder == "none":
    raise UserError(
      f"distil.guidance={own.guidance} needs a teacher with a condition: set it to 1."
    )
  if steps > total:
    raise UserError(
      f"sample.steps={steps} must be at most distil.steps={total}, the noise levels"
      " that the student knows."
    )
  denoiser = denoiser_of(config, spec)
  schedule, scaling = denoiser.schedule, denoiser.schedule.scaling
  logsnrs = schedule.logsnr(jnp.arange(1, total + 1) / total)
  check_magnified(config, float(logsnrs[-1]), scaling)
  std = noise.prior_std(logsnrs[-1], scaling)

  def init(rng: Array, batch: Batch) -> PyTree:
    if teacher is None:
      return denoiser.init(rng, batch)
    return jax.tree.map(jnp.asarray, teacher)

  def play(weights: tuple, batch: Batch, rng: Array, axis: str | None) -> Play:
    (params, tracked), x, cond = weights, jnp.asarray(batch["x"]), batch["cond"]
    levels, first, times, second = jax.vmap(
      lambda key: jax.random.split(key, 4), out_axes=1
    )(example_keys(rng, batch["_id"]))
    i = jax.vmap(lambda key: jax.random.randint(key, (), 0, total))(levels)
    logsnr, eps = logsnrs[i], noise.normals(first, spec.shape)
    x_s = noise.diffuse(x, eps, logsnr, scaling)
    x_s = jnp.where(noise.per_example(i == total - 1, x), std * eps, x_s)
    x_hat = denoiser.estimate(params, x_s, logsnr, cond)
    # Without the ends, where a density's inverse may be infinite.
    u = jnp.clip(jax.vmap(jax.random.uniform)(times), 1e-5, 1 - 1e-5)
    logsnr = schedule.logsnr(schedule.density(u))
    eps = noise.normals(second, spec.shape)
    told = target(tracked["teacher"], x_hat, eps, logsnr, cond)
    weight, _ = noise.alpha_sigma(logsnr, "vp")
    distances = weight * jnp.mean((x_hat - told) ** 2, (1, 2, 3))
    return Play(own.weight * distances, x, x_hat, {"distillation": distances})

  def target(
    params: PyTree, x: Images, eps: Images, logsnr: Float[Array, " b"], cond: Cond
  ) -> Images:
    """What the teacher makes of a picture with noise, without a gradient."""
    x_t = noise.diffuse(x, eps, logsnr, scaling)
    told = denoiser.estimate(params, x_t, logsnr, cond, own.guidance)
    return jax.lax.stop_gradient(told)

  def sample(state: State, rng: Array, cond: Cond, n: int) -> Samples:
    keys, cond = sample_keys(rng, n), cond.replace(negative=None)
    places = jnp.array([-(-total * (steps - j) // steps) for j in range(steps)])
    at = logsnrs[places - 1]
    after = jnp.append(at[1:], jnp.inf)

    def fresh(i: Array | int) -> Images:
      return noise.normals(keys_at(keys, i), spec.shape)

    def down(x_t: Images, given: tuple[Array, Array, Array]) -> tuple[Images, Images]:
      i, logsnr, after = given
      x = denoiser.estimate(state.ema["generator"], x_t, jnp.full(n, logsnr), cond)
      x = denoiser.bounded(x)
      return noise.diffuse(x, fresh(i), jnp.full(n, after), scaling), x

    given = (jnp.arange(1, steps + 1), at, after)
    images, stages = jax.lax.scan(down, std * fresh(0), given)
    frames = jnp.linspace(0, steps - 1, min(config.sample.frames, steps))
    film = stages[frames.round().astype(int)].at[-1].set(images)
    return Samples(images, film, jnp.full(n, steps, jnp.int32))

  frozen = Tracked(
    lambda rng, params, batch: {"teacher": jax.tree.map(jnp.copy, params)},
    lambda tracked, sums, rng: tracked,
  )
  base = Family(
    init=None,
    step=None,
    sample=sample,
    evals={},
    objective=Objective(init, play, frozen),
  )
  return adversarial(config, base, critic.make(config))


def denoiser_of(config: ConfigDict, spec: Spec) -> Denoiser:
  """That of `gan.family`.

  Raises:
    UserError: there is no such family, its settings do not go together, or it is no
      diffusion with a fixed schedule.
  """
  theirs = ConfigDict(config.to_dict())
  theirs.family, theirs.gan.family = config.gan.family, ""
  found = family.make(theirs, spec, "gan.family").denoiser
  if found is None:
    raise UserError(
      f"gan.family={theirs.family!r} cannot be distilled: name a diffusion, such as"
      " diffusion.ddpm, with a noise.schedule that is not learned."
    )
  return found


def check_magnified(config: ConfigDict, logsnr: float, scaling: noise.Scaling) -> None:
  """Raises UserError where the estimate at a logsnr magnifies the network's output.

  An error of the output is 1 / sqrt(w) as large in x, w as `noise.log_weight` has it:
  sigma / alpha for eps, which no network is exact enough for where signal is scarce.
  """
  prediction, sigma_data = config.diffusion.prediction, config.diffusion.sigma_data
  log_weight = noise.log_weight(jnp.asarray(logsnr), scaling, prediction, sigma_data)
  if log_weight < -2 * jnp.log(LIMIT):
    raise UserError(
      f"a student starts from noise, where diffusion.prediction={prediction!r} tells"
      " next to nothing of the picture: distil a diffusion of 'v', 'x', 'velocity' or"
      " 'edm'."
    )
