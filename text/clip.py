"""CLIP, Radford et al. 2021 (arXiv:2103.00020), SigLIP and LiT: a dual encoder.

It draws nothing. It tells how well a picture and a caption belong together, as a score
and for retrieval, and gives vectors of both in one space.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree
from ml_collections import ConfigDict

from core import checks
from core.errors import UserError, unknown
from core.family import Batch, Codec, Family, Metrics, Spec, Towers, example_keys
from core.step import from_loss
from nets import build
from nets.clip_image import Head, ImageTower, ResNet
from nets.layers import unit
from text import contrastive, encoders, frozen
from text.cond import Cond

LOSSES = ("infonce", "siglip")
TOWERS = ("vit", "resnet")  # that are trained; all others are frozen nets
LARGEST = 100.0  # of the scale, in InfoNCE


def make(config: ConfigDict, spec: Spec) -> Family:
  """The dual encoder of `config.clip`: towers, linear maps to one space, and a loss.

  u = f(x) / |f(x)| of a picture and v = g(y) / |g(y)| of a caption, by the losses of
  `text/contrastive.py` over the whole batch, wherever its rows are:

    infonce  with t = exp(s) learned, kept at 100 or less (section 2.5)
    siglip   with t = exp(s) and a bias learned

  Captions or pictures that are equal within a batch are not each other's negatives:
  see `contrastive.negatives`.

  `evals` has the loss among the rows of a batch of `eval.batch_size`.

  The text tower is the encoder of `config.text` and its `pooled`. The image tower is a
  `vit` of `model.dim`, `depth`, `heads`, `patch` or a `resnet` of `model.widths`,
  `blocks`; or, as in LiT (Zhai et al. 2022, arXiv:2111.07991), a frozen net whose
  features of each picture come in the place of pixels, under a linear map.

  Its codec makes vectors of pictures, sqrt(dim) u, for a prior to draw (unCLIP), and of
  captions, sqrt(dim) v.

  Args:
    config: reads `clip`, `text`, `model`, `optim`, `data.flip`.
    spec: of the pictures, or of a frozen net's features: [1, 1, d], not pixels.

  Raises:
    UserError: settings that are unknown, of no use or do not go together.
  """
  check(config, spec)
  own, net = config.clip, network(config)
  sigmoid = own.loss == "siglip"

  def init(rng: Array, batch: Batch) -> PyTree:
    params = net.init(rng, jnp.asarray(batch["x"]), batch["cond"])["params"]
    scale = jnp.asarray(-math.log(own.temperature), jnp.float32)
    bias = {"bias": jnp.asarray(own.bias, jnp.float32)} if sigmoid else {}
    return {"towers": params, "scale": scale, **bias}

  def images(params: PyTree, x: Array) -> Float[Array, "b d"]:
    return net.apply({"params": params["towers"]}, x, method="images")

  def texts(params: PyTree, cond: Cond) -> Float[Array, "b d"]:
    return net.apply({"params": params["towers"]}, cond, method="texts")

  def terms(
    params: PyTree, batch: Batch, x: Array, axis: str | None
  ) -> tuple[Float[Array, " b"], Metrics]:
    marks = [contrastive.marks(part) for part in (batch["x"], batch["cond"])]
    pairs = contrastive.Pairs(
      images(params, x),
      texts(params, batch["cond"]),
      jnp.stack(marks, axis=1),
      batch["_mask"],
    )
    rows, scale = contrastive.gathered(pairs, axis), jnp.exp(params["scale"])
    if sigmoid:
      losses = contrastive.sigmoid(rows, scale, params["bias"])
    else:
      losses = contrastive.info_nce(rows, scale)
    shown = {"scale": jnp.broadcast_to(scale, losses.shape)}
    return losses, {"accuracy": contrastive.found(rows), **shown}

  def loss(
    params: PyTree, batch: Batch, rng: Array, axis: str | None
  ) -> tuple[Float[Array, " b"], Metrics]:
    x = jnp.asarray(batch["x"])
    if own.crop < 1:
      x = cropped(x, example_keys(rng, batch["_id"]), own.crop)
    return terms(params, batch, x, axis)

  def evaluated(params: PyTree, batch: Batch, rng: Array) -> Float[Array, " b"]:
    return terms(params, batch, jnp.asarray(batch["x"]), None)[0]

  def project(params: PyTree) -> PyTree:
    if sigmoid:
      return params
    return {**params, "scale": jnp.minimum(params["scale"], math.log(LARGEST))}

  # Numbers of variance 1 or so, for who generates them.
  embedding = Spec((1, 1, own.dim), pixels=False)

  def vectors(params: PyTree, x: Array) -> Float[Array, "b 1 1 d"]:
    return math.sqrt(own.dim) * images(params, x)[:, None, None]

  def of_texts(params: PyTree, cond: Cond) -> Float[Array, "b d"]:
    return math.sqrt(own.dim) * texts(params, cond)

  codec = Codec(embedding, vectors, lambda params, z: z, False, of_texts)
  return from_loss(
    config,
    init=init,
    loss=loss,
    sample=None,
    evals={"loss": evaluated},
    codecs={"latents": codec} if spec.pixels else {},
    towers=Towers(images, texts),
    coupled=True,
    project=project,
    name="clip",
  )


class Net(nn.Module):
  """Both towers, and the map of the captions' vectors.

  Attributes:
    image: pictures -> [b, dim].
    text: raw conditions -> encoded ones.
    dim: of the space that both share.
  """

  image: nn.Module
  text: nn.Module
  dim: int

  def setup(self) -> None:
    self.text_head = nn.Dense(self.dim, use_bias=False)

  def images(self, x: Float[Array, "b h w c"]) -> Float[Array, "b {self.dim}"]:
    """Unit vectors of pictures."""
    return unit(self.image(x))

  def texts(self, cond: Cond) -> Float[Array, "b {self.dim}"]:
    """Unit vectors of captions."""
    return unit(self.text_head(self.text(cond).pooled.astype(jnp.float32)))

  def __call__(self, x: Float[Array, "b h w c"], cond: Cond) -> tuple[Array, Array]:
    """Both."""
    return self.images(x), self.texts(cond)


def network(config: ConfigDict) -> Net:
  """The towers that a config describes.

  Raises:
    UserError: an unknown type or encoder.
  """
  own, model = config.clip, config.model
  dtype = build.dtype(model)
  match own.image:
    case "vit":
      image = ImageTower(
        config.data.size,
        model.patch,
        model.dim,
        model.depth,
        model.heads,
        4 * model.dim,
        out=own.dim,
        remat=model.remat,
        dtype=dtype,
      )
    case "resnet":
      image = ResNet(tuple(model.widths), model.blocks, own.dim, dtype)
    case _:
      image = Head(own.dim)
  return Net(image, encoders.make(config.text, dtype), own.dim)


def check(config: ConfigDict, spec: Spec) -> None:
  """Raises UserError for settings that are unknown, of no use or do not fit."""
  own = config.clip
  if own.loss not in LOSSES:
    raise unknown("clip.loss", own.loss, LOSSES)
  if spec.pixels and own.image not in TOWERS:
    raise unknown("clip.image", own.image, TOWERS)
  if not spec.pixels and own.image in TOWERS:
    raise UserError(f"clip.image={own.image!r} sees pixels: set data.codec to ''.")
  if config.text.encoder == "none":
    raise UserError("text.clip needs captions or classes: set text.encoder to 'bytes'.")
  if config.optim.microbatches != 1:
    raise UserError(
      "text.clip compares each picture with all captions of a batch, so it cannot be"
      f" cut into optim.microbatches={config.optim.microbatches}: set it to 1; to save"
      " memory set model.remat to True."
    )
  if config.text.encoder == "frozen":
    outputs = tuple(output for _, output in frozen.chosen(config.text))
    if "both" in outputs:
      raise UserError(
        "text.clip reads the pooled vector of a caption: set text.frozen_output to"
        f" {('pooled',) * len(outputs)}."
      )
    if any(config.text.frozen_drop):
      checks.refuse(config, "text", frozen_drop=())
  checks.refuse_small_pictures(config)
  checks.refuse(config, "text", drop=0.0)
  checks.refuse(config, "model", dropout=0.0)
  if not spec.pixels and (own.crop < 1 or config.data.flip):
    raise UserError(
      f"the features of clip.image={own.image!r} are those of whole pictures, found"
      " once: set clip.crop to 1.0 and data.flip to False."
    )


def cropped(
  x: Float[Array, "b h w c"], keys: Key[Array, " b"], least: float
) -> Float[Array, "b h w c"]:
  """A square of each picture, enlarged to the picture's size, linearly.

  Its side is uniform in [least, 1] of the picture's, its place uniform. A random square
  is all the augmentation of Radford et al. 2021 (section 2.3).
  """
  size = x.shape[1:3]

  def one(x: Float[Array, "h w c"], key: Key[Array, ""]) -> Float[Array, "h w c"]:
    draws = jax.random.uniform(key, (3,))
    scale = 1 / (least + (1 - least) * draws[0])
    offset = -draws[1:] * (scale - 1) * jnp.asarray(size)
    return jax.image.scale_and_translate(
      x, x.shape, (0, 1), jnp.full(2, scale), offset, "linear", antialias=False
    )

  return jax.vmap(one)(x, keys)
