"""Glow: flows with invertible 1x1 convolutions (Kingma & Dhariwal 2018)."""

from collections.abc import Callable

from jaxtyping import Array
from ml_collections import ConfigDict

from core.errors import unknown
from core.family import Family, Spec
from flows import dequantization, elementwise, layers, likelihood
from flows.bijector import Bijector, at_level, chain, repeat, squeezed
from flows.coupling import Elementwise, MakeNet, coupling, prior
from nets import build
from nets.conditioners import ConvConditioner


def make(config: ConfigDict, spec: Spec) -> Family:
  """`flow.levels` levels of `flow.steps` steps, each actnorm, mixing, coupling.

  At each level the picture is squeezed; after it, half of the channels are told by the
  other half as a normal with learned mean and deviation, and done with
  (arXiv:1807.03039, figure 2b). What is left at the end has such a normal by the
  condition, which every coupling sees too.

  Raises:
    UserError: settings that are unknown or do not fit the picture.
  """
  likelihood.refuse_regularisers(config)
  likelihood.check_halving(spec, config.flow.levels)
  net = conditioner(config)
  return likelihood.family(
    config,
    spec,
    lambda guidance_scale: multi_scale(
      config, elementwise_of(config), net, guidance_scale
    ),
    dequantizer=dequantizer(config, net),
  )


def multi_scale(
  config: ConfigDict, g: Elementwise, net: MakeNet, guidance_scale: float
) -> Bijector:
  """Glow's arrangement of any couplings."""
  flow, mix = config.flow, mixing(config.flow.mixing)

  def step(i: Array) -> Bijector:
    return chain(layers.actnorm(), mix(i), coupling(g, net, guidance_scale))

  def level(last: bool) -> Bijector:
    steps = repeat(
      step, flow.steps, reversible=config.model.remat, scan=config.model.scan
    )
    normal = elementwise.affine("exp")
    end = prior(normal, guidance_scale)
    return squeezed(
      chain(steps, end if last else coupling(normal, net, guidance_scale))
    )

  return chain(*[at_level(level(i == flow.levels - 1), i) for i in range(flow.levels)])


def mixing(kind: str) -> Callable[[Array], Bijector]:
  """Which step -> what lets all channels meet: section 3.2, and figure 3.

  Raises:
    UserError: unknown kind.
  """
  kinds = {
    "conv_1x1": layers.conv_1x1,
    "shuffle": layers.shuffle,
    "reverse": lambda i: layers.reverse(),
  }
  if kind not in kinds:
    raise unknown("flow.mixing", kind, kinds)
  return kinds[kind]


def elementwise_of(config: ConfigDict, affine: str = "glow") -> Elementwise:
  """What `flow.coupling` names, `affine` being the kind of affine map.

  Raises:
    UserError: it is neither affine, additive nor spline.
  """
  flow = config.flow
  kinds = {
    "affine": lambda: elementwise.affine(affine),
    "additive": elementwise.additive,
    "spline": lambda: elementwise.rational_quadratic(flow.bins, flow.bound),
  }
  if flow.coupling not in kinds:
    raise unknown("flow.coupling", flow.coupling, kinds)
  return kinds[flow.coupling]()


def conditioner(config: ConfigDict) -> MakeNet:
  """Glow's network of two hidden layers of `model.dim` channels."""
  width, dtype = config.model.dim, build.dtype(config.model)
  return lambda channels: ConvConditioner(channels, width, dtype)


def dequantizer(config: ConfigDict, net: MakeNet) -> dequantization.Dequantizer:
  """Raises UserError if `flow.dequantization` is neither uniform nor variational."""
  kinds = {
    "uniform": dequantization.uniform,
    "variational": lambda: dequantization.variational(
      net, config.flow.dequantization_steps
    ),
  }
  if config.flow.dequantization not in kinds:
    raise unknown("flow.dequantization", config.flow.dequantization, kinds)
  return kinds[config.flow.dequantization]()
