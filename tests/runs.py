"""What tests of whole runs share: a small folder of pictures, and the command."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from core import parallel
from core.family import Batch, State
from core.train import train
from core.workdir import open_workdir
from data import source
from pipelines import build, inputs

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted(
  file.relative_to(ROOT).as_posix()
  for file in (ROOT / "configs").rglob("*.py")
  if file.name not in ("__init__.py", "base.py", "shapes.py")
)
SYSTEMS = [file for file in FILES if file.startswith("configs/pipelines/")]
COMPARISONS = [file for file in FILES if file.startswith("configs/compare/")]
ABLATIONS = [file for file in FILES if file.startswith("configs/ablations/")]
MANY = (*SYSTEMS, *COMPARISONS, *ABLATIONS)  # runs
CONFIGS = [file for file in FILES if file not in MANY]


def load_config(file: str, variant: str = "tiny") -> ConfigDict:
  """The config of a file under the repository's root."""
  spec = importlib.util.spec_from_file_location("config_under_test", ROOT / file)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config(variant)


def variants(file: str) -> list[str]:
  """The variants of a config file, the plain one first, as its refusal lists them."""
  with pytest.raises(ValueError, match="known: ") as refusal:
    load_config(file, "?")
  return ["", *str(refusal.value).split("known: ")[1].split(", ")]


def on(folder: Path, file: str, **fields: object) -> ConfigDict:
  """A small config for one device, that trains on a `picture_folder`."""
  config = load_config(file)
  config.data.name, config.data.path = "folder", str(folder)
  config.data.match, config.data.eval_split = "", "train"
  config.data.languages, config.parallel.backend = ("en",), "jit"
  config.update_from_flattened_dict(fields)
  return config


def started(config: ConfigDict, workdir: Path) -> State:
  """The state of a run before its first step, which is in `workdir` afterwards."""
  config.train.steps = 0
  own = build.teacher(config, workdir) if "distil" in config else {}
  family, devices = build.family(config, **own), parallel.make(config.parallel)
  stream = inputs.train_stream(config, source.load(config.data, "train"))
  return train(config, family, devices, stream, open_workdir(str(workdir), config))


def random_batch(config: ConfigDict, step: int = 0) -> Batch:
  """A training batch of noise, different at each step."""
  n, size = config.data.batch_size, config.data.size
  shape = (n, size, size, config.data.channels)
  draw = np.random.default_rng(step)
  return {
    "x": draw.uniform(-1, 1, shape).astype(np.float32),
    "cond": inputs.conditions(
      config, ["red heart", "红心"] * (n // 2), [0, 1] * (n // 2)
    ),
    "_id": np.arange(step * n, (step + 1) * n, dtype=np.uint32),
    "_mask": np.ones(n, bool),
  }


def picture_folder(folder: Path, count: int = 24, size: int = 8) -> Path:
  """A `folder` data set: one-coloured squares with captions in two languages."""
  folder.mkdir(parents=True, exist_ok=True)
  lines = []
  for i in range(count):
    colour = tuple(int(c) for c in np.random.default_rng(i).integers(0, 256, 3))
    Image.new("RGB", (size, size), colour).save(folder / f"{i:03d}.png")
    captions = {"en": f"colour {i}", "zh": f"颜色{i}"}
    lines.append(json.dumps({"file": f"{i:03d}.png", "captions": captions}))
  (folder / "captions.jsonl").write_text("\n".join(lines), encoding="utf-8")
  return folder


def command(
  workdir: Path | str, *flags: str, config: str = "configs/quickstart.py:tiny"
):
  """The command line of main.py."""
  return [
    sys.executable,
    str(ROOT / "main.py"),
    f"--config={ROOT / config}",
    f"--workdir={workdir}",
    *flags,
  ]


def on_folder(folder: Path) -> tuple[str, ...]:
  """Overrides that train on a `picture_folder`."""
  return (
    "--config.data.name=folder",
    f"--config.data.path={folder}",
    "--config.data.languages=('en','zh')",
    "--config.data.match=",
    "--config.data.eval_split=train",
  )


def run(argv: list[str], devices: int = 1, **env: str) -> subprocess.CompletedProcess:
  """Runs a command with so many simulated devices, and returns what it printed."""
  return subprocess.run(
    argv,
    env=environment(devices) | env,
    capture_output=True,
    text=True,
    timeout=600,
    check=False,
  )


def environment(devices: int = 1) -> dict[str, str]:
  """This process's environment, with so many simulated devices."""
  flags = f"--xla_force_host_platform_device_count={devices}"
  flags = f"{os.environ['XLA_FLAGS']} {flags}"  # the last one holds
  return os.environ | {"XLA_FLAGS": flags, "PYTHONUTF8": "1"}


def largest_difference(a: object, b: object) -> float:
  """Over all leaves of two trees."""
  a, b = jax.device_get((a, b))
  differences = jax.tree.map(lambda x, y: float(np.max(np.abs(x - y), initial=0)), a, b)
  return float(np.max(jax.tree.leaves(differences)))  # NaN if any is
