"""taolu: flags -> config -> mode. README.md lists the commands."""

import functools
import sys
from pathlib import Path

import jax
from absl import flags
from ml_collections import ConfigDict, config_flags

from core import cli, parallel, snapshots
from core.errors import UserError
from core.train import Hook
from core.train import train as run_training
from core.workdir import open_workdir, reopen_workdir
from data import source
from eval.evaluate import Scorer, in_training, usual
from pipelines import build, given, sample

FLAGS = flags.FLAGS
config_flags.DEFINE_config_file("config", None, "configs/FILE.py[:variant]")
flags.DEFINE_string("workdir", None, "folder of the run")
flags.DEFINE_multi_string("image", [], "what to edit or enlarge; repeatable")
flags.DEFINE_string("mask", "", "picture, white where sample.edit=inpaint draws")
flags.DEFINE_multi_string("prompt", [], "what to draw (--mode=sample); repeatable")


def train(config: ConfigDict, path: str) -> None:
  """Trains; writes a grid of samples and scores at their cadence."""
  config.sample.guide = ""  # what is drawn in training is the model's own
  family, run = build.family(config), parallel.make(config.parallel)
  run.check_batch(config.data.batch_size, config.optim.microbatches)
  build.shapes(config, family)
  load = functools.cache(functools.partial(source.load, config.data))
  data, held_out = load(config.data.train_split), load(config.data.eval_split)
  build.check_classes(config, data)
  prompts = sample.prompts_for(config, [], lambda: held_out)
  labels = sample.labels_for(config, prompts, lambda: held_out)
  small = given.small_pictures(config, [], prompts, lambda: held_out)
  each = -(-config.sample.num_images // len(prompts))
  sampler = sample.sampler(config, family, run, prompts, labels, each, small)
  metrics = tuple(config.eval.train_metrics) or in_training(family)
  scorer = Scorer(config, family, run, Path(path), metrics, load)
  workdir = open_workdir(path, config)
  build.pin(config, workdir)
  build.encode_splits(config, load)
  grid = sample.preview(sampler, len(prompts), workdir / "samples")
  hooks = [
    # Before what may fail: a checkpoint of a step must not be without its snapshot.
    *snapshots.hooks(config, workdir),
    Hook(config.train.sample_every, grid),
    Hook(config.train.eval_every, scorer.log),
  ]
  run_training(config, family, run, build.train_stream(config, data), workdir, hooks)


def draw(config: ConfigDict, path: str) -> None:
  """Writes pictures of each --prompt, and of how they form, to samples/."""
  workdir = reopen_workdir(path, config)
  family, run, state = build.trained(config, workdir)
  load = functools.cache(lambda: source.load(config.data, config.data.eval_split))
  prompts = sample.prompts_for(config, FLAGS.prompt, load)
  labels = sample.labels_for(config, prompts, load)
  samples = given.drawer(
    config, family, run, prompts, labels, FLAGS.image, FLAGS.mask, load
  )(state)
  if jax.process_index() == 0:
    for file in sample.write(samples, prompts, int(state.step), workdir / "samples"):
      print(file)


def score(config: ConfigDict, path: str) -> None:
  """Scores the newest EMA weights; writes eval.json."""
  workdir = reopen_workdir(path, config)
  family, run, state = build.trained(config, workdir)
  load = functools.cache(functools.partial(source.load, config.data))
  metrics = tuple(config.eval.metrics) or usual(config, family, load)
  Scorer(config, family, run, workdir, metrics, load).write(state)


def prepare(config: ConfigDict, path: str) -> None:
  """Builds the data set, and its latents, ahead of time; needs no workdir."""
  source.prepare(config.data)
  build.encode_splits(config, functools.partial(source.load, config.data))


MODES = {"train": train, "sample": draw, "eval": score, "prepare": prepare}
flags.DEFINE_enum("mode", "train", list(MODES), "what to do")


def main(argv: list[str]) -> int:
  """Exit status: 0 done, 2 the user must change something; other faults raise."""
  try:
    config = cli.parse(argv)
    if not FLAGS.workdir and FLAGS.mode != "prepare":
      raise UserError(f"--mode={FLAGS.mode} needs --workdir=DIR.")
    parallel.initialize()
    parallel.keep_freed_memory()
    cli.be_quiet()
    MODES[FLAGS.mode](config, FLAGS.workdir)
  except UserError as error:
    print(f"taolu: {error}", file=sys.stderr)
    return 2
  except KeyboardInterrupt:
    print(
      "taolu: interrupted; the same command goes on from the last checkpoint.",
      file=sys.stderr,
    )
    return 130
  return 0


if __name__ == "__main__":
  cli.leave(main(sys.argv))
