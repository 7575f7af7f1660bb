"""Set before JAX starts: simulated devices, the compilation cache, checked shapes."""

import gc
import os
from collections.abc import Iterator
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
import pytest  # noqa: E402
from flax import struct  # noqa: E402
from jaxtyping import install_import_hook  # noqa: E402

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
