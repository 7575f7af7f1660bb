"""Pictures from a trained diffusion: from noise, and from other pictures."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree
from ml_collections import ConfigDict

from core import noise
from core.edits import slerp
from core.family import Given, Samples, keys_at, sample_keys
from diffusion import sampler as samplers
from diffusion.denoiser import Model, degraded
from diffusion.guidance import guidance, threshold
from diffusion.settings import Denoise, Estimate, Settings, time_grid
from diffusion.settings import make as make_settings
from text import encoders
from text.cond import Cond

Edit = Callable[..., Samples]


def denoiser(
  config: ConfigDict, model: Model, guide: Model | None = None
) -> Callable[..., Denoise]:
  """(params, cond, keys, guide's params, ...) -> the guided, thresholded denoiser.

  With a `guide`, a worse model of the same data, its estimate takes the place of the
  unconditional one (autoguidance, Karras et al. 2024, arXiv:2406.02507, eq. 4).
  `sample.guidance_scale` 1 is no guidance, and costs no second evaluation, nor does a
  noise level outside of the interval.

  Raises:
    UserError: unknown or empty settings of `config.sample`, or guidance without a
      trained null condition.
  """
  settings = config.sample
  lead = guidance(settings)
  threshold(jnp.zeros((1, 1)), settings.threshold, settings.percentile)
  if guide is None:
    encoders.check_guidance(config.text, lead.scale)

  def make(
    params: PyTree,
    cond: Cond,
    keys: Key[Array, " n"],
    guide_params: PyTree = None,
    scale: float | int = lead.scale,
    kind: str = settings.threshold,
  ) -> Denoise:
    n = len(keys)
    if model.low_size:
      own = keys_at(keys, 2**32 - 2)
      level = jnp.full(n, settings.augmentation)
      cond = degraded(cond, own, level, model.low_size)
    leads = lead._replace(scale=scale)
    twice = scale != 1 and guide is None and conditional(cond)
    encoded = model.encode(params, cond.with_null() if twice else cond)
    plain = jax.tree.map(lambda a: a[:n], encoded) if twice else encoded
    theirs = None if guide is None else guide.encode(guide_params, cond)

    def alone(x_t: Array, logsnr: Array) -> tuple:
      output = model.predict(params, x_t, logsnr, plain)
      return output.value, output.fraction

    def both(x_t: Array, logsnr: Array) -> tuple:
      if guide is not None:
        value, fraction = alone(x_t, logsnr)
        other = estimate_of(guide, model, guide_params, theirs, x_t, logsnr)
      else:
        pair = (jnp.concatenate([a, a]) for a in (x_t, logsnr))
        output = model.predict(params, *pair, encoded)
        value, other = jnp.split(output.value, 2)
        fraction = None if output.fraction is None else output.fraction[:n]
      return leads(value, other, logsnr), fraction

    def denoise(x_t: Float[Array, "n ..."], logsnr: Float[Array, " n"]) -> Estimate:
      if scale == 1 or not (twice or guide is not None):
        value, fraction = alone(x_t, logsnr)
      elif leads.everywhere():
        value, fraction = both(x_t, logsnr)
      else:
        somewhere = leads.where(logsnr).any()
        value, fraction = jax.lax.cond(somewhere, both, alone, x_t, logsnr)
      x_hat, _ = model.x_eps(value, x_t, logsnr)
      return Estimate(threshold(x_hat, kind, settings.percentile), fraction)

    return denoise

  return make


def conditional(cond: Cond) -> bool:
  """Whether there is anything but a small picture in a raw condition."""
  own = cond.tokens, cond.label, cond.parts, cond.embedding
  return any(a is not None for a in own)


def estimate_of(
  guide: Model,
  model: Model,
  params: PyTree,
  cond: Cond,
  x_t: Float[Array, "n ..."],
  logsnr: Float[Array, " n"],
) -> Float[Array, "n ..."]:
  """The guide's estimate at `model`'s x_t, as an output of `model`."""
  level = noise.per_example(logsnr, x_t)
  ours, theirs = (noise.alpha_sigma(level, m.scaling) for m in (model, guide))
  # sigma, not alpha, gives the ratio: it is nowhere 0 while sampling.
  scaled = x_t * (theirs[1] / ours[1])
  output = guide.predict(params, scaled, logsnr, cond)
  x_hat, eps = guide.x_eps(output.value, scaled, logsnr)
  return model.target(x_hat, eps, logsnr)


def sampler(
  config: ConfigDict, model: Model, guide: Model | None = None
) -> Callable[..., Samples]:
  """(params, rng, cond, n, guide's params) -> n pictures from noise."""
  settings = make_settings(config.sample)
  make = denoiser(config, model, guide)

  def sample(
    params: PyTree, rng: Array, cond: Cond, n: int, guide_params: PyTree = None
  ) -> Samples:
    keys = sample_keys(rng, n)
    return samplers.sample(
      make(params, cond, keys, guide_params),
      keys,
      model.spec.shape,
      model.schedule(params),
      settings,
    )

  return sample


def edits(
  config: ConfigDict, model: Model, guide: Model | None = None
) -> Mapping[str, Edit]:
  """What can be done to given pictures, by name; see the functions below.

  Each is (params, rng, cond, given, guide's params) -> Samples.
  """
  settings, strength = make_settings(config.sample), config.sample.strength
  make = denoiser(config, model, guide)

  def start(params: PyTree, rng: Array, given: Given) -> tuple:
    schedule = model.schedule(params)
    return sample_keys(rng, len(given.images)), schedule, time_grid(schedule, settings)

  def image_to_image(
    params: PyTree, rng: Array, cond: Cond, given: Given, guide_params: PyTree = None
  ) -> Samples:
    """Noise the picture to the share `sample.strength` of the steps; go on from there.

    SDEdit (Meng et al. 2022, arXiv:2108.01073, algorithm 1). 1 is a new picture.
    """
    keys, schedule, grid = start(params, rng, given)
    grid = grid[settings.steps - max(1, round(strength * settings.steps)) :]
    x = noised(given.images, keys, grid[0], schedule)
    denoise = make(params, cond, keys, guide_params)
    return Samples(*samplers.solve(denoise, keys, x, grid, schedule.scaling, settings))

  def inpaint(
    params: PyTree, rng: Array, cond: Cond, given: Given, guide_params: PyTree = None
  ) -> Samples:
    """Draw where the mask is 1, around what is known where it is 0.

    The estimate's known part is replaced at every level, so that x_t has the known
    picture's own noise there (Song et al. 2021, appendix I.2; Lugmayr et al. 2022,
    eq. 8).
    """
    keys, schedule, grid = start(params, rng, given)
    denoise = make(params, cond, keys, guide_params)

    def known(x_t: Float[Array, "n ..."], logsnr: Float[Array, " n"]) -> Estimate:
      found = denoise(x_t, logsnr)
      return found._replace(x=jnp.where(given.mask > 0.5, found.x, given.images))

    x = noised(given.images, keys, grid[0], schedule)
    return Samples(*samplers.solve(known, keys, x, grid, schedule.scaling, settings))

  how = deterministic(settings)

  def through_noise(
    params: PyTree,
    rng: Array,
    cond: Cond,
    given: Given,
    guide_params: PyTree,
    between: Callable[[Float[Array, "n ..."]], Float[Array, "n ..."]],
  ) -> Samples:
    """By the unguided flow to noise, and from what `between` makes of it back."""
    keys, schedule, grid = start(params, rng, given)
    # Without a threshold: the flow must run both ways.
    back = make(params, cond, keys, guide_params, scale=1, kind="none")
    alpha, _ = noise.alpha_sigma(grid[-2], schedule.scaling)
    x, _, there = samplers.solve(
      back, keys, alpha * given.images, grid[-2::-1], schedule.scaling, how
    )
    denoise = make(params, cond, keys, guide_params)
    images, frames, here = samplers.solve(
      denoise, keys, between(x), grid, schedule.scaling, how
    )
    return Samples(images, frames, there + here)

  def invert(
    params: PyTree, rng: Array, cond: Cond, given: Given, guide_params: PyTree = None
  ) -> Samples:
    """To noise and back: DDIM inversion (Song et al. 2021, DDIM, section 4.3)."""
    return through_noise(params, rng, cond, given, guide_params, lambda x: x)

  def interpolate(
    params: PyTree, rng: Array, cond: Cond, given: Given, guide_params: PyTree = None
  ) -> Samples:
    """From the first picture to the last in equal steps, through their noises.

    Spherical interpolation of the two noises (Song et al. 2021, DDIM, section 5.3).
    """

    def path(x: Float[Array, "n ..."]) -> Float[Array, "n ..."]:
      return slerp(x[0], x[-1], jnp.linspace(0, 1, len(x)))

    return through_noise(params, rng, cond, given, guide_params, path)

  return {
    "image_to_image": image_to_image,
    "inpaint": inpaint,
    "invert": invert,
    "interpolate": interpolate,
  }


def deterministic(settings: Settings) -> Settings:
  """The same without fresh noise: a solver of the flow, DDIM in place of the others."""
  flow = settings.sampler in ("euler", "heun", "rk4", "rk45")
  return settings._replace(
    sampler=settings.sampler if flow else "ddim", eta=0.0, churn=0.0, variance="small"
  )


def noised(
  images: Float[Array, "n ..."],
  keys: Key[Array, " n"],
  logsnr: Float[Array, ""],
  schedule: noise.Schedule,
) -> Float[Array, "n ..."]:
  """alpha x + sigma eps, eps from each key."""
  eps = noise.normals(keys_at(keys, 2**32 - 3), images.shape[1:])
  return noise.diffuse(images, eps, jnp.full(len(images), logsnr), schedule.scaling)
