"""InceptionV3 as the Frechet Inception Distance uses it."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from core import weights
from nets.pretrained import convert as to

FILE = "pt_inception-2015-12-05-6726825d.pth"
URL = f"https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{FILE}"


class Conv(NamedTuple):
  """A convolution, with the batch norm behind it folded in, and a ReLU."""

  name: str
  features: int
  kernel: tuple[int, int] = (1, 1)
  stride: int = 1
  padding: str = "SAME"


# A branch is convolutions and poolings one after another, a block is branches side by
# side, and a tuple in a branch is convolutions of one input side by side.
Step = Conv | Callable | tuple
Branches = tuple[tuple[Step, ...], ...]


def mean_pool(x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
  """The mean of 3 x 3 pixels, at the border of those there are."""
  return nn.avg_pool(x, (3, 3), padding="SAME", count_include_pad=False)


def max_pool(x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
  """The largest of 3 x 3 pixels."""
  return nn.max_pool(x, (3, 3), padding="SAME")


def halve(x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
  """The largest of 3 x 3 pixels, at every other place."""
  return nn.max_pool(x, (3, 3), (2, 2))


def _a(pool: int) -> Branches:
  return (
    (Conv("branch1x1", 64),),
    (Conv("branch5x5_1", 48), Conv("branch5x5_2", 64, (5, 5))),
    (
      Conv("branch3x3dbl_1", 64),
      Conv("branch3x3dbl_2", 96, (3, 3)),
      Conv("branch3x3dbl_3", 96, (3, 3)),
    ),
    (mean_pool, Conv("branch_pool", pool)),
  )


def _c(width: int) -> Branches:
  return (
    (Conv("branch1x1", 192),),
    (
      Conv("branch7x7_1", width),
      Conv("branch7x7_2", width, (1, 7)),
      Conv("branch7x7_3", 192, (7, 1)),
    ),
    (
      Conv("branch7x7dbl_1", width),
      Conv("branch7x7dbl_2", width, (7, 1)),
      Conv("branch7x7dbl_3", width, (1, 7)),
      Conv("branch7x7dbl_4", width, (7, 1)),
      Conv("branch7x7dbl_5", 192, (1, 7)),
    ),
    (mean_pool, Conv("branch_pool", 192)),
  )


def _e(pool: Callable) -> Branches:
  return (
    (Conv("branch1x1", 320),),
    (
      Conv("branch3x3_1", 384),
      (Conv("branch3x3_2a", 384, (1, 3)), Conv("branch3x3_2b", 384, (3, 1))),
    ),
    (
      Conv("branch3x3dbl_1", 448),
      Conv("branch3x3dbl_2", 384, (3, 3)),
      (Conv("branch3x3dbl_3a", 384, (1, 3)), Conv("branch3x3dbl_3b", 384, (3, 1))),
    ),
    (pool, Conv("branch_pool", 192)),
  )


STEM: tuple[Step, ...] = (
  Conv("Conv2d_1a_3x3", 32, (3, 3), 2, "VALID"),
  Conv("Conv2d_2a_3x3", 32, (3, 3), 1, "VALID"),
  Conv("Conv2d_2b_3x3", 64, (3, 3)),
  halve,
  Conv("Conv2d_3b_1x1", 80),
  Conv("Conv2d_4a_3x3", 192, (3, 3), 1, "VALID"),
  halve,
)
BLOCKS: dict[str, Branches] = {
  "Mixed_5b": _a(32),
  "Mixed_5c": _a(64),
  "Mixed_5d": _a(64),
  "Mixed_6a": (
    (Conv("branch3x3", 384, (3, 3), 2, "VALID"),),
    (
      Conv("branch3x3dbl_1", 64),
      Conv("branch3x3dbl_2", 96, (3, 3)),
      Conv("branch3x3dbl_3", 96, (3, 3), 2, "VALID"),
    ),
    (halve,),
  ),
  "Mixed_6b": _c(128),
  "Mixed_6c": _c(160),
  "Mixed_6d": _c(160),
  "Mixed_6e": _c(192),
  "Mixed_7a": (
    (Conv("branch3x3_1", 192), Conv("branch3x3_2", 320, (3, 3), 2, "VALID")),
    (
      Conv("branch7x7x3_1", 192),
      Conv("branch7x7x3_2", 192, (1, 7)),
      Conv("branch7x7x3_3", 192, (7, 1)),
      Conv("branch7x7x3_4", 192, (3, 3), 2, "VALID"),
    ),
    (halve,),
  ),
  "Mixed_7b": _e(mean_pool),
  # The mean was meant here too, but the published network takes the largest.
  "Mixed_7c": _e(max_pool),
}


class Outputs(NamedTuple):
  """Features for FID and KID, and the scores of 1008 classes.

  The Inception Score of the papers, and torch-fidelity's, is of `logits_unbiased`:
  the scores before the bias is added.
  """

  pool: Float[Array, "b 2048"]
  logits: Float[Array, "b 1008"]
  logits_unbiased: Float[Array, "b 1008"]


class Block(nn.Module):
  """Branches of the same input, their channels put together."""

  branches: Branches

  @nn.compact
  def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 f"]:
    def apply(step: Step, x: jax.Array) -> jax.Array:
      if isinstance(step, Conv):
        name, features, kernel, stride, padding = step
        y = nn.Conv(features, kernel, stride, padding=padding, name=name)(x)
        return nn.relu(y)
      if isinstance(step, tuple):
        return jnp.concatenate([apply(s, x) for s in step], axis=-1)
      return step(x)

    outputs = []
    for branch in self.branches:
      y = x
      for step in branch:
        y = apply(step, y)
      outputs.append(y)
    return jnp.concatenate(outputs, axis=-1)


class InceptionV3(nn.Module):
  """Pixels in [0, 255], resized to 299 x 299 before -> features and logits.

  Szegedy et al. 2015 (arXiv:1512.00567), as released by Google on 2015-12-05 and
  used by Heusel et al. 2017 (arXiv:1706.08500): means at the border count only the
  pixels there are, the last block takes a maximum, and there are 1008 classes.

  The network is given (pixels - center) / center. center = 128 is TensorFlow's,
  torch-fidelity's and clean-fid's; 127.5 is pytorch-fid's. See resize.py for the
  resizing each of them does.
  """

  center: float = 128.0

  @nn.compact
  def __call__(self, pixels: Float[Array, "b h w 3"]) -> Outputs:
    x = (pixels - self.center) / self.center
    x = Block((STEM,), name="stem")(x)
    for name, branches in BLOCKS.items():
      x = Block(branches, name=name)(x)
    x = x.mean((1, 2))
    scores = nn.Dense(1008, use_bias=False, name="logits")(x)
    bias = self.param("bias", nn.initializers.zeros, (1008,))
    return Outputs(x, scores + bias, scores)


def convert(state: to.StateDict) -> to.Params:
  """From the names of pytorch-fid and torch-fidelity, which are torchvision's."""

  def names(step: Step) -> list[str]:
    if isinstance(step, Conv):
      return [step.name]
    return [n for s in step for n in names(s)] if isinstance(step, tuple) else []

  def block(branches: Branches, prefix: str) -> to.Params:
    return {
      name: to.conv_norm(state, f"{prefix}{name}.conv", f"{prefix}{name}.bn", eps=1e-3)
      for name in names(branches)
    }

  return {
    "stem": block((STEM,), ""),
    **{name: block(branches, f"{name}.") for name, branches in BLOCKS.items()},
    "logits": {"kernel": state["fc.weight"].T},
    "bias": state["fc.bias"],
  }


def path() -> Path:
  """Where the weights are.

  Raises:
    UserError: they are not there.
  """
  return weights.locate(FILE, URL)


def load(file: Path | None = None) -> to.Params:
  """The parameters, from the directory of weights or another file of this format.

  Raises:
    UserError: the file is missing, damaged or of another network.
  """
  file = file or path()
  net, image = InceptionV3(), jnp.zeros((1, 75, 75, 3))
  return to.checked(file, net, convert, weights.read_torch(file), image)
