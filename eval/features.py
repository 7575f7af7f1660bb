"""Pictures -> features of a frozen net, on all devices, kept once they are known."""

import functools
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import grain
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Array, Float, Float64, PyTree, UInt8

from core import arrays, weights
from core.errors import UserError, unknown
from core.log import say
from core.parallel import Parallel
from core.workdir import cache_folder
from eval.images import ImageSet
from eval.metrics import kernel
from nets.pretrained import dinov2, efficientnet, inception, resize

# Of what is computed here: raise it with any change that changes features.
VERSION = 1
# How the sha256 of the weights begins that FID is defined with; it is in their name.
OFFICIAL = "6726825d"


# What resizing is called in tables, and what it is. clean: as clean-fid (Parmar et al.
# 2022, arXiv:2104.11222). legacy_pytorch: as pytorch-fid. legacy_tensorflow: as in the
# graph of Heusel et al. 2017, and torch-fidelity; most old tables.
METHODS: dict[str, resize.Method] = {
  "clean": "pillow_bicubic",
  "legacy_pytorch": "bilinear",
  "legacy_tensorflow": "bilinear_tf1",
}


class FeatureNet(NamedTuple):
  """A frozen network that scores are measured with.

  Attributes:
    name: as in 'FD-EfficientNetLite0'.
    size: the side of the pictures it reads.
    dim: of its features.
    classifier: it gives logits.
    apply: (params, pixels in [0, 255]) -> (features [b, dim], logits [b, k] or None).
    sha256: of the file the weights came from.
    network: its architecture, in words.
  """

  name: str
  size: int
  dim: int
  classifier: bool
  apply: Callable[[PyTree, Array], tuple[Array, Array | None]]
  params: PyTree
  sha256: str
  network: str = ""

  @property
  def provenance(self) -> dict[str, str]:
    """What is stored with every number."""
    return {"features": self.name, "weights_sha256": self.sha256}


class Features(NamedTuple):
  """Of n pictures in their order.

  Attributes:
    values: the features.
    logits: of the classes; None if the net is no classifier.
    sums: `kernel.sums_within` of the values; None where they were not asked for.
  """

  values: Float[np.ndarray, "n d"]
  logits: Float[np.ndarray, "n k"] | None
  sums: Float64[np.ndarray, " n"] | None = None


NETS = (
  "efficientnet_lite0",
  "inception",
  "dinov2_small",
  "dinov2_base",
  "dinov2_large",
  "dinov2_giant",
)


def load(name: str, mode: str = "clean", field: str = "eval.features") -> FeatureNet:
  """The net of that name with its real weights.

  `mode` is how its pictures are resized: pytorch-fid also scales them otherwise.
  `field` is what a refusal calls the setting.

  Raises:
    UserError: unknown name or mode, or the weights are missing or damaged.
  """
  if name not in NETS:
    raise unknown(field, name, NETS)
  if mode not in METHODS:
    raise unknown("eval.resize", mode, METHODS)
  match name:
    case "efficientnet_lite0":
      net, file, size = efficientnet.EfficientNetLite0(), efficientnet.path(), 224
      params, called = efficientnet.load(file), "EfficientNetLite0"
      outputs = lambda out: (out.pool, out.logits)  # noqa: E731
    case "inception":
      center = 127.5 if mode == "legacy_pytorch" else 128.0
      net, file, size = inception.InceptionV3(center), inception.path(), 299
      params, called = inception.load(file), "InceptionV3"
      # Salimans et al. 2016 left out the bias, and so have all since.
      outputs = lambda out: (out.pool, out.logits_unbiased)  # noqa: E731
    case _:
      folder = dinov2.path(name.replace("_", "-"))
      (net, params), file, size = dinov2.load(folder), folder / "model.safetensors", 224
      called = f"DINOv2-{name.removeprefix('dinov2_')}"
      outputs = lambda out: (out, None)  # noqa: E731
  apply = lambda params, x: outputs(net.apply({"params": params}, x))  # noqa: E731
  one = jnp.zeros((1, size, size, 3))
  pool, logits = jax.eval_shape(apply, params, one)
  dim, classifier = pool.shape[-1], logits is not None
  sha256 = weights.sha256(file)
  return FeatureNet(called, size, dim, classifier, apply, params, sha256, repr(net))


class Extractor:
  """Pictures -> features of `net`, compiled once; the last batch is filled up and cut.

  Pictures are read and resized in background threads. Every process reads its rows
  and gets all results, so that whatever follows does not know of devices.

  Args:
    net: the network.
    run: the devices.
    mode: of resizing, among METHODS.
    batch_size: over all devices.

  Raises:
    UserError: the batch does not fit the devices.
  """

  def __init__(self, net: FeatureNet, run: Parallel, mode: str, batch_size: int):
    run.check_batch(batch_size, field="eval.batch_size")
    self.net, self.mode = net, mode
    self._run, self._batch_size = run, batch_size
    self._params = jax.device_put(net.params, run.replicated)
    device = run.mesh.devices.flat[0]
    alone = run.mesh.size == 1 and device.platform == "cpu"
    self._apply = run.run(in_pairs(net.apply) if alone else net.apply)

  def __call__(self, images: ImageSet) -> Features:
    """The features of all pictures, in order.

    Raises:
      UserError: a picture can't be read, or its features are not finite.
    """
    rows = self._batch_size // jax.process_count()
    first = rows * jax.process_index()

    def pixels(batch: int) -> Float[np.ndarray, "b s s 3"]:
      indices = np.arange(rows) + int(batch) * self._batch_size + first
      read = (images.read(i) for i in (indices % images.length).tolist())
      size, mode = self.net.size, self.mode
      return np.concatenate([resized(picture, size, mode) for picture in read])

    batches = grain.MapDataset.range(-(-images.length // self._batch_size)).map(pixels)
    threads = grain.ReadOptions(num_threads=os.cpu_count(), prefetch_buffer_size=8)
    found, pending = [], []
    # Some chips multiply in bfloat16 by default.
    with jax.default_matmul_precision("highest"):
      for batch in batches.to_iter_dataset(threads):
        pending.append(self._apply(self._params, self._run.put(batch)))
        # One batch is computed while the one before is fetched.
        if len(pending) == 2:
          found.append(jax.device_get(pending.pop(0)))
    found += jax.device_get(pending)
    values, logits = zip(*found, strict=True)
    cut = lambda parts: np.concatenate(parts)[: images.length]  # noqa: E731
    values, name = cut(values), self.net.name
    if not np.isfinite(values).all():
      raise UserError(f"{name} gives NaN or infinity for pictures of {images.name}.")
    return Features(values, None if logits[0] is None else cut(logits))

  def cached(self, images: ImageSet, sums: bool = False) -> Features:
    """The same without logits, or what it was before for these pixels and weights.

    One .npz a set in TAOLU_CACHE (or ~/.cache/taolu)/features, with its provenance, and
    one more with `sums`, which take a core a minute or two for 55,000 pictures.

    Raises:
      UserError: as above.
    """
    provenance = {
      "version": VERSION,
      "images": images.sha256(),
      "count": images.length,
      **self.net.provenance,
      "network": self.net.network,
      "resize": self.mode,
    }
    told = json.dumps(provenance)
    name = hashlib.sha256(told.encode()).hexdigest()[:32]
    values = kept(f"{name}.npz", told, images.length, lambda: self(images).values)
    if not sums:
      return Features(values, None)
    within = functools.partial(kernel.sums_within, values)
    return Features(
      values, None, kept(f"{name}-kernel.npz", told, images.length, within)
    )


def in_pairs(apply: Callable[..., PyTree]) -> Callable[..., PyTree]:
  """`apply` of two pictures at a time, or of one where their number is odd.

  The activations of two pictures of 224x224 stay in the caches of a core, where
  EfficientNet-Lite0 takes 1.7 times as long for 50 pictures at once.
  """

  def pairs(params: PyTree, x: Float[Array, "b s s 3"]) -> PyTree:
    some = 2 if len(x) % 2 == 0 else 1
    parts = x.reshape(len(x) // some, some, *x.shape[1:])
    found = jax.lax.map(lambda part: apply(params, part), parts)
    return jax.tree.map(lambda y: y.reshape(len(x), *y.shape[2:]), found)

  return pairs


def resized(
  picture: UInt8[np.ndarray, "h w 3"], size: int, mode: str
) -> Float[np.ndarray, "1 {size} {size} 3"]:
  """A picture as a net reads it, in [0, 255], not rounded."""
  x = resize.resize(picture[None], size, size, METHODS[mode])
  return x.clip(0, 255) if mode == "clean" else x  # its cubic overshoots


def kept(
  name: str, provenance: str, count: int, compute: Callable[[], np.ndarray]
) -> np.ndarray:
  """The numbers of `count` pictures in a file of the cache; computed if it has none."""
  file = cache_folder() / "features" / name
  found = read(file, provenance, count)
  # All processes compute, or none: some may have no file.
  if np.all(multihost_utils.process_allgather(np.asarray(found is not None))):
    return found
  found = compute()
  try:
    arrays.write(file, compress=False, values=found, provenance=provenance)
  except UserError:
    say(f"could not keep features in {file.parent}; set TAOLU_CACHE to another place")
  return found


def read(file: Path, provenance: str, count: int) -> np.ndarray | None:
  """The numbers in a file of `kept`, None if it holds no such ones."""
  try:
    if str(arrays.read(file, "provenance")["provenance"]) != provenance:
      return None
    values = arrays.read(file, "values")["values"]
  except (OSError, KeyError, arrays.Damaged):
    return None
  return values if len(values) == count and np.isfinite(values).all() else None
