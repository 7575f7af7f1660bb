"""From a config to what it names: its family, and what is opened of other runs."""

import functools
import hashlib
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree
from ml_collections import ConfigDict

from core import family as families
from core import parallel, snapshots
from core.checkpoint import Checkpoints, abstract_like
from core.errors import UserError
from core.family import Batch, Family, State
from core.log import say
from core.parallel import Parallel
from core.workdir import read_json, write_atomic
from pipelines import (
  codecs,
  embeddings,
  features,
  published,
  related,
  similarity,
  texts,
)
from pipelines.opened import Opened, chained
from text import encoders


def family(config: ConfigDict, **parts: Any) -> Family:
  """The generator of a config; `parts` are what else it is made of, such as a guide.

  Raises:
    UserError: what the config asks for does not exist or does not fit.
  """
  spec = codecs.spec(config)
  return families.make(config, spec, **published.frozen(config, spec), **parts)


def codec(config: ConfigDict) -> Opened | None:
  """The autoencoder of `data.codec`, at its newest checkpoint; None without one.

  Raises:
    UserError: there is none, or it does not fit the config.
  """
  return _codec(config.to_json_best_effort()) if config.data.codec else None


@functools.lru_cache(4)  # training, its samples and its scores all ask for it
def _codec(text: str) -> Opened:
  config = ConfigDict(json.loads(text))
  theirs = codecs.config_of(config)
  generator, run, state = trained(theirs, Path(config.data.codec))
  # Without what only training needs.
  extra = dict(state.extra)
  if "tracked" in extra:
    kept = {k: v for k, v in extra["tracked"].items() if k != "perceptual"}
    extra["tracked"] = kept
  state = state.replace(params={}, opt={}, extra=extra)
  made, key = codecs.of_family(config, generator), key_of(run, state)
  opened, inner = Opened(made, state, key), codec(theirs)
  return chained(inner, opened) if inner else opened


def embedder(config: ConfigDict) -> Opened | None:
  """The dual encoder of `text.embedding`, as a codec of vectors; None without one.

  Raises:
    UserError: it does not fit, or the family reads no vectors.
  """
  embeddings.check(config)
  if not config.text.embedding:
    return None
  opened = codec(embeddings.config_of(config))
  embeddings.check_dual(config, opened.codec)
  return opened


def key_of(run: Parallel, state: State) -> str:
  """A fingerprint of the weights that a state draws, encodes or embeds with."""
  leaves = jax.tree.leaves(on_host(run, (state.ema, state.extra.get("tracked"))))
  return hashlib.sha256(b"".join(np.asarray(a).tobytes() for a in leaves)).hexdigest()


def pin(config: ConfigDict, workdir: Path) -> None:
  """Notes in `codec.json` which weights lie before the family, or checks them.

  They are those of `data.codec`, or of the frozen net of `clip.image`, and those of
  `text.embedding`; in `text.json`, those of frozen text encoders.

  Raises:
    UserError: a run was trained further, or is another.
  """
  texts.pin(config, workdir)
  found = {}
  if opened := codec(config):
    what = f"the autoencoder in data.codec={config.data.codec}"
    found["sha256"] = opened.key, what
  elif (net := features.net(config)) is not None:
    found["sha256"] = net.sha256, f"clip.image={config.clip.image!r}"
  if opened := embedder(config):
    what = f"the dual encoder in text.embedding={config.text.embedding}"
    found["embedding_sha256"] = opened.key, what
  file = workdir / "codec.json"
  if file.exists():
    stored = read_json(file)
    for field, (key, what) in found.items():
      if stored.get(field) != key:
        raise UserError(
          f"{what} has other weights than when {workdir} began; put them back, or give"
          " another --workdir."
        )
  elif found and jax.process_index() == 0:
    keys = {field: key for field, (key, _) in found.items()}
    write_atomic(file, json.dumps(keys) + "\n")


def teacher(config: ConfigDict, workdir: Path) -> dict[str, PyTree]:
  """The weights that a student starts from: part of its family at a run's start.

  None where `workdir` has a checkpoint, which holds them, and without a teacher.

  Raises:
    UserError: there is no such run, or it does not fit.
  """
  if "distil" not in config:
    return {}
  checkpoints = Checkpoints(workdir, read_only=True)
  begun = checkpoints.latest() is not None
  checkpoints.close()
  if begun:
    return {}
  if not config.distil.teacher:
    say("distil.teacher is '': the student starts from random weights, as its teacher")
    return {}
  _, run, state = trained(related.teacher(config), Path(config.distil.teacher))
  return {"teacher": on_host(run, state.ema["generator"])}


def on_host(run: Parallel, tree: PyTree) -> PyTree:
  """The arrays of a state, of which a host may hold no more than its part."""
  leaves, structure = jax.tree.flatten(tree)
  whole = run.run(lambda leaves: leaves)
  return structure.unflatten(jax.device_get(whole(leaves)))


def example_batch(config: ConfigDict) -> Batch:
  """A batch of one blank example, for shapes; no weights are read.

  Raises:
    UserError: what `codecs.spec` and `embedder` refuse.
  """
  spec = codecs.spec(config)
  cond = jax.tree.map(lambda leaf: np.stack([leaf]), encoders.raw(config.text)("", 0))
  embeddings.check(config)
  if config.text.embedding:
    dual = codecs.coded(embeddings.config_of(config))
    embeddings.check_dual(config, dual)
    vector = np.zeros((1, dual.spec.shape[-1]), np.float32)
    cond = cond.replace(embedding=vector)
  if config.text.similarity_cells:
    cond = similarity.unknown(cond, 1)
  return {
    "x": np.zeros((1, *spec.shape), spec.dtype),
    "cond": cond,
    "_id": np.zeros(1, np.uint32),
    "_mask": np.ones(1, bool),
  }


def shapes(config: ConfigDict, generator: Family) -> State:
  """The state without its numbers; shows whether the networks fit the data.

  Raises:
    UserError: they do not.
  """
  rng = jax.random.key(config.seed)
  return jax.eval_shape(generator.init, rng, example_batch(config))


def trained(config: ConfigDict, workdir: Path) -> tuple[Family, Parallel, State]:
  """The generator of a run, on the devices of the config, at its newest checkpoint.

  For `sample.ema_std` its average has that length, made of the run's snapshots.

  Raises:
    UserError: there is no checkpoint, it does not fit the config, or the average
      can't be made.
  """
  pin(config, workdir)
  run, guide = parallel.make(config.parallel), config.sample.guide
  if guide:
    guide_config = related.guide(config)
    generator = family(config, guide=guide_config)
  else:
    generator = family(config)
  abstract = shapes(config, generator)
  checkpoints = Checkpoints(workdir, read_only=True)
  try:
    state = checkpoints.restore(abstract_like(abstract, run.shardings(abstract)))
  finally:
    checkpoints.close()
  if config.sample.ema_std:
    state = snapshots.reconstruct(config, workdir, state, config.sample.ema_std)
  if guide:
    _, _, theirs = trained(guide_config, Path(guide))
    weights = {"guide": theirs.ema["generator"]}
    state = state.replace(extra=state.extra | weights)
  return generator, run, state
