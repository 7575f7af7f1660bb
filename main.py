"""taolu: flags -> config -> mode. README.md lists the commands."""

import functools
import sys
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

from core import cli, parallel, snapshots
from core import train as training
from core.errors import UserError
from core.workdir import check_workdir, open_workdir
from data import source
from eval.evaluate import Scorer, in_training, usual
from pipelines import build, draw, inputs, pods, stages, system, texts

FLAGS = flags.FLAGS
config_flags.DEFINE_config_file("config", None, "configs/FILE.py[:variant]")
flags.DEFINE_string("workdir", None, "folder of the run")
flags.DEFINE_multi_string("image", [], "what to edit or enlarge; repeatable")
flags.DEFINE_string("mask", "", "picture, white where sample.edit=inpaint draws")
flags.DEFINE_string("stage", "", "which part of a system; '' for all")
flags.DEFINE_string("topology", "", "what to compile for, such as v5e:16x16")
flags.DEFINE_multi_string("prompt", [], "what to draw (--mode=sample); repeatable")


def train(config: ConfigDict, path: str) -> None:
  """Trains; writes a grid of samples and scores at their cadence."""
  config.sample.guide = ""  # what is drawn in training is the model's own
  family = build.family(config, **build.teacher(config, Path(path)))
  run = parallel.make(config.parallel)
  run.check_batch(config.data.batch_size, config.optim.microbatches)
  build.shapes(config, family)
  check_workdir(path, config)
  load = functools.cache(functools.partial(source.load, config.data))
  data, held_out = load(config.data.train_split), load(config.data.eval_split)
  inputs.check_classes(config, data)
  texts.check(config, load, Path(path))
  grid = draw.preview(config, family, run, lambda: held_out, Path(path) / "samples")
  metrics = tuple(config.eval.train_metrics) or in_training(config, family)
  scorer = Scorer(config, family, run, Path(path), metrics, load)
  workdir = open_workdir(path, config)
  build.pin(config, workdir)
  inputs.encode_splits(config, load)
  hooks = [
    *snapshots.hooks(config, workdir),  # first: no checkpoint may be without its own
    training.Hook(config.train.sample_every, grid),
    training.Hook(config.train.eval_every, scorer.log),
  ]
  training.train(config, family, run, inputs.train_stream(config, data), workdir, hooks)


def sample(config: ConfigDict, path: str) -> None:
  """Writes pictures of each --prompt, and of how they form, to samples/."""
  config, family, run, state = system.opened(config, path)
  load = functools.cache(lambda: source.load(config.data, config.data.eval_split))
  asked, folder = (FLAGS.prompt, FLAGS.image, FLAGS.mask), Path(path) / "samples"
  for file in draw.request(config, family, run, load, *asked)(state, folder):
    print(file)


def score(config: ConfigDict, path: str) -> None:
  """Scores the newest EMA weights; writes eval.json."""
  config, family, run, state = system.opened(config, path)
  load = functools.cache(functools.partial(source.load, config.data))
  metrics = tuple(config.eval.metrics) or usual(config, family, load)
  Scorer(config, family, run, Path(path), metrics, load).write(state)


def prepare(config: ConfigDict, path: str) -> None:
  """Builds the data set, its texts and latents, ahead of time; needs no workdir."""
  build.example_batch(config)  # refuses what does not fit before the data are built
  source.prepare(config.data)
  load = functools.cache(functools.partial(source.load, config.data))
  texts.prepare(config, load)
  inputs.encode_splits(config, load)


MODES = {"train": train, "sample": sample, "eval": score, "prepare": prepare}
flags.DEFINE_enum("mode", "train", [*MODES, "compile"], "what to do")


def main() -> None:
  """Does what the command line says."""
  config = cli.parse(sys.argv)
  if FLAGS.mode == "compile":
    return pods.report(config, FLAGS.workdir, FLAGS.topology, FLAGS.stage)
  if not FLAGS.workdir and FLAGS.mode != "prepare":
    raise UserError(f"--mode={FLAGS.mode} needs --workdir=DIR.")
  parallel.initialize()
  parallel.keep_freed_memory()
  cli.be_quiet()
  for own, path in stages.runs(config, FLAGS.workdir, FLAGS.mode, FLAGS.stage):
    MODES[FLAGS.mode](own, path)


if __name__ == "__main__":
  cli.leave(cli.status(main))
