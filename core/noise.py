"""The noise-schedule module: how much signal and how much noise at time t.

Every Gaussian process here is written

    x_t = alpha x + sigma eps,   eps ~ N(0, I),   logsnr = log(alpha^2 / sigma^2),

with t in [0, 1], 0 clean and 1 noise. A `Schedule` is logsnr(t), decreasing,
plus the *scaling* that turns a logsnr into alpha and sigma:

    vp   alpha^2 + sigma^2 = 1   variance preserving (Ho et al. 2020, DDPM)
    ve   alpha = 1               variance exploding  (Song et al. 2021)
    rf   alpha + sigma = 1       rectified flow      (Liu et al. 2022)

The same logsnr under two scalings is the same process seen through another
lens (Kingma et al. 2021, VDM, section 5.1), so networks are conditioned on
logsnr and nothing else.
"""

import functools
import math
from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtri
from jaxtyping import Array, Float, Key, Shaped, UInt32
from ml_collections import ConfigDict

from core.errors import UserError, unknown

Scaling = Literal["vp", "ve", "rf"]
Prediction = Literal["x", "eps", "v", "score", "velocity", "edm"]
PREDICTIONS = get_args(Prediction)

LOGSNR_LIMIT = 20.0  # both ends stay finite: they are inputs of a network


def _identity(u: Float[Array, "..."]) -> Float[Array, "..."]:
  return u


class Schedule(NamedTuple):
  """logsnr(t), the scaling, and the density of t in training.

  Attributes:
    logsnr: t in [0, 1] -> log(alpha^2 / sigma^2), finite and strictly decreasing,
      but for slivers at the ends where it is held at a bound.
    scaling: 'vp', 've' or 'rf', see the module's docstring.
    density: u ~ U(0, 1) -> t, the inverse of the training density's
      distribution function.
    timesteps: T if only t = 1/T, 2/T, ..., 1 are used in training; 0 if all are.
  """

  logsnr: Callable[[Float[Array, "..."]], Float[Array, "..."]]
  scaling: Scaling = "vp"
  density: Callable[[Float[Array, "..."]], Float[Array, "..."]] = _identity
  timesteps: int = 0


def alpha_sigma(
  logsnr: Float[Array, "..."], scaling: Scaling
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
  """(alpha, sigma) of a logsnr, +inf (no noise) included.

  vp: alpha^2 = sigmoid(logsnr); ve: sigma = exp(-logsnr / 2);
  rf: alpha = sigmoid(logsnr / 2).
  """
  if scaling == "vp":
    return jnp.sqrt(jax.nn.sigmoid(logsnr)), jnp.sqrt(jax.nn.sigmoid(-logsnr))
  if scaling == "ve":
    return jnp.ones_like(logsnr), jnp.exp(-logsnr / 2)
  return jax.nn.sigmoid(logsnr / 2), jax.nn.sigmoid(-logsnr / 2)


def input_scale(logsnr: Float[Array, "..."], scaling: Scaling) -> Float[Array, "..."]:
  """What x_t is multiplied by before a network sees it.

  1 for vp and rf, whose x_t is of order one at every t, and 1/sqrt(1 + sigma^2)
  for ve, whose x_t grows with sigma (Karras et al. 2022, table 1, c_in with
  unit data variance). The 'edm' prediction has its own, see `precondition`.
  """
  if scaling == "ve":
    return jnp.sqrt(jax.nn.sigmoid(logsnr))
  return jnp.ones_like(logsnr)


def precondition(
  logsnr: Float[Array, "..."], scaling: Scaling, sigma_data: float
) -> tuple[Float[Array, "..."], Float[Array, "..."], Float[Array, "..."]]:
  """(c_skip, c_out, c_in) of x = c_skip x_t + c_out F(c_in x_t), in any scaling.

  With r = sqrt(alpha^2 sigma_data^2 + sigma^2), the standard deviation of x_t:
  c_skip = alpha sigma_data^2 / r^2, c_out = sigma sigma_data / r, c_in = 1 / r.
  Karras et al. 2022, table 1, is the case alpha = 1; under vp with sigma_data = 1
  it is x = alpha x_t + sigma F, so F = -v.
  """
  alpha, sigma = alpha_sigma(logsnr, scaling)
  r = jnp.sqrt((alpha * sigma_data) ** 2 + sigma**2)
  return alpha * sigma_data**2 / r**2, sigma * sigma_data / r, 1 / r


def per_example(
  a: Shaped[Array, " b"], x: Float[Array, "b ..."]
) -> Shaped[Array, "b ..."]:
  """`a`, one number an example, shaped to broadcast over `x`."""
  return a.reshape(a.shape + (1,) * (x.ndim - a.ndim))


def diffuse(
  x: Float[Array, "b ..."],
  eps: Float[Array, "b ..."],
  logsnr: Float[Array, " b"],
  scaling: Scaling,
) -> Float[Array, "b ..."]:
  """x_t = alpha x + sigma eps."""
  alpha, sigma = alpha_sigma(per_example(logsnr, x), scaling)
  return alpha * x + sigma * eps


def normals(keys: Key[Array, " b"], shape: tuple[int, ...]) -> Float[Array, "b ..."]:
  """Standard normal numbers of `shape`, from a key each."""
  return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)


def target(
  x: Float[Array, "b ..."],
  eps: Float[Array, "b ..."],
  logsnr: Float[Array, " b"],
  scaling: Scaling,
  prediction: Prediction,
  sigma_data: float = 0.5,
) -> Float[Array, "b ..."]:
  """What a network of that prediction type should output.

  x; eps; v = alpha eps - sigma x (Salimans & Ho 2022, section 4);
  score = -eps / sigma; velocity = eps - x (d x_t / d t of rectified flow);
  edm = (x - c_skip x_t) / c_out, the F of Karras et al. 2022, eq. 7 and 8.
  """
  logsnr = per_example(logsnr, x)
  alpha, sigma = alpha_sigma(logsnr, scaling)
  match prediction:
    case "x":
      return x
    case "eps":
      return eps
    case "v":
      return alpha * eps - sigma * x
    case "score":
      return -eps / sigma
    case "velocity":
      return eps - x
    case "edm":  # x - c_skip x_t over c_out, without the cancelling x where sigma = 0
      r = jnp.sqrt((alpha * sigma_data) ** 2 + sigma**2)
      return (sigma * x - alpha * sigma_data**2 * eps) / (r * sigma_data)
  raise ValueError(f"unknown prediction {prediction!r}")


def to_x_eps(
  output: Float[Array, "b ..."],
  x_t: Float[Array, "b ..."],
  logsnr: Float[Array, " b"],
  scaling: Scaling,
  prediction: Prediction,
  sigma_data: float = 0.5,
) -> tuple[Float[Array, "b ..."], Float[Array, "b ..."]]:
  """(x, eps) from a network's output at x_t: the inverse of `target`.

  Each pair solves x_t = alpha x + sigma eps together with the definition of
  the prediction; e.g. v: x = (alpha x_t - sigma v) / (alpha^2 + sigma^2).
  """
  logsnr = per_example(logsnr, x_t)
  alpha, sigma = alpha_sigma(logsnr, scaling)
  match prediction:
    case "x":
      return output, (x_t - alpha * output) / sigma
    case "eps":
      return (x_t - sigma * output) / alpha, output
    case "v":
      norm = alpha**2 + sigma**2
      return (alpha * x_t - sigma * output) / norm, (
        sigma * x_t + alpha * output
      ) / norm
    case "score":
      eps = -sigma * output
      return (x_t - sigma * eps) / alpha, eps
    case "velocity":
      norm = alpha + sigma
      return (x_t - sigma * output) / norm, (x_t + alpha * output) / norm
    case "edm":
      c_skip, c_out, c_in = precondition(logsnr, scaling, sigma_data)
      eps = c_in * (sigma * c_in * x_t - alpha * sigma_data * output)
      return c_skip * x_t + c_out * output, eps
  raise ValueError(f"unknown prediction {prediction!r}")


def eps_of(
  x: Float[Array, "b ..."],
  x_t: Float[Array, "b ..."],
  logsnr: Float[Array, " b"],
  scaling: Scaling,
) -> Float[Array, "b ..."]:
  """eps = (x_t - alpha x) / sigma, the noise that goes with a (clipped) x."""
  return to_x_eps(x, x_t, logsnr, scaling, "x")[1]


def log_weight(
  logsnr: Float[Array, "..."],
  scaling: Scaling,
  prediction: Prediction,
  sigma_data: float = 0.5,
) -> Float[Array, "..."]:
  """log w with |error of that prediction|^2 = w |error of x|^2, at the same x_t.

  x: 1; eps: SNR; v: ((alpha^2 + sigma^2) / sigma)^2, SNR + 1 under vp; score:
  SNR / sigma^2; velocity: ((alpha + sigma) / sigma)^2; edm: SNR + 1 / sigma_data^2,
  the lambda of Karras et al. 2022, table 1. From Kingma & Gao 2023, section 2.
  """
  alpha, sigma = alpha_sigma(logsnr, scaling)
  match prediction:
    case "x":
      return jnp.zeros_like(logsnr)
    case "eps":
      return logsnr
    case "v":
      return 2 * (jnp.log(alpha**2 + sigma**2) - jnp.log(sigma))
    case "score":
      return logsnr - 2 * jnp.log(sigma)
    case "velocity":
      return 2 * (jnp.log(alpha + sigma) - jnp.log(sigma))
    case "edm":
      return jnp.logaddexp(logsnr, jnp.full_like(logsnr, -2 * math.log(sigma_data)))
  raise ValueError(f"unknown prediction {prediction!r}")


def posterior_log_variances(
  logsnr_t: Float[Array, "..."], logsnr_s: Float[Array, "..."], scaling: Scaling
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
  """log variance of q(x_s | x_t, x) and of q(x_t | x_s), for s < t.

  With share = 1 - SNR_t / SNR_s these are sigma_s^2 share (Ho et al. 2020, eq. 7; VDM,
  eq. 25) and the larger sigma_t^2 share, DDPM's beta_t. logsnr_s = +inf is the clean
  picture: -inf and sigma_t^2.
  """
  log_share = jnp.log(-jnp.expm1(logsnr_t - logsnr_s))
  small, large = (
    2 * jnp.log(alpha_sigma(logsnr, scaling)[1]) + log_share
    for logsnr in (logsnr_s, logsnr_t)
  )
  return small, large


def transition(
  x_s: Float[Array, "b ..."],
  eps: Float[Array, "b ..."],
  logsnr_t: Float[Array, " b"],
  logsnr_s: Float[Array, " b"],
  scaling: Scaling,
) -> Float[Array, "b ..."]:
  """A draw of q(x_t | x_s) for s < t: alpha_t / alpha_s x_s + sigma_t sqrt(share) eps.

  VDM (Kingma et al. 2021), eq. 20 to 22, with share as above; logsnr_s = +inf is the
  clean picture.
  """
  of_t, of_s = (
    alpha_sigma(per_example(logsnr, x_s), scaling) for logsnr in (logsnr_t, logsnr_s)
  )
  share = -jnp.expm1(per_example(logsnr_t - logsnr_s, x_s))
  return of_t[0] / of_s[0] * x_s + of_t[1] * jnp.sqrt(share) * eps


def posterior(
  x_t: Float[Array, "b ..."],
  x: Float[Array, "b ..."],
  eps: Float[Array, "b ..."],
  logsnr_t: Float[Array, " b"],
  logsnr_s: Float[Array, " b"],
  scaling: Scaling,
) -> Float[Array, "b ..."]:
  """A draw of q(x_s | x_t, x) for s < t, x itself at logsnr_s = +inf.

  alpha_s x + sigma_s (sqrt(1 - share) eps_t + sqrt(share) eps), eps_t the noise of x_t:
  Ho et al. 2020, eq. 6 and 7, on any scaling.
  """
  alpha, sigma = alpha_sigma(per_example(logsnr_s, x), scaling)
  share = -jnp.expm1(per_example(logsnr_t - logsnr_s, x))
  eps_t = eps_of(x, x_t, logsnr_t, scaling)
  return alpha * x + sigma * (jnp.sqrt(1 - share) * eps_t + jnp.sqrt(share) * eps)


def prior_std(logsnr: Float[Array, ""], scaling: Scaling) -> Float[Array, ""]:
  """Standard deviation of the noise that sampling starts from: sigma, under vp 1."""
  sigma = alpha_sigma(logsnr, scaling)[1]
  return jnp.ones_like(sigma) if scaling == "vp" else sigma


# The schedules, each a closed form of logsnr(t).


def _bounded(logsnr: Float[Array, "..."]) -> Float[Array, "..."]:
  return jnp.clip(logsnr, -LOGSNR_LIMIT, LOGSNR_LIMIT)


def linear(
  beta_start: float = 1e-4, beta_end: float = 0.02, timesteps: int = 1000
) -> Schedule:
  """DDPM's linear betas (Ho et al. 2020, section 4).

  alpha^2 at t = i / timesteps is prod_{j<=i} (1 - beta_j), beta linear in j
  from beta_start to beta_end; logsnr is interpolated between these times and
  constant before the first.
  """
  return _from_betas(jnp.linspace(beta_start, beta_end, timesteps))


def scaled_linear(
  beta_start: float = 0.00085, beta_end: float = 0.012, timesteps: int = 1000
) -> Schedule:
  """Betas whose square roots are linear in j, else as `linear`.

  Latent diffusion and Stable Diffusion (Rombach et al. 2022, appendix D and code).
  """
  low, high = math.sqrt(beta_start), math.sqrt(beta_end)
  return _from_betas(jnp.linspace(low, high, timesteps) ** 2)


def _from_betas(betas: Float[Array, " t"]) -> Schedule:
  log_alpha2 = jnp.cumsum(jnp.log1p(-betas))
  table = log_alpha2 - jnp.log(-jnp.expm1(log_alpha2))
  knots = jnp.arange(1, len(betas) + 1) / len(betas)
  return Schedule(lambda t: jnp.interp(t, knots, table))


def cosine(offset: float = 0.0) -> Schedule:
  """alpha^2 = f(t) / f(0), f(t) = cos^2(pi/2 (t + offset) / (1 + offset)).

  Nichol & Dhariwal 2021 (iDDPM), eq. 17, where the offset is 0.008. Without one it is
  alpha = cos(pi t / 2), so logsnr = -2 log tan(pi t / 2) (Hoogeboom et al. 2023,
  simple diffusion, section 2). In all cases with a = pi/2 offset / (1 + offset) and
  b = pi/2 t / (1 + offset),

    1 - alpha^2 = sin(b) sin(b + 2 a) / cos^2(a).
  """
  unit = math.pi / 2 / (1 + offset)
  start = unit * offset

  def logsnr(t: Float[Array, "..."]) -> Float[Array, "..."]:
    # The cosine as the sine of what is left: in float32 that of pi / 2 is negative.
    signal = 2 * jnp.log(jnp.sin(unit * (1 - t)))
    noise = jnp.log(jnp.sin(unit * t)) + jnp.log(jnp.sin(unit * t + 2 * start))
    return _bounded(signal - noise)

  return Schedule(logsnr)


def sigmoid(start: float = -3.0, end: float = 3.0, tau: float = 1.0) -> Schedule:
  """alpha^2 = (S(end) - S(start + t (end - start))) / (S(end) - S(start)).

  S(a) = sigmoid(a / tau); Jabri et al. 2022 (RIN) and Chen 2023, algorithm 1. With
  S(a) - S(b) = sinh((a - b) / 2 tau) / (2 cosh(a / 2 tau) cosh(b / 2 tau)) and
  h = (end - start) / 2 tau,

    logsnr = log sinh(h (1 - t)) - log sinh(h t)
             + log cosh(start / 2 tau) - log cosh(end / 2 tau),

  which does not cancel near the ends as the difference of two sigmoids does.
  """
  h = (end - start) / (2 * tau)
  low, high = (math.log(math.cosh(a / (2 * tau))) for a in (start, end))

  def log_sinh(a: Float[Array, "..."]) -> Float[Array, "..."]:
    return a + jnp.log(-jnp.expm1(-2 * a))  # and - log 2, which the difference drops

  return Schedule(
    lambda t: _bounded(log_sinh(h * (1 - t)) - log_sinh(h * t) + low - high)
  )


def laplace(mean: float = 0.0, scale: float = 0.5) -> Schedule:
  """logsnr = mean - scale sgn(1/2 - t) log(1 - 2 |t - 1/2|), a Laplace variable.

  Hang et al. 2024 (arXiv:2407.03297), table 1: most training at logsnr = mean.
  """

  def logsnr(t: Float[Array, "..."]) -> Float[Array, "..."]:
    tail = jnp.log(2 * jnp.minimum(t, 1 - t))
    return _bounded(mean - scale * jnp.sign(0.5 - t) * tail)

  return Schedule(logsnr)


def ve(sigma_min: float = 0.01, sigma_max: float = 50.0) -> Schedule:
  """sigma = sigma_min (sigma_max / sigma_min)^t (Song et al. 2021, eq. 31)."""
  low, high = math.log(sigma_min), math.log(sigma_max)
  return Schedule(lambda t: -2 * (low + t * (high - low)), scaling="ve")


def edm(
  sigma_min: float = 0.002,
  sigma_max: float = 80.0,
  rho: float = 7.0,
  p_mean: float = -1.2,
  p_std: float = 1.2,
) -> Schedule:
  """Karras et al. 2022: sampling times of eq. 5, training noise of table 1.

  sigma(t) = (sigma_min^(1/rho) + t (sigma_max^(1/rho) - sigma_min^(1/rho)))^rho
  at t = 1 - i / (N - 1), i < N, and log sigma ~ N(p_mean, p_std^2) in training,
  clipped to [sigma_min, sigma_max].
  """
  low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)

  def logsnr(t: Float[Array, "..."]) -> Float[Array, "..."]:
    return -2 * rho * jnp.log(low + t * (high - low))

  def density(u: Float[Array, "..."]) -> Float[Array, "..."]:
    sigma = jnp.exp(p_mean + p_std * ndtri(u))
    return jnp.clip((sigma ** (1 / rho) - low) / (high - low), 0, 1)

  return Schedule(logsnr, scaling="ve", density=density)


def rectified_flow() -> Schedule:
  """alpha = 1 - t, sigma = t: straight paths (Liu et al. 2022, eq. 1)."""
  return Schedule(lambda t: _bounded(2 * (jnp.log1p(-t) - jnp.log(t))), scaling="rf")


def shifted(schedule: Schedule, shift: float) -> Schedule:
  """logsnr - 2 log(shift): a shift above 1 keeps large pictures noisy for longer.

  Hoogeboom et al. 2023, section 3.1 (shift = size / 64); for rectified flow it is
  the time shift of Esser et al. 2024 (Stable Diffusion 3), eq. 23:
  t -> shift t / (1 + (shift - 1) t). The density of t stays, so the noise levels seen
  in training move as those of sampling do.
  """
  offset = 2 * math.log(shift)
  return schedule._replace(logsnr=lambda t: _bounded(schedule.logsnr(t) - offset))


def zero_terminal(schedule: Schedule) -> Schedule:
  """alpha -> (alpha - alpha(1)) alpha(0) / (alpha(0) - alpha(1)): no signal at t = 1.

  Lin et al. 2023 (arXiv:2305.08891), algorithm 1, of a vp schedule. logsnr(1) is -inf.
  """

  def logsnr(t: Float[Array, "..."]) -> Float[Array, "..."]:
    (first, low), (last, _), (alpha, sigma) = (
      alpha_sigma(schedule.logsnr(time), "vp")
      for time in (jnp.zeros_like(t), jnp.ones_like(t), t)
    )
    # By differences from t = 0, since 1 - alpha^2 cancels there.
    fall = (sigma**2 - low**2) / (first + alpha) * first / (first - last)
    moved = jnp.where(t < 1, first - fall, 0)
    rest = low**2 + fall * (first + moved)
    return jnp.minimum(2 * jnp.log(moved) - jnp.log(rest), LOGSNR_LIMIT)

  return schedule._replace(logsnr=logsnr)


def discrete(schedule: Schedule, timesteps: int) -> Schedule:
  """Training at t = 1/T, 2/T, ..., 1 only: t -> ceil(T t) / T (Ho et al. 2020)."""

  def density(u: Float[Array, "..."]) -> Float[Array, "..."]:
    step = jnp.clip(jnp.ceil(schedule.density(u) * timesteps), 1)
    # Compiled, T / T may be a product with 1 / T that is just above 1.
    return jnp.minimum(step / timesteps, 1)

  return schedule._replace(density=density, timesteps=timesteps)


def logit_normal(
  u: Float[Array, "..."], mean: float = 0.0, std: float = 1.0
) -> Float[Array, "..."]:
  """t = sigmoid(mean + std * ndtri(u)) (Esser et al. 2024, eq. 19)."""
  return jax.nn.sigmoid(mean + std * ndtri(u))


SCHEDULES = {
  "linear": linear,
  "scaled_linear": scaled_linear,
  "cosine": cosine,
  "sigmoid": sigmoid,
  "laplace": laplace,
  "ve": ve,
  "edm": edm,
  "rectified_flow": rectified_flow,
}


def timestep(logsnr: Float[Array, "..."], name: str) -> Float[Array, "..."]:
  """i in [0, 999] where the schedule `name` has this logsnr at t = (i + 1) / 1000.

  So networks trained on whole timesteps are told of any noise level. Between two steps
  i is linear in logsnr, as k-diffusion has it (Karras et al. 2022, table 1, take the
  nearest step); beyond the first and the last it stays there.
  """
  with jax.ensure_compile_time_eval():
    table = SCHEDULES[name]().logsnr(jnp.arange(1, 1001) / 1000)
  return jnp.interp(-logsnr, -table, jnp.arange(1000.0))


def _unknown(t: Float[Array, "..."]) -> Float[Array, "..."]:
  raise ValueError("a learned schedule needs its parameters")


def make(
  config: ConfigDict,
  learned: Callable[[Float[Array, "..."]], Float[Array, "..."]] | None = None,
) -> Schedule:
  """The schedule of `config.noise`.

  `density` is 'own' (what the schedule brings: uniform, or EDM's lognormal),
  'uniform' or 'logit_normal'. The keyword arguments of a schedule are the fields of
  the group of its name, e.g. `noise.edm.p_mean`.

  Args:
    config: `config.noise`.
    learned: logsnr(t) of the schedule 'learned', a network with its parameters.

  Raises:
    UserError: unknown schedule or density, a shift that is not positive, or zero
      terminal SNR where the scaling is not vp or the schedule is learned.
  """
  name = config.schedule
  if name not in (*SCHEDULES, "learned"):
    raise unknown("noise.schedule", name, (*SCHEDULES, "learned"))
  if config.shift <= 0:
    raise UserError(f"noise.shift={config.shift} must be positive; 1 changes nothing.")
  if name == "learned":
    schedule = Schedule(learned or _unknown)
  else:
    schedule = SCHEDULES[name](**config.get(name, {}))
  match config.density:
    case "own":
      pass
    case "uniform":
      schedule = schedule._replace(density=_identity)
    case "logit_normal":
      own = functools.partial(logit_normal, **config.get("logit_normal", {}))
      schedule = schedule._replace(density=own)
    case other:
      raise unknown("noise.density", other, ("own", "uniform", "logit_normal"))
  if config.shift != 1:
    schedule = shifted(schedule, config.shift)
  if config.zero_terminal:
    if schedule.scaling != "vp" or name == "learned":
      raise UserError(
        f"noise.zero_terminal is for variance-preserving schedules, not {name}: set it"
        " to False, or noise.schedule to linear, scaled_linear, cosine, sigmoid or"
        " laplace."
      )
    schedule = zero_terminal(schedule)
  return discrete(schedule, config.timesteps) if config.timesteps else schedule


def spread(
  rng: Key[Array, ""], ids: UInt32[Array, " b"], size: int
) -> Float[Array, " b"]:
  """u = (u_0 + id / size) mod 1: the `size` examples of a batch evenly on a circle.

  Their ids follow one another. Each u is still uniform, and what is averaged over the
  batch varies less (VDM, appendix I.1).
  """
  # A key that no example has.
  u = jax.random.uniform(jax.random.fold_in(rng, 2**32 - 1))
  return (u + (ids % size).astype(jnp.float32) / size) % 1
