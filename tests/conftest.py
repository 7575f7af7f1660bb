"""Set before JAX starts: simulated devices, the compilation cache, checked shapes."""

import functools
import gc
import math
import os
import types
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# Eight simulated devices, so that pmap and meshes are tested on any machine.
flags = os.environ.get("XLA_FLAGS", "")
os.environ["XLA_FLAGS"] = (
  f"{flags} --xla_force_host_platform_device_count=8"
  # Tests compile for longer than they compute: this more than halves the time.
  " --xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
  " --xla_llvm_disable_expensive_passes=true"
  " --xla_cpu_parallel_codegen_split_count=1"
)
# Compiled programs are kept, small ones too: files and processes have many in common,
# and the second run of the tests is fast.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "jax"))
os.environ.setdefault("TAOLU_CACHE", str(ROOT / ".cache" / "taolu"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import optax  # noqa: E402
import pytest  # noqa: E402
from flax import struct  # noqa: E402
from jax import Array  # noqa: E402
from jax._src.nn import initializers  # noqa: E402
from jax.typing import DTypeLike  # noqa: E402
from jaxtyping import install_import_hook  # noqa: E402
from ml_collections import ConfigDict  # noqa: E402

# JAX makes pytrees of shardings, axis numbers or one example's part, so the fields of
# a PyTreeNode cannot be checked whenever one is made.
struct.PyTreeNode.__no_type_check__ = True

# All else is: the shapes in annotations, at every call, in all our packages.
PACKAGES = {file.parent.name for file in ROOT.glob("[a-z]*/__init__.py")} - {"tests"}
install_import_hook(sorted(PACKAGES), "beartype.beartype")

# Tracing makes many objects and few cycles: Python looks for them less often.
gc.freeze()
gc.set_threshold(100_000, 50, 100)


@pytest.fixture(autouse=True, scope="module")
def programs_are_let_go(request: pytest.FixtureRequest) -> Iterator[None]:
  """Frees what a file compiled.

  Each program holds memory maps, of which Linux allows a process 65,530; one more and
  it dies.
  """
  yield
  for value in vars(request.module).values():
    if hasattr(value, "cache_clear"):
      value.cache_clear()
  jax.clear_caches()
  gc.collect()


def waves(key: Array, shape: Sequence[int], dtype: DTypeLike = float, **_) -> Array:
  """Numbers of mean 0 and variance 1 without a pattern, the same for any key."""
  angles = jnp.arange(math.prod(shape), dtype=jnp.float32) ** 2
  return (math.sqrt(2) * jnp.sin(angles)).astype(dtype).reshape(shape)


@pytest.fixture(scope="module")
def quick_to_compile() -> Iterator[None]:
  """Weights start from `waves`; Adam and `optax.tree.norm` see a tree as one vector.

  For files whose subject is neither: drawing and updating each array is half of what
  XLA compiles of a small network. There is no public way to what initializers draw.
  """
  drawn = dict(vars(jax.random))
  drawn["normal"] = waves
  drawn["truncated_normal"] = lambda key, low, high, *args, **_: waves(key, *args)
  drawn["uniform"] = lambda key, shape, dtype, low=0.0, high=1.0, **_: (
    low + (high - low) * (0.5 + waves(key, shape, dtype) / 2.9)
  )
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(initializers, "random", types.SimpleNamespace(**drawn))
    # Imported here: the hook above must see all our modules first.
    from core import optim

    patch.setattr(optim, "make", functools.partial(as_one_vector, optim.make))
    patch.setattr(optax.tree, "norm", norm_of_one_vector)
    yield


def as_one_vector(
  make: Callable, config: ConfigDict, steps: int
) -> optax.GradientTransformation:
  tx = make(config, steps)
  return tx if config.weight_decay else optax.flatten(tx)  # decay goes by names


def norm_of_one_vector(tree: object) -> Array:
  leaves = [jnp.ravel(a) for a in jax.tree.leaves(tree)]
  return jnp.linalg.norm(jnp.concatenate([jnp.zeros(1), *leaves]))
