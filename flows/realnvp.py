"""RealNVP: affine couplings of checkerboards and of channels (Dinh et al. 2017)."""

import jax.numpy as jnp
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from core import checks
from core.family import Family, Spec
from flows import elementwise, glow, layers, likelihood, nsf
from flows.bijector import Bijector, at_level, chain, repeat, squeezed
from flows.coupling import coupling, masked_coupling, prior


def make(config: ConfigDict, spec: Spec) -> Family:
  """`flow.levels` scales (arXiv:1605.08803, section 3.6), on logits of the pixels.

  At each, `flow.steps` couplings with checkerboard masks, the picture squeezed,
  `flow.steps` couplings of channels, and half of the numbers are done with: the lower
  row of each square of 2x2 pixels. The last scale has checkerboards only, one more.
  Masks alternate. An actnorm comes before each coupling, in place of the batch norms
  (section 3.7). The logits keep `flow.edge` from black and white (section 4.1).

  Raises:
    UserError: settings that are unknown or do not fit the picture.
  """
  checks.refuse(config, "flow", mixing="conv_1x1")
  likelihood.refuse_regularisers(config)
  likelihood.check_halving(spec, max(1, config.flow.levels - 1))
  return likelihood.family(
    config,
    spec,
    lambda guidance_scale: multi_scale(config, spec, guidance_scale),
    entry=layers.logit(config.flow.edge),
    dequantizer=glow.dequantizer(config, glow.conditioner(config)),
  )


def multi_scale(config: ConfigDict, spec: Spec, guidance_scale: float) -> Bijector:
  """The couplings, and a normal by the condition for what is left at the end.

  Networks have `model.dim` hidden channels at the first scale, and twice as many
  whenever the sides are halved.
  """
  flow, model = config.flow, config.model
  height, width, channels = spec.shape
  g = glow.elementwise_of(config, "tanh")
  nets = [nsf.conditioner(config, model.dim << i) for i in range(flow.levels + 1)]

  def level(i: int) -> Bijector:
    last = i == flow.levels - 1

    def masked(j: Array) -> Bijector:
      mask = checkerboard(height >> i, width >> i, j)
      return chain(layers.actnorm(), masked_coupling(g, nets[i], mask, guidance_scale))

    def of_channels(j: Array) -> Bijector:
      count = channels << (i + 2)
      order = (jnp.arange(count) + j % 2 * (count // 2)) % count
      swap = layers.permute(order)  # its own inverse
      return chain(
        layers.actnorm(), swap, coupling(g, nets[i + 1], guidance_scale), swap
      )

    loop = {"reversible": model.remat, "scan": model.scan}
    boards = repeat(masked, flow.steps + last, **loop)
    if last:
      return chain(boards, prior(elementwise.affine("exp"), guidance_scale))
    return chain(boards, squeezed(repeat(of_channels, flow.steps, **loop)))

  return chain(*[at_level(level(i), i) for i in range(flow.levels)])


def checkerboard(height: int, width: int, parity: Array) -> Float[Array, "h w 1"]:
  """1 where row + column + parity is even."""
  rows, columns = jnp.arange(height)[:, None], jnp.arange(width)
  return ((rows + columns + parity + 1) % 2)[..., None].astype(jnp.float32)
