"""A trained dual encoder, as frozen functions: pictures and captions to unit vectors.

For scores, for choosing among samples, and for families that are conditioned on the
vectors of pictures, such as DALL-E 2's prior and decoder.
"""

from collections.abc import Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree
from ml_collections import ConfigDict

from core import weights
from core.errors import UserError
from core.family import Family, State
from core.workdir import read_config, read_json
from nets.pretrained import clip
from nets.pretrained import hugging_face as hf
from nets.pretrained.resize import resize
from pipelines import build, features, inputs
from pipelines.embed import Dual
from text import tokens
from text.cond import Cond

# What numbers of weights that were trained here are called.
OWN = "alignment score (project-trained)"
# By the sha256 of their model.safetensors, weights of CLIP as OpenAI published them,
# and LAION with OpenCLIP. A name proves nothing: fine-tuned weights keep it.
OFFICIAL = {
  "a2bf730a0c7debf160f7a6b50b3aaf3703e7e88ac73de7a314903141db026dcb": (
    "clip-vit-large-patch14"
  ),
}


def load(path: str, parallel: ConfigDict, field: str = "eval.clip") -> Dual:
  """The dual encoder in a workdir, or in a directory as Hugging Face keeps it.

  Of a workdir the EMA of its newest checkpoint. `field` is what a refusal calls the
  setting.

  Raises:
    UserError: there is none, or one of classes; see `nets/pretrained/clip.py`.
  """
  workdir = Path(path).expanduser()
  file = workdir / "config.json"
  if not file.exists():
    raise UserError(
      f"neither a run nor a model in {field}={path}; give the --workdir of a trained"
      " configs/text/clip.py, or a directory of CLIP or SigLIP from Hugging Face."
    )
  found = read_json(file)
  if "model_type" in found:
    return published(workdir)
  config = read_config(workdir)
  if config.get("family") != "text.clip":
    raise UserError(
      f"the run in {field}={path} is of {config.get('family')}; give that of a"
      " trained configs/text/clip.py."
    )
  if config.text.encoder == "label":
    raise UserError(
      f"the run in {field}={path} knows classes and no captions; give one with"
      " text.encoder='bytes'."
    )
  config.parallel = parallel
  family, run, state = build.trained(config, workdir)
  origin = {
    "clip": path,
    "clip_step": int(state.step),
    "clip_sha256": build.key_of(run, state),
  }
  state = state.replace(params={}, opt={})
  return of_family(config, family, state)._replace(origin=origin)


def of_family(config: ConfigDict, family: Family, state: State) -> Dual:
  """A family's towers with the weights of a state, from pixels on."""
  net, size = features.net(config), config.data.size

  def embed_images(params: PyTree, x: Float[Array, "b h w c"]) -> Float[Array, "b d"]:
    state, own = params
    x = channels(x, 3 if net else config.data.channels)
    if net is None:
      return family.towers.images(state, resize(x, size, size, "pillow_bicubic"))
    pixels = resize(127.5 * (x + 1), net.size, net.size, "pillow_bicubic")
    seen, _ = net.apply(own, jnp.clip(pixels, 0, 255))
    return family.towers.images(state, seen[:, None, None])

  return Dual(
    name=OWN,
    origin={},
    size=net.size if net else size,
    params=(state, net and net.params),
    embed_images=embed_images,
    embed_texts=lambda params, cond: family.towers.texts(params[0], cond),
    conditions=lambda captions: inputs.conditions(
      config, captions, [0] * len(captions)
    ),
    data=config.data,
  )


def channels(x: Float[Array, "b h w c"], count: int) -> Float[Array, "b h w {count}"]:
  """Grey repeated for three channels, or the mean of three."""
  if x.shape[-1] == count:
    return x
  return x.repeat(count, -1) if x.shape[-1] == 1 else x.mean(-1, keepdims=True)


def published(directory: Path) -> Dual:
  """CLIP or SigLIP in a directory: config.json, tokenizer.json, model.safetensors.

  Raises:
    UserError: a file is missing, damaged or of another network.
  """
  both = clip.load(directory)
  length = both.text.length
  tokenize, fill = tokens.load(directory, length), tokens.padding(directory)
  files = hf.files(directory)
  sha256 = "+".join(weights.sha256(file) for file in files)

  def conditions(captions: Sequence[str]) -> Cond:
    ids = np.full((len(captions), length), fill, np.int32)
    mask = np.zeros(ids.shape, bool)
    for row, own in enumerate(tokenize(captions)):
      ids[row, : len(own)], mask[row, : len(own)] = own, True
    return Cond(tokens=ids, mask=mask)

  return Dual(
    name=called(directory, sha256),
    origin={"clip": str(directory), "clip_sha256": sha256},
    size=both.image.size,
    params=both.params,
    embed_images=lambda params, x: both.images(params, channels(x, 3)),
    embed_texts=lambda params, cond: both.texts(params, cond.tokens, cond.mask),
    conditions=conditions,
    settings=repr((both.image, both.mean, both.std)),
  )


def called(directory: Path, sha256: str) -> str:
  """What a score by these weights may be called.

  'CLIP score' is by the weights in `OFFICIAL` alone.
  """
  if sha256 in OFFICIAL:
    return f"CLIP score ({OFFICIAL[sha256]})"
  return f"alignment score ({directory.resolve().name})"
