"""The networks of a hierarchical variational autoencoder."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer, Key

from core.errors import UserError
from nets import build
from nets.groups import Vec
from nets.ladder import BottomUp, Pass, TopDown, sizes
from text import encoders
from text.cond import Cond
from vae.network import Networks

Maps = tuple[Float[Array, "b _ _ _"], ...]


class Net(nn.Module):
  """Text encoder, the way up and the way down, trained as one.

  Attributes:
    text: raw `Cond` -> encoded, whose `pooled` modulates both ways.
    up: (x, vec) -> maps.
    down: (eps, drawn, vec, maps) -> `Pass`.
  """

  text: nn.Module
  up: BottomUp
  down: TopDown

  def __call__(self, x: Float[Array, "b h w c"], cond: Cond) -> Pass:
    """Runs every part once, to make the parameters."""
    vec = self.embed(cond)
    eps = tuple(jnp.zeros((g, len(x), *place)) for g, *place in self.down.shapes)
    drawn = jnp.ones(sum(self.down.groups), bool)
    return self.descend(eps, drawn, vec, self.ascend(x, vec))

  def embed(self, cond: Cond) -> Vec:
    """Raw condition -> the vector that both ways read; None if there is none."""
    return self.text(cond).pooled

  def ascend(self, x: Float[Array, "b h w c"], vec: Vec) -> Maps:
    """What the posteriors see of x."""
    return self.up(x, vec)

  def descend(
    self,
    eps: tuple[Float[Array, "_ b _ _ _"], ...],
    drawn: Bool[Array, " groups"],
    vec: Vec,
    maps: Maps | None = None,
  ) -> Pass:
    """From the coarsest group to what the likelihood makes p(x|z, y) of."""
    return self.down(eps, drawn, vec, maps)


class Model(Networks):
  """embed(cond), ascend(x, vec) and descend(eps, drawn, vec, maps)."""

  def __post_init__(self) -> None:
    widths, groups = self.config.model.widths, self.config.vae.groups
    for field, value in {"vae.groups": groups, "model.blocks": self.blocks}.items():
      if len(value) != len(widths):
        raise UserError(
          f"{field}={tuple(value)} must have one number for each of"
          f" model.widths={tuple(widths)}."
        )
    if sum(groups) < 1:
      raise UserError("vae.groups must have a group of latents at some resolution.")
    sizes(self.spec.shape[0], len(widths))  # refuses more than there are
    super().__post_init__()

  @property
  def blocks(self) -> tuple[int, ...]:
    """Residual blocks at each resolution on the way up."""
    own, count = self.config.model.blocks, len(self.config.model.widths)
    return (own,) * count if isinstance(own, int) else tuple(own)

  @functools.cached_property
  def net(self) -> Net:
    """The module."""
    vae, model = self.config.vae, self.config.model
    widths, dtype = tuple(model.widths), build.dtype(model)
    return Net(
      encoders.make(self.config.text, dtype),
      BottomUp(widths, self.blocks, dtype, model.remat, model.scan),
      TopDown(
        self.likelihood.channels,
        self.spec.shape[0],
        vae.latent_channels,
        widths,
        tuple(vae.groups),
        dtype,
        model.remat,
        model.scan,
      ),
    )

  def noise(self, keys: Key[Array, " b"]) -> tuple[Float[Array, "_ b _ _ _"], ...]:
    """eps of all groups, from each example's key."""

    def draw(key: Key[Array, ""]) -> list[Float[Array, "_ _ _ _"]]:
      shapes = self.net.down.shapes
      own = jax.random.split(key, len(shapes))
      return [jax.random.normal(*both) for both in zip(own, shapes, strict=True)]

    return tuple(jax.vmap(draw, out_axes=1)(keys))

  def first(self, count: Integer[Array, ""] | int) -> Bool[Array, " groups"]:
    """Which groups are the first `count`, from the coarsest."""
    return jnp.arange(sum(self.config.vae.groups)) < count
