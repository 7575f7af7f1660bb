"""One process of several, for tests: trains a tiny config on a folder of pictures.

python -m tests.worker join               joins the others, then sleeps
python -m tests.worker train PICTURES WORKDIR STEPS FSDP
"""

import sys
import time
from pathlib import Path

from core import cli, hosts, parallel
from core.family import State
from core.train import train
from core.workdir import open_workdir
from data import source
from pipelines import build, inputs
from tests.runs import on


def trained(
  pictures: Path, workdir: Path, steps: int, fsdp: int = 1, devices: list | None = None
) -> State:
  """The state after so many steps on these devices, with a checkpoint every second."""
  config = on(pictures, "configs/quickstart.py")
  config.parallel.backend, config.parallel.fsdp = "mesh" if fsdp > 1 else "auto", fsdp
  config.optim.schedule, config.train.steps = "constant", steps
  config.train.keep, config.model.depth, config.text.encoder = 10, 1, "none"
  run = parallel.make(config.parallel, devices)
  stream = inputs.train_stream(config, source.load(config.data, "train"))
  opened = open_workdir(str(workdir), config)
  return train(config, build.family(config), run, stream, opened)


def main() -> None:
  """Does what the command line says."""
  hosts.initialize()
  print("joined", flush=True)
  match sys.argv[1:]:
    case ["join"]:
      time.sleep(120)
    case ["train", pictures, workdir, steps, fsdp]:
      cli.be_quiet()
      trained(Path(pictures), Path(workdir), int(steps), int(fsdp))


if __name__ == "__main__":
  cli.leave(cli.status(main))
