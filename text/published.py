"""Encoders that Hugging Face has, from a directory, run on all devices of a host."""

import functools
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike

from core import weights
from core.errors import unknown
from nets import clip_text
from nets.pretrained import bert, t5
from nets.pretrained import hugging_face as hf
from text import tokens
from text.encoded import Encode, Encoded, Frozen, Measured

# Of what is computed here and in the networks: raise it with any change of vectors.
VERSION = 1
BATCH = 64  # captions at a time
STEP = 8  # lengths are multiples of it, so that few programs are compiled
# By the model_type of config.json.
NETWORKS = {
  "bert": bert,
  "roberta": bert,
  "xlm-roberta": bert,
  "t5": t5,
  "mt5": t5,
  "umt5": t5,
  "clip": clip_text,
  "clip_text_model": clip_text,
  "siglip": clip_text,
  "siglip_text_model": clip_text,
}


class HuggingFace(Frozen):
  """A `Frozen` in a directory as Hugging Face keeps it."""

  def __init__(
    self,
    name: str,
    directory: Path,
    max_tokens: int,
    dtype: DTypeLike,
    padded: bool = False,
  ):
    """Reads config.json. `padded` encoders fill up each text, and read that too.

    Raises:
      UserError: it cannot be read, or describes what is not built here.
    """
    self.name, self._directory = name, directory
    file = directory / "config.json"
    kind = hf.read_json(file).get("model_type")
    if kind not in NETWORKS:
      raise unknown(f"the model_type in {file}", kind, NETWORKS)
    self._part, options = NETWORKS[kind], {}
    pool, self._unit = pooling(directory)
    if self._part is bert:
      options["pool"] = pool
    self._net = self._part.network(directory, dtype, **options)
    self.dim = self._net.dim
    self.pooled_dim = getattr(self._net, "out", 0) or self.dim
    # SigLIP reads its padding, as it was trained to.
    self._padded = padded or (self._part is clip_text and not self._net.causal)
    self._asked = padded
    most = max_tokens
    if self._part is not t5:
      most = self._net.length - getattr(self._net, "first", 0)
    self.length = most if self._padded else min(max_tokens, most)

  @functools.cached_property
  def key(self) -> str:
    """Of weights, tokenizer, network and length."""
    files = [*hf.files(self._directory), *tokens.paths(self._directory)]
    own = [
      VERSION,
      repr(self._net),
      self._unit,
      self.length,
      tokens.padding(self._directory),
      [weights.sha256(file) for file in files],
      *(["padded"] if self._asked else []),
    ]
    return hashlib.sha256(json.dumps(own).encode()).hexdigest()

  def measured(self, captions: Sequence[str]) -> list[Measured]:
    """See `Frozen`."""
    return tokens.measure(self._directory, captions)

  def load(self) -> Encode:
    """See `Frozen`; on all devices of this host.

    Raises:
      UserError: weights or tokenizer are missing, damaged or of another network.
    """
    mesh = Mesh(np.asarray(jax.local_devices()), "rows")
    whole, rows = (NamedSharding(mesh, PartitionSpec(*a)) for a in ((), ("rows",)))
    params = self._part.load(self._directory, self._net)
    params = jax.device_put(params, whole)
    tokenize = tokens.load(self._directory, self.length)
    fill = tokens.padding(self._directory)

    def encode(captions: Sequence[str]) -> list[Encoded]:
      ids = tokenize(captions)
      # Captions of one length together: little padding is computed.
      order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
      found: dict[int, Encoded] = {}
      for start in range(0, len(order), BATCH):
        which = order[start : start + BATCH]
        length = self.length
        if not self._padded:
          length = min(length, -(-len(ids[which[-1]]) // STEP) * STEP)
        count = 1 << (len(which) - 1).bit_length()
        count += -count % mesh.size
        batch = np.full((count, length), fill, np.int32)
        mask = np.full((count, length), self._padded)
        for row, i in enumerate(which):
          batch[row, : len(ids[i])] = ids[i]
          mask[row, : len(ids[i])] = True
        put = jax.device_put((batch, mask), rows)
        seq, pooled = jax.device_get(forward(self._net, self._unit, params, *put))
        for row, i in enumerate(which):
          found[i] = Encoded(seq[row, mask[row]], pooled[row])
      return [found[i] for i in range(len(ids))]

    return encode


@functools.partial(jax.jit, static_argnums=(0, 1))
def forward(
  net: Any, unit: bool, params: Any, batch: jax.Array, mask: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """seq, pooled in bfloat16; with `unit` the latter has length 1."""
  # Some chips multiply in bfloat16 by default.
  with jax.default_matmul_precision("highest"):
    seq, pooled = net.apply({"params": params}, batch, mask)
  if unit:
    pooled = pooled / jnp.linalg.norm(pooled, axis=-1, keepdims=True)
  return seq.astype(jnp.bfloat16), pooled.astype(jnp.bfloat16)


def pooling(directory: Path) -> tuple[str, bool]:
  """What modules.json, of a sentence encoder, asks for: mean or cls, and unit length.

  Others have the mean.

  Raises:
    UserError: it asks for something else.
  """
  file = directory / "modules.json"
  if not file.exists():
    return "mean", False
  with hf.describing(file, "a sentence encoder"):
    modules = json.loads(file.read_text(encoding="utf-8"))
    kinds = {one["type"].rpartition(".")[2]: one["path"] for one in modules}
    if other := kinds.keys() - {"Transformer", "Pooling", "Normalize"}:
      raise ValueError(f"a module {min(other)} is not built here")
    pool = "mean"
    if "Pooling" in kinds:
      settings = hf.read_json(directory / kinds["Pooling"] / "config.json")
      modes = [k for k, on in settings.items() if k.startswith("pooling_mode_") and on]
      names = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}
      if len(modes) != 1 or modes[0] not in names:
        raise ValueError(f"pooling by {modes} is not built here")
      pool = names[modes[0]]
    return pool, "Normalize" in kinds
