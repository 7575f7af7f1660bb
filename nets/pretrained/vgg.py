"""The convolutions of VGG16 and AlexNet, which perceptual distances look through."""

from typing import NamedTuple

import flax.linen as nn
from jaxtyping import Array, Float

from core.errors import UserError
from nets.pretrained import convert as to


class Layer(NamedTuple):
  """Max pooling of `pool` pixels if any, a convolution and a ReLU; `tap` returns it."""

  features: int
  kernel: int = 3
  stride: int = 1
  pool: int = 0
  tap: bool = False


# Simonyan & Zisserman 2014 (arXiv:1409.1556), configuration D, and Krizhevsky 2014
# (arXiv:1404.5997), both as in torchvision.
LAYERS = {
  "vgg16": (
    Layer(64),
    Layer(64, tap=True),
    Layer(128, pool=2),
    Layer(128, tap=True),
    Layer(256, pool=2),
    Layer(256),
    Layer(256, tap=True),
    Layer(512, pool=2),
    Layer(512),
    Layer(512, tap=True),
    Layer(512, pool=2),
    Layer(512),
    Layer(512, tap=True),
  ),
  "alexnet": (
    Layer(64, 11, stride=4, tap=True),
    Layer(192, 5, pool=3, tap=True),
    Layer(384, pool=3, tap=True),
    Layer(256, tap=True),
    Layer(256, tap=True),
  ),
}
# Below, a pooling has nothing left to pool.
SMALLEST = {"vgg16": 16, "alexnet": 31}


class Convolutions(nn.Module):
  """Images scaled to ImageNet's mean and deviation -> the five tapped layers.

  VGG16: the last ReLU before each pooling and at the end, of 64, 128, 256, 512 and 512
  channels. AlexNet: all five ReLUs, of 64, 192, 384, 256 and 256 channels.

  Raises:
    UserError: the images are smaller than 16 (VGG16) or 31 (AlexNet) pixels.
  """

  net: str = "vgg16"

  @nn.compact
  def __call__(self, x: Float[Array, "b h w 3"]) -> list[Float[Array, "b _ _ _"]]:
    if min(x.shape[1:3]) < SMALLEST[self.net]:
      raise UserError(
        f"{self.net} needs images of {SMALLEST[self.net]} x {SMALLEST[self.net]} pixels"
        f" or more, not {x.shape[1]} x {x.shape[2]}: take another net or enlarge them."
      )
    taps = []
    for i, (features, kernel, stride, pool, tap) in enumerate(LAYERS[self.net]):
      if pool:
        x = nn.max_pool(x, (pool, pool), (2, 2))
      # PyTorch's padding is the same on all sides.
      padding = 2 if kernel > 3 else 1
      conv = nn.Conv(features, (kernel, kernel), stride, padding, name=f"conv_{i}")
      x = nn.relu(conv(x))
      if tap:
        taps.append(x)
    return taps


def convert(state: to.StateDict) -> to.Params:
  """From torchvision's names, `features.N.weight`, of either net."""
  numbers = sorted(
    int(name.split(".")[1])
    for name in state
    if name.startswith("features.") and name.endswith(".weight")
  )
  return {f"conv_{i}": to.conv(state, f"features.{n}") for i, n in enumerate(numbers)}
