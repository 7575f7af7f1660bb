"""The interface of every generator.

A family is a record of pure functions, as an optax optimizer is: it knows
nothing of devices, files or logs, so one loop trains them all.
"""

import importlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int, Integer, Key, PyTree, Shaped, UInt32
from ml_collections import ConfigDict

from core.errors import UserError
from core.noise import Schedule

Batch = Mapping[str, Any]  # {x, cond, _id, _mask}, each with a leading batch axis
Metrics = dict[str, Array]


class State(struct.PyTreeNode):
  """All that training changes; dicts are keyed by the network's name."""

  step: Int[Array, ""]
  params: dict[str, PyTree]
  opt: dict[str, PyTree]
  ema: dict[str, PyTree]
  extra: dict[str, PyTree]


class Samples(NamedTuple):
  """Pictures in [-1, 1], and the same pictures while they form.

  frames: the last is the finished picture, so a single one is; those before show more
    and more of what is drawn, from what all have in common, or was given. Of what is
    drawn in a fixed order pixels to come are 0, tokens -1.
  nfe: how often each picture called the network that draws, a denoiser or a decoder; a
    guided call counts once. What encodes given pictures or decodes latents for another
    family does not count, nor what only the film needs.
  """

  images: Float[Array, "n h w c"]
  frames: Float[Array, "k n h w c"]
  nfe: Int[Array, " n"]


class Given(NamedTuple):
  """Pictures to be edited."""

  images: Float[Array, "n h w c"]
  mask: Float[Array, "n h w 1"]  # 1 where inpainting draws, 0 where it keeps


class Spec(NamedTuple):
  """What a family generates; it does not know if that is an image or a latent."""

  shape: tuple[int, ...]  # of one example, [h, w, c]
  dtype: Any = jnp.float32
  vocab_size: int = 0  # number of token values, 0 for real-valued data
  pixels: bool = True  # [-1, 1] in 256 levels; False for latents and tokens


class Codec(NamedTuple):
  """A family's other use: pictures to what a generator models, and back.

  spec: of what `encode` returns: a map of latents, or of tokens.
  encode: (state, images) -> [B, *spec.shape].
  decode: (state, latents) -> images [B, h, w, c] in [-1, 1].
  pictures: False where `decode` gives no pictures but vectors, [B, 1, 1, d], that
    another generator is conditioned on.
  texts: (state, cond) -> [B, d], of those vectors that pictures and captions share: a
    caption's, from the raw condition of its own tower.
  """

  spec: Spec
  encode: Callable[[Any, Array], Array]
  decode: Callable[[Any, Array], Array]
  pictures: bool = True
  texts: Callable[[Any, Any], Array] | None = None


class Tracked(NamedTuple):
  """What training changes without a gradient, such as a codebook of means.

  init: (rng, params, batch) -> tracked, a dict.
  update: (tracked, sums, rng) -> tracked; `sums` are the loss's third result, added
    up over microbatches and devices.
  """

  init: Callable[[Array, PyTree, Batch], dict[str, PyTree]]
  update: Callable[[dict[str, PyTree], PyTree, Array], dict[str, PyTree]]


class Towers(NamedTuple):
  """A dual encoder: what belongs together lies in one direction.

  images: (state, x) -> unit vectors [B, d], of x as the family is trained on it.
  texts: (state, raw cond) -> unit vectors [B, d].
  """

  images: Callable[[Any, Array], Float[Array, "b d"]]
  texts: Callable[[Any, Any], Float[Array, "b d"]]


class Watch(NamedTuple):
  """The range in which a metric is healthy, and a sentence for when it is not."""

  low: float
  high: float
  advice: str


class Play(NamedTuple):
  """What a generator shows a critic of a batch, and what it has to say itself.

  losses: of each example, to which the critic's term is added.
  reals, fakes: pictures of the data, and of the generator, in pairs.
  metrics: of each example.
  sums: over the rows, for `Tracked`.
  context: a picture that both are seen beside, such as what they were noised to.
  logsnr: how much noise both have.
  """

  losses: Float[Array, " b"]
  reals: Float[Array, "b h w c"]
  fakes: Float[Array, "b h w c"]
  metrics: Metrics = {}
  sums: PyTree = ()
  context: Float[Array, "b h w d"] | None = None
  logsnr: Float[Array, " b"] | None = None


class Objective(NamedTuple):
  """What a family trains, in a form that a critic can be added to (`gan/`).

  init: (rng, batch) -> params.
  play: ((params, tracked), batch, rng, axis) -> Play; `axis` as in `Family.step`.
    tracked["updates"] counts the updates done.
  tracked: what else training changes; None for nothing.
  last: the path of the kernel that makes the picture, in params.
  """

  init: Callable[[Array, Batch], PyTree]
  play: Callable[..., Play]
  tracked: Tracked | None = None
  last: tuple[str, ...] = ()


class Denoiser(NamedTuple):
  """A diffusion as a denoiser of noisy pictures, for another family to learn from.

  init: (rng, batch) -> params.
  schedule: the noise of x_t.
  estimate: (params, x_t, logsnr, raw cond, scale=1) -> the clean picture [B, h, w, c],
    guided by `scale`.
  bounded: an estimate in the range in which it is drawn.
  """

  init: Callable[[Array, Batch], PyTree]
  schedule: Schedule
  estimate: Callable[..., Float[Array, "b h w c"]]
  bounded: Callable[[Float[Array, "b h w c"]], Float[Array, "b h w c"]]


class Family(NamedTuple):
  """A method of generating images.

  init: (rng, batch) -> State
  step: (state, batch, rng, axis=None) -> (State, metrics); `axis` names the
    mapped axis to average over, or None.
  sample: (state, rng, cond, n) -> Samples; `rng` is one key, or n keys. None where
    nothing is drawn.
  evals: name -> ((state, batch, rng) -> [B]), e.g. bits per dimension.
  on_request: names of evals that are not taken unless asked for.
  details: of an eval, what its number depends on, for the record of a score.
  edits: name -> ((state, rng, cond, given) -> Samples), e.g. inpainting.
  codecs: name -> Codec; 'latents' are real-valued, 'tokens' whole numbers.
  averages: whether `State.ema` averages the weights as `config.optim` says.
  objective: for a critic to be added to; None where it cannot be.
  watched: metric -> what it should not leave in training, and what to do then.
  denoiser: of a diffusion whose schedule is fixed; None of all others.
  towers: of a dual encoder; None of all others.
  """

  init: Callable[[Array, Batch], State]
  step: Callable[..., tuple[State, Metrics]]
  sample: Callable[[State, Array, Any, int], Samples] | None
  evals: Mapping[str, Callable[[State, Batch, Array], Float[Array, " b"]]]
  on_request: tuple[str, ...] = ()
  details: Mapping[str, Mapping[str, float | int]] = {}
  edits: Mapping[str, Callable[[State, Array, Any, Given], Samples]] = {}
  codecs: Mapping[str, Codec] = {}
  averages: bool = True
  objective: Objective | None = None
  watched: Mapping[str, Watch] = {}
  denoiser: Denoiser | None = None
  towers: Towers | None = None


def make(config: ConfigDict, spec: Spec, field: str = "family", **parts: Any) -> Family:
  """The family named by `config.family`, e.g. 'diffusion.ddpm'.

  `field` is where the user named it; `parts` are what else its module's `make` takes,
  such as a guide.

  Raises:
    UserError: there is no such module, it has no `make`, or the config lacks a field,
      as that of a run may which is older than the field.
  """
  try:
    module = importlib.import_module(config.family) if config.family else None
  except ModuleNotFoundError as error:
    # Only the family itself may be missing; a missing import inside it is a bug.
    if error.name is None or not f"{config.family}.".startswith(f"{error.name}."):
      raise
    module = None
  if not hasattr(module, "make"):
    raise UserError(
      f"{field}={config.family!r} is not a family: name a module that has make(config,"
      " spec), such as diffusion.ddpm."
    )
  try:
    return module.make(config, spec, **parts)
  except AttributeError as error:
    if not isinstance(error.obj, ConfigDict):
      raise
    raise UserError(
      f"the config lacks the field {error.name!r}, which {field}={config.family!r}"
      " reads: take a config file of that family; if this is of an older run, train"
      " that anew, or add the field to its config.json."
    ) from error


def check_spec(family: str, spec: Spec, latents: bool) -> None:
  """Whether a family of real numbers can model `spec`: pixels, or latents too.

  Raises:
    UserError: tokens, or latents where it cannot.
  """
  if spec.vocab_size:
    raise UserError(
      f"{family} draws real numbers, not tokens: set data.latents to 'latents'."
    )
  if not (spec.pixels or latents):
    raise UserError(f"{family} draws pixels, not latents: set data.codec to ''.")


def example_keys(rng: Key[Array, "*n"], ids: UInt32[Array, " b"]) -> Key[Array, " b"]:
  """One key an example: fold_in(rng, id), or `rng` itself if it is a key each.

  All draws of an example come from its key, so that they do not depend on how
  a batch is cut over devices, hosts or microbatches.
  """
  if rng.ndim == 1:
    return rng
  return jax.vmap(jax.random.fold_in, (None, 0))(rng, ids)


def keys_at(keys: Key[Array, " n"], i: Integer[Array, ""] | int) -> Key[Array, " n"]:
  """The key of draw i of each example."""
  return jax.vmap(jax.random.fold_in, (0, None))(keys, i)


def sample_keys(rng: Key[Array, "*n"], n: int) -> Key[Array, " n"]:
  """`example_keys` for n samples, numbered from 0."""
  return example_keys(rng, jnp.arange(n, dtype=jnp.uint32))


def count_params(params: PyTree[Shaped[Array, "..."]]) -> int:
  """How many numbers a network has."""
  return sum(leaf.size for leaf in jax.tree.leaves(params))


def fingerprint(tree: PyTree[Shaped[Array, "..."]]) -> Float[Array, "2"]:
  """Two numbers that change with any leaf: sums weighted by the leaf's place."""
  leaves = [leaf.astype(jnp.float32) for leaf in jax.tree.leaves(tree)]
  sums = [(i + 1) * jnp.sum(leaf) for i, leaf in enumerate(leaves)]
  squares = [(i + 1) * jnp.sum(leaf * leaf) for i, leaf in enumerate(leaves)]
  return jnp.stack([sum(sums), sum(squares)])
