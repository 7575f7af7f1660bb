"""Whole scores of the same folders against torch-fidelity, pytorch-fid and clean-fid.

From files to numbers: reading, resizing, network, statistics, distance. All share one
file of random Inception weights, with batch norms that fit the pictures, so that the
features vary as real ones do.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch_fidelity
from cleanfid import fid as clean_fid
from PIL import Image, ImageFilter
from pytorch_fid import fid_score
from pytorch_fid import inception as pytorch_fid

from core import parallel
from eval import score
from nets.pretrained import inception
from tests.parity.conftest import random_inception

# The peers warn of much.
pytestmark = pytest.mark.filterwarnings("ignore")

COUNT = 16
CLOSE = 1e-3  # relative


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
  """Sharp and blurred pictures of several sizes."""
  draw = np.random.default_rng(0)
  root = tmp_path_factory.mktemp("pictures")
  for name, radius in (("blurred", 1.5), ("sharp", 0.3)):
    (root / name).mkdir()
    for i in range(COUNT):
      size = (320, 200) if i % 2 else (64, 64)
      coarse = draw.integers(0, 256, (8, 8, 3)).astype(np.uint8)
      picture = Image.fromarray(coarse).resize(size, Image.Resampling.NEAREST)
      blur = ImageFilter.GaussianBlur(radius)
      picture.filter(blur).save(root / name / f"{i:02d}.png")
  return root / "blurred", root / "sharp"


@pytest.fixture(scope="module")
def weights(folders, tmp_path_factory: pytest.TempPathFactory) -> Path:
  """The directory of weights."""
  files = [file for folder in folders for file in sorted(folder.glob("*.png"))[:4]]
  pictures = [np.asarray(Image.open(file).resize((299, 299))) for file in files]
  folder = tmp_path_factory.mktemp("weights")
  torch.save(random_inception(np.stack(pictures)), folder / inception.FILE)
  return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
  return tmp_path_factory.mktemp("cache")


@pytest.fixture
def ours(folders, weights, cache, tmp_path, monkeypatch):
  """(metrics, mode) -> value by metric, from the command."""
  monkeypatch.setenv("TAOLU_WEIGHTS", str(weights))
  monkeypatch.setenv("TAOLU_CACHE", str(cache))
  # A setting for the whole process.
  monkeypatch.setattr(parallel, "keep_freed_memory", lambda: None)

  def run(metrics: str, mode: str) -> dict[str, float]:
    file = tmp_path / "scores.jsonl"
    flags = ["--features=inception", f"--resize={mode}", "--batch_size=8"]
    argv = [*map(str, folders), f"--metrics={metrics}", f"--output={file}", *flags]
    assert score.main(argv) == 0
    rows = map(json.loads, file.read_text().splitlines())
    return {row["metric"].removesuffix("-InceptionV3"): row["value"] for row in rows}

  return run


def test_torch_fidelity(folders, weights, ours) -> None:
  theirs = torch_fidelity.calculate_metrics(
    input1=str(folders[0]),
    input2=str(folders[1]),
    isc=True,
    fid=True,
    kid=True,
    prc=True,
    kid_subsets=1,
    kid_subset_size=COUNT,  # the whole sets
    feature_extractor="inception-v3-compat",
    feature_layer_prc="2048",
    feature_extractor_weights_path=str(weights / inception.FILE),
    batch_size=1,  # it stacks a batch, and the sizes differ
    cuda=False,
    cache=False,
    verbose=False,
  )
  got = ours("fd,kid,is,prdc", "legacy_tensorflow")
  for name, key in (
    ("FD", "frechet_inception_distance"),
    ("KD", "kernel_inception_distance_mean"),
    ("IS", "inception_score_mean"),
    ("precision", "precision"),
    ("recall", "recall"),
  ):
    assert got[name] == pytest.approx(theirs[key], rel=CLOSE), name
    if name in ("precision", "recall"):
      assert 0 < got[name] < 1, name  # else there is little to agree on
  assert got["FD"] > 1
  assert got["IS"] > 1.1


def test_pytorch_fid(folders, weights, ours, monkeypatch) -> None:
  state = torch.load(weights / inception.FILE)
  monkeypatch.setattr(pytorch_fid, "load_state_dict_from_url", lambda *_, **__: state)
  theirs = fid_score.calculate_fid_given_paths(
    [str(folder) for folder in folders], 1, "cpu", 2048, num_workers=0
  )
  got = ours("fd", "legacy_pytorch")
  assert got["FD"] == pytest.approx(theirs, rel=CLOSE)


def test_clean_fid(folders, weights, ours, monkeypatch) -> None:
  state = torch.load(weights / inception.FILE)
  monkeypatch.setattr(pytorch_fid, "load_state_dict_from_url", lambda *_, **__: state)
  net = pytorch_fid.InceptionV3(resize_input=False, normalize_input=False).eval()

  # What the network inside its TorchScript file does with resized pixels.
  def features(x: torch.Tensor) -> torch.Tensor:
    return net((x - 128) / 128)[0].flatten(1)

  a, b = (
    clean_fid.get_folder_features(
      str(folder), features, num_workers=0, batch_size=8, device="cpu", mode="clean",
      verbose=False,
    )
    for folder in folders
  )  # fmt: skip
  got = ours("fd,kid", "clean")
  assert got["FD"] == pytest.approx(clean_fid.fid_from_feats(a, b), rel=CLOSE)
  kid = clean_fid.kernel_distance(a, b, num_subsets=1, max_subset_size=COUNT)
  assert got["KD"] == pytest.approx(kid, rel=CLOSE)
