"""A whole FID, from two folders to the number, against pytorch-fid.

    python benchmarks/fid.py [images a folder] [rounds]

Needs PyTorch and pytorch-fid: the environment of `make parity`. Both use the same file
of random Inception weights and pytorch-fid's resizing, and take turns, so that both
see the same machine; the ratio (theirs / ours: above 1, ours is faster) is what
counts. With fewer than 2,049 pictures a folder the covariances are singular, which our
distance makes use of and theirs does not; so the ratio without it is printed too.
Compiling is not timed: it happens once, and its result is kept on disk.
"""

import importlib
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

try:
  import torch

  # Makes torchvision importable, which pytorch-fid needs.
  conftest = importlib.import_module("tests.parity.conftest")
  from pytorch_fid import fid_score
  from pytorch_fid import inception as peer
except ImportError as error:
  sys.exit(
    f"fid compares with pytorch-fid, but {error.name} is not installed; run"
    " `make parity` once, then .venv-parity/bin/python benchmarks/fid.py."
  )

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from core import parallel
from eval import features
from eval.images import open_images
from eval.metrics.frechet import Moments, frechet_distance
from nets.pretrained import inception

MODE, BATCH, SIZE = "legacy_pytorch", 32, 128


def folders(root: Path, count: int) -> list[Path]:
  """Coarse and fine noise as PNG files."""
  draw, made = np.random.default_rng(0), []
  for name, grain in (("coarse", 8), ("fine", 32)):
    (root / name).mkdir()
    for i in range(count):
      pixels = draw.integers(0, 256, (grain, grain, 3)).astype(np.uint8)
      picture = Image.fromarray(pixels).resize((SIZE, SIZE))
      picture.save(root / name / f"{i:05d}.png")
    made.append(root / name)
  return made


def main(count: str = "128", rounds: str = "3") -> None:
  """Prints seconds of each, the ratio, and where ours go."""
  parallel.keep_freed_memory()
  run = parallel.make(ConfigDict({"backend": "auto", "fsdp": 1, "tensor": 1}))
  with tempfile.TemporaryDirectory() as folder:
    root = Path(folder)
    paths = folders(root, int(count))
    files = [file for path in paths for file in sorted(path.iterdir())[:4]]
    state = conftest.random_inception(
      np.stack([np.asarray(Image.open(f)) for f in files])
    )
    torch.save(state, root / inception.FILE)
    os.environ["TAOLU_WEIGHTS"] = str(root)
    peer.load_state_dict_from_url = lambda *_, **__: state
    workers = min(len(os.sched_getaffinity(0)), 8)
    spent: dict[str, list[float]] = {}

    def timed(part: str, fn: Callable, *args: object) -> object:
      began = time.perf_counter()
      result = fn(*args)
      spent.setdefault(part, []).append(time.perf_counter() - began)
      return result

    net = features.load("inception", MODE)
    extract = features.Extractor(net, run, MODE, BATCH)

    def ours() -> float:
      found = []
      for path in paths:
        values = timed("  our features", extract, open_images(str(path)))
        found.append(timed("  our statistics", Moments.of, values.values))
      return timed("  our distance", frechet_distance, *found)

    def theirs() -> float:
      net = peer.InceptionV3([3])
      found = []
      for path in paths:
        args = (str(path), net, 50, 2048, "cpu", workers)
        compute = fid_score.compute_statistics_of_path
        found += timed("  their features and statistics", compute, *args)
      return timed("  their distance", fid_score.calculate_frechet_distance, *found)

    extract(open_images(str(paths[0])).first(BATCH))
    for _ in range(int(rounds)):
      got, want = timed("ours", ours), timed("pytorch-fid", theirs)
  each = statistics.median(spent["ours"])
  ratio = statistics.median(spent["pytorch-fid"]) / each
  print(f"2 x {count} pictures, {torch.get_num_threads()} threads, {rounds} rounds")
  print(f"FD {got:.6g} here, {want:.6g} there")
  for part in ("pytorch-fid", "ours"):
    print(f"{part:30}{statistics.median(spent[part]):8.2f} s")
  for part in [part for part in spent if part.startswith(" ")]:
    print(f"{part:30}{sum(spent[part]) / int(rounds):8.2f} s")
  print(f"ratio{ratio:33.2f}")
  features_only = sum(spent["  their features and statistics"]) / sum(
    spent["  our features"] + spent["  our statistics"]
  )
  print(f"ratio without the distance{features_only:12.2f}")


if __name__ == "__main__":
  main(*sys.argv[1:])
