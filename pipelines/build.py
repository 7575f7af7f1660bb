"""From a config to the parts it names."""

import functools
import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, PyTree
from ml_collections import ConfigDict

from core import family as families
from core import parallel, snapshots
from core.checkpoint import Checkpoints, abstract_like
from core.errors import UserError
from core.family import Batch, Family, State
from core.log import say
from core.parallel import Parallel
from core.workdir import flat, read_config, read_json, write_atomic
from data.batches import eval_batches, train_batches
from data.source import Dataset
from pipelines import codecs, embeddings, features, published, texts
from pipelines.opened import Opened, chained
from text import encoders
from text.cond import Cond

# What a generator models.
DATA = tuple(f"data.{k}" for k in ("size", "channels", "low_size", "codec", "latents"))
# What raw conditions look like.
RAW = tuple(
  f"text.{k}"
  for k in ("encoder", "max_tokens", "classes", "embedding", "embedding_of_caption")
)
# The same of frozen encoders.
FROZEN = tuple(
  f"text.{k}" for k in ("frozen", "frozen_output", "frozen_dtype", "frozen_as_is")
)
# What a denoiser's output means.
OUTPUT = tuple(f"diffusion.{k}" for k in ("prediction", "sigma_data", "learn_variance"))
# Of networks, what matters to training alone.
TRAINING = (
  "model.dropout",
  "model.dtype",
  "model.remat",
  "model.scan",
  "noise.low_discrepancy",
  "text.drop",
  "text.frozen_drop",
)


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


@functools.lru_cache(2)  # training, its samples and its scores all ask for it
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
  if opened.codec.pictures:
    raise UserError(
      f"the run in text.embedding={config.text.embedding} is an autoencoder; give that"
      " of a dual encoder, such as configs/text/clip.py."
    )
  return opened


def of_captions(
  config: ConfigDict, captions: Sequence[str]
) -> dict[str, Float[np.ndarray, " d"]]:
  """Their vectors by the dual encoder of `text.embedding`."""
  theirs = codecs.config_of(embeddings.config_of(config))
  look_up = texts.encoded(theirs, captions)
  return embeddings.of_captions(theirs.text, embedder(config), look_up, captions)


def raw_conditions(config: ConfigDict, dataset: Dataset) -> Callable[[str, int], Cond]:
  """(caption, label) -> the raw condition, for all captions of a data set.

  The vectors of captions are made here, and held in memory.
  """
  make_cond = encoders.raw(config.text, texts.cached(config))
  if not config.text.embedding_of_caption:
    return make_cond
  spoken = [
    caption
    for i in range(len(dataset))
    for language, found in dataset.captions(i).items()
    if language in config.data.languages
    for caption in found
  ]
  return embeddings.with_captions(make_cond, of_captions(config, spoken))


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
  _, run, state = trained(config_of_teacher(config), Path(config.distil.teacher))
  return {"teacher": on_host(run, state.ema["generator"])}


def on_host(run: Parallel, tree: PyTree) -> PyTree:
  """The arrays of a state, of which a host may hold no more than its part."""
  leaves, structure = jax.tree.flatten(tree)
  whole = run.run(lambda leaves: leaves)
  return structure.unflatten(jax.device_get(whole(leaves)))


def example_batch(config: ConfigDict) -> Batch:
  """A batch of one blank example, for shapes."""
  spec = codecs.spec(config)
  return {
    "x": np.zeros((1, *spec.shape), spec.dtype),
    "cond": conditions(config, [""], [0]),
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


def check_classes(config: ConfigDict, dataset: Dataset) -> None:
  """Raises UserError if text.classes is not the number of classes of the data."""
  if config.text.encoder != "label":
    return
  if not dataset.classes:
    raise UserError(
      f"data set {dataset.name} has no class labels; set text.encoder to 'bytes' or"
      " 'none'."
    )
  if config.text.classes != len(dataset.classes):
    raise UserError(
      f"data set {dataset.name} has {len(dataset.classes)} classes and text.classes is"
      f" {config.text.classes}; set text.classes to {len(dataset.classes)}."
    )


def conditions(
  config: ConfigDict,
  captions: Sequence[str],
  labels: Sequence[int],
  images: Float[np.ndarray, "n h w c"] | None = None,
) -> Cond | dict[str, Cond]:
  """The raw conditions of captions, labels and pictures that drawing starts from.

  Of what several stages draw together (`pipelines/system.py`): those of each.
  """
  if "stages" in config:
    parts = config.stages
    return {name: conditions(parts[name], captions, labels) for name in config.draw}
  make_cond = encoders.raw(config.text, texts.encoded(config, captions))
  conds = [make_cond(*pair) for pair in zip(captions, labels, strict=True)]
  cond = jax.tree.map(lambda *leaves: np.stack(leaves), *conds)
  if embeddings.like_pictures(config):
    cond = embeddings.embed(cond, embedder(config), images, len(captions))
  elif embedder(config):
    vectors = of_captions(config, captions)
    cond = cond.replace(embedding=np.stack([vectors[c] for c in captions]))
  return cond.replace(image=images if config.data.low_size else None)


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
    guide_config = config_of_guide(config)
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


def config_of_guide(config: ConfigDict) -> ConfigDict:
  """The config of the run in `sample.guide`, on the devices of this one.

  Raises:
    UserError: there is no run, it draws other data than this one, or the family has no
      use for a guide.
  """
  if config.family != "diffusion.ddpm":
    raise UserError(
      f"sample.guide is for diffusion.ddpm, and this is {config.family}: set it to ''."
    )
  fields = ("family", *DATA, *RAW, *(FROZEN if texts.used(config) else ()))
  why = "a guide draws the same data from the same conditions"
  return config_of(config, "sample.guide", fields, why)


def config_of_teacher(config: ConfigDict) -> ConfigDict:
  """The config of the run in `distil.teacher`, on the devices of this one.

  Raises:
    UserError: there is no run, its network, noise or data are others than this one's,
      or it has no null condition for `distil.guidance`.
  """
  student = ConfigDict(config.to_dict())
  student.family = config.gan.family
  parts = ("model.", "noise.", "text.")
  network = [k for k in fields_of(student) if k.startswith(parts) and k not in TRAINING]
  if not texts.used(student):
    network = [k for k in network if k not in FROZEN]
  fields = ("family", "data.name", *DATA, *OUTPUT, *network)
  why = "a student has the network of its teacher, and its data"
  theirs = config_of(student, "distil.teacher", fields, why)
  if config.distil.guidance != 1 and not encoders.knows_null(theirs.text):
    raise UserError(
      f"distil.guidance={config.distil.guidance} needs a teacher that was trained"
      f" without its condition at times, and {config.distil.teacher} has text.drop=0;"
      " set distil.guidance to 1."
    )
  return theirs


def config_of(
  config: ConfigDict, setting: str, same: Sequence[str], why: str
) -> ConfigDict:
  """The config of the run whose workdir a setting names, on the devices of this one.

  Args:
    config: has the setting.
    setting: such as 'sample.guide'.
    same: fields that both must agree in.
    why: they must, for the message.

  Raises:
    UserError: there is no run, or a field differs.
  """
  ours = fields_of(config)
  if not (Path(ours[setting]) / "config.json").exists():
    raise UserError(
      f"no run in {setting}={ours[setting]}; give the --workdir of a trained one."
    )
  found = read_config(Path(ours[setting]))
  theirs = fields_of(found)
  for field in same:
    if ours.get(field) != theirs.get(field):
      raise UserError(
        f"the run in {setting}={ours[setting]} has {field}={theirs.get(field)!r}, this"
        f" one {ours.get(field)!r}; {why}."
      )
  found.parallel, found.sample.guide = config.parallel, ""
  found.sample.ema_std = 0.0  # its weights as they were tracked
  return found


def fields_of(config: ConfigDict) -> dict[str, Any]:
  """A config's fields by their dotted names, as its `config.json` has them."""
  return dict(flat(json.loads(config.to_json_best_effort())))


def train_stream(
  config: ConfigDict, dataset: Dataset
) -> Callable[[int], Iterator[Batch]]:
  """first step -> this process's training batches from there on."""
  data = config.data
  make_cond = raw_conditions(config, dataset)
  dataset = encoded(config, dataset, data.train_split)

  def batches(start_step: int) -> Iterator[Batch]:
    return train_batches(
      dataset,
      make_cond,
      seed=config.seed,
      batch_size=data.batch_size,
      languages=tuple(data.languages),
      flip=data.flip,
      start_step=start_step,
      process_index=jax.process_index(),
      process_count=jax.process_count(),
    )

  return batches


def encode_splits(config: ConfigDict, load: Callable[[str], Dataset]) -> None:
  """Encodes what training and evaluation read, where it is not pixels.

  Raises:
    UserError: as `codec`, `codecs.dataset` and `features.dataset`.
  """
  if config.data.codec or embeddings.like_pictures(config) or features.net(config):
    for split in dict.fromkeys((config.data.train_split, config.data.eval_split)):
      encoded(config, load(split), split)


def encoded(config: ConfigDict, dataset: Dataset, split: str) -> Dataset:
  """The data set as the family sees it: pictures, or their latents or features."""
  opened, run = codec(config), parallel.make(config.parallel)
  if opened is None:
    found = features.dataset(config, dataset, split) or dataset
  else:
    found = codecs.dataset(config, opened, run, dataset, split)
  if embeddings.like_pictures(config):
    theirs, seen = embeddings.config_of(config), embedder(config)
    return embeddings.dataset(found, codecs.dataset(theirs, seen, run, dataset, split))
  return found


def eval_stream(config: ConfigDict, dataset: Dataset) -> Iterator[Batch]:
  """This process's rows of the first `config.eval.num_images` examples (0: all)."""
  make_cond = raw_conditions(config, dataset)
  dataset = encoded(config, dataset, config.data.eval_split)
  batches = eval_batches(
    dataset,
    make_cond,
    batch_size=config.eval.batch_size,
    languages=tuple(config.data.languages),
    process_index=jax.process_index(),
    process_count=jax.process_count(),
  )
  wanted = config.eval.num_images or len(dataset)
  for start, batch in zip(itertools.count(0, config.eval.batch_size), batches):
    if start >= wanted:
      return
    batch["_mask"] &= batch["_id"] < wanted
    yield batch
