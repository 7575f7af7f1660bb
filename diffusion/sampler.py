"""THE sampler: a grid of noise levels, a step from `diffusion/solvers.py`, one loop."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from core import noise as noises
from core import ode
from core.errors import UserError
from core.family import Samples, keys_at
from core.noise import Scaling, Schedule
from diffusion import solvers
from diffusion.settings import ETA, Denoise, Estimate, Settings, time_grid

MAX_ATTEMPTS = 1000  # of rk45; thousands of calls, more than any sampler is worth


def sample(
  denoise: Denoise,
  keys: Key[Array, " n"],
  shape: tuple[int, ...],
  schedule: Schedule,
  settings: Settings,
) -> Samples:
  """Pictures of `shape` from pure noise: `solve` over `time_grid`.

  All noise of a sample comes from its key.
  """
  grid = time_grid(schedule, settings)
  start = noises.prior_std(grid[0], schedule.scaling) * draw(keys, 0, shape)
  return Samples(*solve(denoise, keys, start, grid, schedule.scaling, settings))


def draw(
  keys: Key[Array, " n"], i: Int[Array, ""] | int, shape: tuple[int, ...]
) -> Float[Array, "n ..."]:
  """The i-th standard normal draw of each sample."""
  return noises.normals(keys_at(keys, i), shape)


class _State(NamedTuple):
  x: Float[Array, "n ..."]
  before: Float[Array, "n ..."]  # the last x_hat
  film: Float[Array, "k n ..."]
  nfe: Int[Array, ""]


def solve(
  denoise: Denoise,
  keys: Key[Array, " n"],
  x: Float[Array, "n ..."],
  grid: Float[Array, " points"],
  scaling: Scaling,
  settings: Settings,
) -> tuple[Float[Array, "n ..."], Float[Array, "k n ..."], Int[Array, " n"]]:
  """(x at grid[-1], film of x_hat, calls of `denoise` a picture) from x at grid[0].

  One `lax.scan` over the grid, in which `denoise` is compiled once (rk45: one
  `while_loop` between the grid's first and last finite level).

  Args:
    denoise: (x_t, logsnr) -> Estimate.
    keys: one key a sample; draw 0 is left to the start.
    x: in the model's own scaling.
    grid: logsnr. The step to +inf, the clean end, is one evaluation and x_hat, for
      every solver; only the last may be. The deterministic samplers also run towards
      noise, where logsnr falls.
    scaling: the model's own.
    settings: all but `grid` and what goes with it; `steps` only shares out the churn.

  Raises:
    UserError: a learned variance is wanted of a network that learns none.
  """
  if settings.sampler == "rk45":
    return _solve_rk45(denoise, x, grid, scaling, settings)
  steps = grid.shape[0] - 1
  frames = min(settings.frames, steps)
  step = _step_of(denoise, keys, grid, scaling, settings)

  def body(state: _State, i: Array) -> tuple[_State, None]:
    new, x_hat, calls = step(state, i)
    # A later estimate overwrites an earlier one of the same frame.
    film = state.film.at[i * frames // steps].set(x_hat)
    return _State(new, x_hat, film, state.nfe + calls), None

  film = jnp.zeros((frames, *x.shape), x.dtype)
  start = _State(x, jnp.zeros_like(x), film, jnp.zeros((), jnp.int32))
  end, _ = jax.lax.scan(body, start, jnp.arange(steps))
  return end.x, end.film, jnp.full(x.shape[:1], end.nfe)


# (state, i) -> (x at grid[i + 1], x_hat at grid[i], calls of the denoiser).
_Step = Callable[
  [_State, Int[Array, ""]],
  tuple[Float[Array, "n ..."], Float[Array, "n ..."], Int[Array, ""] | int],
]


def _step_of(
  denoise: Denoise,
  keys: Key[Array, " n"],
  grid: Float[Array, " points"],
  scaling: Scaling,
  settings: Settings,
) -> _Step:
  """The step of `settings.sampler`; its draws are numbered from 1."""
  name = settings.sampler

  def at(x: Array, logsnr: Array) -> Estimate:
    return denoise(x, jnp.full(x.shape[:1], logsnr))

  def fresh(i: Array, x: Array) -> Array:
    return draw(keys, i, x.shape[1:]).astype(x.dtype)

  def at_unless_clean(
    first: Array, logsnr_s: Array, x: Array, logsnr: Array
  ) -> Estimate:
    """Of a step to the clean end only the first stage is evaluated."""
    nothing = jax.tree.map(
      lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(at, x, logsnr)
    )
    needed = first | jnp.isfinite(logsnr_s)
    return jax.lax.cond(needed, at, lambda *_: nothing, x, logsnr)

  def variance(estimate: Estimate) -> Array | float:
    if settings.variance != "learned":
      return {"small": 0.0, "large": 1.0}[settings.variance]
    if estimate.fraction is None:
      raise UserError(
        "sample.variance='learned' needs a network that learns it; take small or large."
      )
    return estimate.fraction

  def one_evaluation(state: _State, i: Array) -> tuple:
    t, s = grid[i], grid[i + 1]
    estimate = at(state.x, t)
    x_hat = estimate.x
    if name == "ddpm":
      noise = fresh(i + 1, state.x)
      x = solvers.ddpm(state.x, x_hat, noise, t, s, scaling, variance(estimate))
      return x, x_hat, 1
    eta = settings.eta if name == "ddim" else ETA[name]
    noise = fresh(i + 1, state.x) if eta > 0 else None
    to = x_hat
    if name != "ddim":
      before = jnp.where(i > 0, grid[i - 1], -jnp.inf)
      to = solvers.extrapolate(x_hat, state.before, before, t, s)
    return solvers.ddim(state.x, to, noise, t, s, scaling, eta), x_hat, 1

  def runge_kutta(state: _State, i: Array) -> tuple:
    tableau = ode.TABLEAUS[name]
    lens = scaling if settings.lens == "own" else settings.lens
    x, t, s = state.x, grid[i], grid[i + 1]
    if settings.churn > 0:
      sigma = solvers.clock(t, "ve")
      inside = (settings.churn_min <= sigma) & (sigma <= settings.churn_max)
      gamma = jnp.where(inside, min(settings.churn / settings.steps, 2**0.5 - 1), 0.0)
      x, t = solvers.churn(x, fresh(i + 1, x), t, gamma, scaling, settings.churn_noise)
    n, count = x.shape[0], len(tableau.c)
    y = solvers.lensed(x, jnp.full(n, t), scaling, lens)
    h = solvers.clock(s, lens) - solvers.clock(t, lens)
    stages, a = solvers.levels(t, s, tableau, lens), jnp.asarray(tableau.a, x.dtype)

    def stage(carry: tuple, j: Array) -> tuple[tuple, None]:
      k, first = carry
      level = jnp.full(n, stages[j])
      y_j = y + h * jnp.tensordot(a[j], k, 1)
      x_j = solvers.unlensed(y_j, level, scaling, lens)
      x_hat = at_unless_clean(j == 0, s, x_j, stages[j]).x
      slope = solvers.slope(x_hat, x_j, level, scaling, lens)
      return (k.at[j].set(slope), jnp.where(j == 0, x_hat, first)), None

    start = (jnp.zeros((count, *x.shape), x.dtype), x)
    (k, x_hat), _ = jax.lax.scan(stage, start, jnp.arange(count))
    y = y + h * jnp.tensordot(jnp.asarray(tableau.b, x.dtype), k, 1)
    clean = jnp.isposinf(s)
    x = jnp.where(clean, x_hat, solvers.unlensed(y, jnp.full(n, s), scaling, lens))
    return x, x_hat, jnp.where(clean, 1, count)

  def predictor_corrector(state: _State, i: Array) -> tuple:
    t, s = grid[i], grid[i + 1]
    count = 1 + settings.corrector_steps

    def stage(carry: tuple, j: Array) -> tuple[tuple, None]:
      x, first = carry
      estimate = at_unless_clean(j == 0, s, x, jnp.where(j == 0, t, s))
      noise = fresh(i * count + 1 + j, x)
      predicted = solvers.ddpm(x, estimate.x, noise, t, s, scaling, variance(estimate))
      snr = settings.corrector_snr
      corrected = solvers.langevin(x, estimate.x, noise, s, scaling, snr)
      corrected = jnp.where(jnp.isfinite(s), corrected, x)
      x = jnp.where(j == 0, predicted, corrected)
      return (x, jnp.where(j == 0, estimate.x, first)), None

    (x, x_hat), _ = jax.lax.scan(stage, (state.x, state.x), jnp.arange(count))
    return x, x_hat, jnp.where(jnp.isposinf(s), 1, count)

  if name == "pc":
    return predictor_corrector
  return runge_kutta if name in ode.TABLEAUS else one_evaluation


def _solve_rk45(
  denoise: Denoise,
  x: Float[Array, "n ..."],
  grid: Float[Array, " points"],
  scaling: Scaling,
  settings: Settings,
) -> tuple[Float[Array, "n ..."], Float[Array, "k n ..."], Int[Array, " n"]]:
  """`solve` by rk45. Frames are spaced evenly over the lens's clock."""
  lens = scaling if settings.lens == "own" else settings.lens
  n, frames = x.shape[0], settings.frames
  clean = jnp.isposinf(grid[-1])
  ends = jnp.stack([grid[0], jnp.where(clean, grid[-2], grid[-1])])
  first, last = (jnp.full(n, end) for end in ends)
  start, stop = (solvers.clock(end, lens) for end in (first, last))

  def slope(y: Array, t: Array) -> Array:
    logsnr = solvers.logsnr_at(t, lens)
    x = solvers.unlensed(y, logsnr, scaling, lens)
    return solvers.slope(denoise(x, logsnr).x, x, logsnr, scaling, lens)

  def watch(film: Array, y: Array, slope: Array, t: Array) -> Array:
    """Fills this frame and all after it; later ones are overwritten later."""
    x_hat = solvers.estimate(slope, y, solvers.logsnr_at(t, lens), lens)
    done = (t - start) / jnp.where(stop == start, 1.0, stop - start)
    now = jnp.minimum((done * frames).astype(jnp.int32), frames - 1)
    later = jnp.arange(frames)[:, None] >= now
    return jnp.where(later.reshape(frames, n, *(1,) * (y.ndim - 1)), x_hat, film)

  y, nfe, film = ode.watched(
    slope,
    solvers.lensed(x, first, scaling, lens),
    start,
    stop,
    watch,
    jnp.zeros((frames, *x.shape), x.dtype),
    rtol=settings.rtol,
    atol=settings.atol,
    max_steps=MAX_ATTEMPTS,
  )
  x = solvers.unlensed(y, last, scaling, lens)
  x = jax.lax.cond(clean, lambda x: denoise(x, last).x, lambda x: x, x)
  return x, film.at[-1].set(x), nfe + clean
