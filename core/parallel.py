"""One device, many devices, many hosts: where arrays live and how a step compiles.

Three backends give the same parameters, since every draw is keyed by example
and every mean is over the global batch:

    jit    one device
    pmap   every device holds the whole state and a slice of the batch
    mesh   jit over a mesh (data, fsdp, tensor): the batch is cut over the first
           two, each parameter over the last two as `RULES` say, and made whole where
           a layer uses it, but for the layers in `TENSOR`, whose work is cut too

In all three a `State` is a tree of global arrays, so checkpoints do not know
how many devices wrote them. Distribution itself is JAX's.
"""

import ctypes
import functools
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree
from ml_collections import ConfigDict

from core.errors import UserError, unknown


def keep_freed_memory() -> None:
  """Tells glibc to keep memory that a step frees for the next one.

  XLA's CPU backend asks for its buffers anew at every step; by default glibc
  returns large ones to the system, which then clears each page again. It holds for
  the whole process. Must come before the first arrays.
  """
  trim_threshold, top_pad, mmap_max, arena_max = -1, -2, -4, -8  # <malloc.h>
  if not sys.platform.startswith("linux") or jax.default_backend() != "cpu":
    return
  mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
  if mallopt is not None:
    for option, value in (
      (trim_threshold, -1),
      (top_pad, 2**28),
      (mmap_max, 0),
      (arena_max, 1),
    ):
      mallopt(option, value)


MIN_SHARDED = 1024  # elements
# Which axis of a parameter is cut over fsdp and tensor, by its name: the first of these
# that divides. Layers may be stacked in front. Gathered along the inputs, a device's
# part stays in one piece.
RULES = {
  "kernel": (-2, -1),  # of linear maps and convolutions: inputs, outputs
  "embedding": (-2, -1),  # rows, features
  "positions": (-1,),
  "targets": (-1,),
}
OTHERS = (-1, -2)
# The axis of a layer's kernel that tensor alone cuts: the devices compute some outputs
# each of the first layer of a pair, and sum over these inputs of the second
# (Megatron-LM, Shoeybi et al. 2019, arXiv:1909.08053, section 3).
TENSOR = {"mlp_in": -1, "mlp_out": -2, "down": -2, "q": -1, "out": -2}


def whole(weights: Array, cut: int | None = None) -> Array:
  """Weights that a layer is about to use, on all devices if each has a part of them.

  Said at each layer, and so inside its loop, or XLA may as well leave the weights where
  they are and send the activations, which are many times as large. `cut` is the axis,
  from the last, that stays cut over tensor, where that divides it.
  """
  if jax.sharding.get_abstract_mesh().empty:
    return weights
  spec = [None] * weights.ndim
  if cut is not None and tensor_ways() > 1 and weights.shape[cut] % tensor_ways() == 0:
    spec[cut] = "tensor"
  return jax.lax.with_sharding_constraint(weights, PartitionSpec(*spec))


def tensor_ways() -> int:
  """The devices that share the work of a layer, where a step is traced."""
  return dict(jax.sharding.get_abstract_mesh().shape).get("tensor", 1)


@dataclass(frozen=True)
class Parallel:
  """A backend on a mesh of devices with axes (data, fsdp, tensor)."""

  backend: str
  mesh: Mesh

  @property
  def replicated(self) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(self.mesh, PartitionSpec())

  @property
  def rows(self) -> NamedSharding:
    """The leading axis cut over data and fsdp; over tensor devices have the same."""
    return NamedSharding(self.mesh, PartitionSpec(("data", "fsdp")))

  @property
  def parts(self) -> int:
    """How many parts a batch is cut into."""
    return self.mesh.size // self.mesh.shape["tensor"]

  def shardings(self, tree: PyTree) -> PyTree:
    """Where each leaf of a state lives: cut over fsdp and tensor, see `place`."""
    ways = dict(self.mesh.shape)

    def placed(path: tuple, leaf: Any) -> NamedSharding:
      *_, layer, name = (None, None, *(getattr(key, "key", None) for key in path))
      return NamedSharding(self.mesh, place(ways, layer, name, leaf.shape))

    return jax.tree_util.tree_map_with_path(placed, tree)

  def check_batch(
    self, batch_size: int, microbatches: int = 1, field: str = "data.batch_size"
  ) -> None:
    """Raises UserError if the global batch `field` can't be cut evenly."""
    if microbatches < 1:
      raise UserError(f"optim.microbatches={microbatches} must be 1 or more.")
    ways = self.parts * microbatches
    if batch_size < 1 or batch_size % ways:
      each = self.mesh.shape["tensor"]
      raise UserError(
        f"{field}={batch_size} does not divide by {self.mesh.size} devices"
        f"{f' / parallel.tensor={each}' if each > 1 else ''} x {microbatches}"
        f" microbatches; use a multiple of {ways}."
      )

  def put(self, batch: PyTree) -> PyTree:
    """This process's rows -> the global batch, cut over all devices."""
    return jax.tree.map(
      lambda a: jax.make_array_from_process_local_data(self.rows, np.asarray(a)), batch
    )

  def init(self, fn: Callable[..., PyTree], *args: Any) -> PyTree:
    """fn(*args), computed where its result is to live."""
    shapes = jax.eval_shape(fn, *args)
    return jax.jit(fn, out_shardings=self.shardings(shapes))(*args)

  def run(self, fn: Callable[..., PyTree]) -> Callable[..., PyTree]:
    """`fn` compiled for sampling and evaluation; results are on every device."""
    return jax.jit(self.sharded(fn), out_shardings=self.replicated)

  def sharded(self, fn: Callable[..., PyTree]) -> Callable[..., PyTree]:
    """`fn` traced so that its layers know of parameters in parts, see `whole`."""
    if self.mesh.shape["fsdp"] == self.mesh.shape["tensor"] == 1:
      return fn

    @functools.wraps(fn)
    def within(*args: Any) -> PyTree:
      with jax.sharding.use_abstract_mesh(self.mesh.abstract_mesh):
        return fn(*args)

    return within

  def compile_step(
    self, step: Callable[..., tuple[PyTree, PyTree]], state: PyTree, batch: PyTree
  ) -> "Step":
    """Compiles `(state, host batch, rng) -> (state, metrics)`, once.

    The state's buffers are reused, so the one passed in is gone afterwards.
    """
    local = len(self.mesh.local_devices)
    put = lambda batch: self.put(self.cut(batch, local))  # noqa: E731
    return Step(self.lower_step(step, state, put(batch)).compile(), put)

  def cut(self, batch: PyTree, devices: int) -> PyTree:
    """Rows as the step takes them: of pmap [n, ...] -> [devices, n / devices, ...]."""
    if self.backend != "pmap":
      return batch
    return jax.tree.map(
      lambda a: a.reshape(devices, a.shape[0] // devices, *a.shape[1:]), batch
    )

  def lower_step(
    self, step: Callable[..., tuple[PyTree, PyTree]], state: PyTree, batch: PyTree
  ) -> jax.stages.Lowered:
    """The step for these devices, before XLA; state and batch (`cut`) may be shapes."""
    if self.backend == "pmap":
      mapped = jax.pmap(
        functools.partial(step, axis="batch"),
        axis_name="batch",
        in_axes=(None, 0, None),
        out_axes=(None, None),
        donate_argnums=0,
        devices=list(self.mesh.devices.flat),
      )
      # With several processes pmap takes no shape for what all of them have.
      return mapped.lower(state, batch, jax.random.key(0))
    shards = self.shardings(state)
    jitted = jax.jit(
      self.sharded(step),
      donate_argnums=0,
      in_shardings=(shards, self.rows, self.replicated),
      out_shardings=(shards, self.replicated),
    )
    return jitted.lower(state, batch, jax.eval_shape(jax.random.key, 0))


def place(
  ways: Mapping[str, int], layer: str | None, name: str | None, shape: Sequence[int]
) -> PartitionSpec:
  """How a parameter is cut over fsdp and tensor, by its name and its layer's.

  An optimizer's moments and averages have their parameter's names, and so its place.
  Small ones (biases, norms) stay whole: gathering them costs more than they do.
  """
  both = ways["fsdp"] * ways["tensor"]
  if both == 1 or math.prod(shape) < MIN_SHARDED:
    return PartitionSpec()
  spec: list[Any] = [None] * len(shape)
  shared = ways["tensor"] > 1 and name == "kernel"
  own = TENSOR.get(layer) if shared else None
  if own is not None and shape[own] % ways["tensor"] == 0:
    spec[own] = "tensor"
    other = -3 - own
    if shape[other] % ways["fsdp"] == 0:
      spec[other] = "fsdp"
    return PartitionSpec(*spec)
  for axes, count in ((("fsdp", "tensor"), both), ("fsdp", ways["fsdp"])):
    for axis in RULES.get(name, OTHERS):
      if len(shape) >= -axis and count > 1 and shape[axis] % count == 0:
        spec[axis] = axes
        return PartitionSpec(*spec)
  return PartitionSpec()


@dataclass(frozen=True)
class Step:
  """A compiled training step; it can't recompile, a new shape is an error."""

  compiled: Any
  put: Callable[[PyTree], PyTree]

  def __call__(self, state: PyTree, batch: PyTree, rng: Array) -> tuple[PyTree, PyTree]:
    """(state, this process's rows, key) -> (state, metrics)."""
    return self.compiled(state, self.put(batch), rng)

  def memory(self) -> int:
    """Bytes a device needs at the step's peak; 0 where XLA does not tell."""
    stats = self.compiled.memory_analysis()
    return peak(stats) if stats else 0


def peak(stats: Any) -> int:
  """Bytes a device needs at a program's peak, from its `memory_analysis()`."""
  return (
    stats.argument_size_in_bytes
    + stats.output_size_in_bytes
    + stats.temp_size_in_bytes
    - stats.alias_size_in_bytes
  )


def make(config: ConfigDict, devices: Sequence[jax.Device] | None = None) -> Parallel:
  """The backend of `config.parallel`; 'auto' takes the simplest that fits.

  auto: jit on one device; mesh if fsdp or tensor > 1; else pmap. `devices` are all of
  this run unless others are given, which may be of a machine that is not here.

  Raises:
    UserError: unknown backend, fsdp or tensor that does not divide the devices, or one
      with a backend that can't shard.
  """
  backend, fsdp, tensor = config.backend, config.fsdp, config.tensor
  devices = np.array(jax.devices() if devices is None else devices)
  if backend == "auto":
    one = "pmap" if devices.size > 1 else "jit"
    backend = "mesh" if fsdp * tensor > 1 else one
  if backend not in ("jit", "pmap", "mesh"):
    raise unknown("parallel.backend", backend, ("auto", "jit", "pmap", "mesh"))
  if backend == "jit":
    if jax.process_count() > 1:
      raise UserError(
        f"parallel.backend='jit' runs on one device, but there are"
        f" {jax.process_count()} processes; use auto, pmap or mesh."
      )
    devices = devices[:1]
  for name, ways in (("fsdp", fsdp), ("tensor", tensor)):
    if ways < 1 or devices.size % ways or (ways > 1 and backend != "mesh"):
      raise UserError(
        f"parallel.{name}={ways} does not fit backend {backend!r} on {devices.size}"
        " devices: it needs backend mesh and must divide the device count."
      )
  if devices.size % (fsdp * tensor):
    raise UserError(
      f"parallel.fsdp={fsdp} times parallel.tensor={tensor} must divide the device"
      f" count, {devices.size}."
    )
  local = sum(d.process_index == devices[0].process_index for d in devices.flat)
  if local % tensor:
    raise UserError(
      f"parallel.tensor={tensor} must divide the {local} devices of a process: those"
      " that share a layer's work read the same pictures."
    )
  axes = ("data", "fsdp", "tensor")
  return Parallel(backend, Mesh(devices.reshape(-1, fsdp, tensor), axes))
