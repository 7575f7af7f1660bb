"""FFJORD: a flow that is an ODE, with any network (Grathwohl et al. 2019).

Trained through a few equal steps of a Runge-Kutta method, with gradients of just these
("discretize, then optimize": Onken & Ruthotto 2020, arXiv:2005.13420), and kept so
simple that they suffice (Finlay et al. 2020, RNODE, arXiv:2002.02798).
"""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree
from ml_collections import ConfigDict

from core import checks, ode
from core.errors import UserError, unknown
from core.family import Family, Metrics, Spec
from flows import continuous, glow, layers, likelihood
from flows.bijector import Image, Nats
from flows.continuous import Solver
from flows.likelihood import Uses
from nets import build
from nets.velocity import ConvVelocity
from text.cond import Cond


def make(config: ConfigDict, spec: Spec) -> Family:
  """One ODE of logits of the pixels, its velocity a convolutional network.

  The loss has the log-determinant by one draw of signs an example, and two more terms,
  in the mean over dimensions and time: `flow.kinetic_weight` times |f|^2 / 2 and
  `flow.jacobian_weight` times |J|^2 (RNODE). bpd is by rk45, with
  `eval.ode_probes` draws of signs, or exact with 0. A sample takes `sample.sampler`,
  rk45 or `sample.steps` equal steps of another.

  Raises:
    UserError: settings that are unknown or do not fit the picture.
  """
  checks.refuse(config, "flow", coupling="affine", mixing="conv_1x1")
  checks.refuse(config, "model", remat=False)
  check(config, spec)
  return likelihood.family(
    config,
    spec,
    lambda guidance_scale: uses(config, spec, guidance_scale),
    entry=layers.logit(config.flow.edge),
    dequantizer=glow.dequantizer(config, glow.conditioner(config)),
  )


def uses(config: ConfigDict, spec: Spec, guidance_scale: float) -> Uses:
  """The flow with the solvers that the config has for training, evals and samples."""
  flow, sample, model = config.flow, config.sample, config.model
  dims = math.prod(spec.shape)
  training = Solver(flow.ode_method, flow.ode_steps)
  tolerance, probes = config.eval.ode_tolerance, config.eval.ode_probes
  scoring = Solver("rk45", rtol=tolerance, atol=tolerance)
  drawing = Solver(sample.sampler, sample.steps, sample.rtol, sample.atol)
  weights = {"kinetic": flow.kinetic_weight, "jacobian": flow.jacobian_weight}
  weights = {name: weight for name, weight in weights.items() if weight}
  net = ConvVelocity(tuple(model.widths), model.blocks, model.patch, build.dtype(model))

  def init(rng: Array, x: Image, cond: Cond) -> PyTree:
    return net.init(rng, x, jnp.zeros(len(x)), cond)["params"]

  def apply(params: PyTree, x: Image, t: Nats, cond: Cond) -> Image:
    return net.apply({"params": params}, x, t, cond)

  def train(
    params: PyTree, x: Image, cond: Cond, keys: Key[Array, " b"]
  ) -> tuple[Image, Nats, Metrics]:
    velocity, signs = continuous.at(apply, params, cond), continuous.signs(keys, x, 1)
    way = continuous.move(velocity, x, training, signs, costs=bool(weights))
    costs = {
      name: weight * getattr(way, name) / dims for name, weight in weights.items()
    }
    return way.z, way.logdet, costs

  def score(
    params: PyTree, x: Image, cond: Cond, keys: Key[Array, " b"]
  ) -> tuple[Image, Nats]:
    signs = continuous.signs(keys, x, probes) if probes else None
    way = continuous.move(continuous.at(apply, params, cond), x, scoring, signs)
    return way.z, way.logdet

  def infer(params: PyTree, x: Image, cond: Cond) -> Image:
    velocity = continuous.at(apply, params, cond)
    return continuous.travel(velocity, x, drawing, 1, start=0.0)[0][-1]

  def invert(params: PyTree, z: Image, cond: Cond) -> Image:
    velocity = continuous.at(apply, params, cond)
    return continuous.travel(velocity, z, training, 1)[0][-1]

  def draw(
    params: PyTree, z: Image, cond: Cond, count: int
  ) -> tuple[Float[Array, "k b h w c"], Int[Array, " b"]]:
    velocity = continuous.at(apply, params, cond, guidance_scale)
    film, calls = continuous.travel(velocity, z, drawing, max(1, count - 1))
    return film if count == 1 else jnp.concatenate([z[None], film]), calls

  return Uses(init, train, score, infer, invert, draw, exact=not probes)


def check(config: ConfigDict, spec: Spec) -> None:
  """Raises UserError for solvers that are unknown, or sides that cannot be halved."""
  methods, own = tuple(ode.TABLEAUS), config.flow.ode_method
  if own not in methods:
    raise unknown("flow.ode_method", own, methods)
  if config.sample.sampler not in ("rk45", *methods):
    raise unknown("sample.sampler", config.sample.sampler, ("rk45", *methods))
  if not isinstance(config.model.blocks, int):
    raise UserError(
      f"model.blocks={config.model.blocks} must be one number here: flows.ffjord has"
      " the same for all of its widths."
    )
  by = config.model.patch * 2 ** (len(config.model.widths) - 1)
  height, width, _ = spec.shape
  if height % by or width % by:
    raise UserError(
      f"pictures of {height}x{width} cannot be cut into squares of {by}x{by}: set"
      f" data.size to a multiple of {by}, model.patch to less, or fewer model.widths."
    )
