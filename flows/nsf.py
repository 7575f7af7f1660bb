"""Neural spline flows: Glow's arrangement of rational-quadratic splines."""

from jaxtyping import Array
from ml_collections import ConfigDict

from core.errors import UserError
from core.family import Family, Spec
from flows import elementwise, glow, layers, likelihood
from flows.bijector import Bijector, at_level, chain, repeat, squeezed
from flows.coupling import MakeNet, coupling, prior
from nets import build
from nets.conditioners import ResNetConditioner


def make(config: ConfigDict, spec: Spec) -> Family:
  """RQ-NSF (C) of Durkan et al. 2019 (arXiv:1906.04032).

  `flow.levels` levels: the picture is squeezed, then come `flow.steps` steps, each
  actnorm, 1x1 convolution and a spline coupling by a residual network, one more 1x1
  convolution, and half of the channels are done with.

  Raises:
    UserError: settings that are unknown or do not fit the picture.
  """
  likelihood.refuse_regularisers(config)
  likelihood.check_halving(spec, config.flow.levels)
  return likelihood.family(
    config,
    spec,
    lambda guidance_scale: multi_scale(config, guidance_scale),
    dequantizer=glow.dequantizer(config, glow.conditioner(config)),
  )


def multi_scale(config: ConfigDict, guidance_scale: float) -> Bijector:
  """The levels, and a normal by the condition for what is left at the end."""
  flow, model = config.flow, config.model
  g, net = glow.elementwise_of(config), conditioner(config, model.dim)
  mix = glow.mixing(flow.mixing)

  def step(i: Array) -> Bijector:
    return chain(layers.actnorm(), mix(i), coupling(g, net, guidance_scale))

  def level(last: bool) -> Bijector:
    steps = repeat(step, flow.steps, reversible=model.remat, scan=model.scan)
    end = [prior(elementwise.affine("exp"), guidance_scale)] if last else []
    return squeezed(chain(steps, mix(flow.steps), *end))

  return chain(*[at_level(level(i == flow.levels - 1), i) for i in range(flow.levels)])


def conditioner(config: ConfigDict, width: int) -> MakeNet:
  """A residual network of `model.blocks` blocks.

  Raises:
    UserError: more than one number of blocks.
  """
  blocks, dtype = config.model.blocks, build.dtype(config.model)
  if not isinstance(blocks, int):
    raise UserError(
      f"model.blocks={blocks} must be one number here: {config.family} has the same at"
      " every resolution."
    )
  return lambda channels: ResNetConditioner(channels, width, blocks, dtype)
