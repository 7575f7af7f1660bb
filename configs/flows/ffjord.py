"""FFJORD (Grathwohl et al. 2019, arXiv:1810.01367), trained as RNODE is.

A continuous flow. The default is CIFAR-10 with the solver of RNODE (Finlay et al. 2020,
arXiv:2002.02798), four steps of rk4, and its weights of 0.01, and FFJORD's softplus
network of 64 channels, Adam at 1e-3 and batches of 200. RNODE has 3.38 bits a dimension
(secondary source).
Differences: one ODE, whose network goes down to 8x8 and up again, where theirs is a
chain of several at three scales; so expect a worse number. A learned scale of time is
left to the network.

Variants:
  :mnist          28x28 grey digits, with edges of 1e-6 before the logit, as there.
  :fashion_mnist  class to 32x32 grey pictures, in tens of minutes on two CPU cores.
  :tiny           seconds; what tests use.
"""

from ml_collections import ConfigDict

from configs import base
from configs.flows import glow

VARIANTS = ("mnist", "fashion_mnist", "tiny")


def get_config(variant: str = "") -> ConfigDict:
  """The config of a variant."""
  c = glow.flow("flows.ffjord")
  c.data.name, c.data.batch_size, c.text.encoder = "cifar10", 200, "none"
  c.model.widths, c.model.blocks, c.model.patch = (64, 64, 64), 2, 1
  c.model.remat = False
  c.flow.kinetic_weight = c.flow.jacobian_weight = 0.01
  c.sample.sampler, c.eval.ode_tolerance = "rk45", 1e-5
  match variant:
    case "":
      pass
    case "mnist":
      c.data.name, c.data.size, c.data.channels = "mnist", 28, 1
      c.flow.edge = 1e-6
    case "fashion_mnist":
      fashion_mnist(c)
    case "tiny":
      fashion_mnist(c)
      base.tiny(c)
    case _:
      raise base.unknown_variant(variant, VARIANTS)
  return c


def fashion_mnist(c: ConfigDict) -> None:
  """Fewer channels on a quarter of the pixels, two steps, and a loose tolerance."""
  glow.small(c)
  base.fashion_mnist(c)
  c.model.widths, c.model.blocks, c.model.patch = (32, 64), 1, 2
  c.flow.edge, c.flow.ode_steps = 1e-6, 2
  c.sample.rtol = c.sample.atol = c.eval.ode_tolerance = 1e-3
  c.eval.num_images = 500
