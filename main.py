"""taolu: flags -> config -> mode. README.md lists the commands."""

import json
import sys

import jax
from absl import flags
from ml_collections import ConfigDict, config_flags

from core import cli, parallel
from core.errors import UserError
from core.log import say
from core.train import Hook
from core.train import train as run_training
from core.workdir import explained, open_workdir, reopen_workdir, write_atomic
from data import source
from eval.evaluate import Evaluator
from pipelines import build, sample

FLAGS = flags.FLAGS
config_flags.DEFINE_config_file("config", None, "configs/FILE.py[:variant]")
flags.DEFINE_string("workdir", None, "folder of the run")
flags.DEFINE_multi_string("prompt", [], "what to draw (--mode=sample); repeatable")


def train(config: ConfigDict, path: str) -> None:
  """Trains; writes a grid of samples and the family's evals at their cadence."""
  family, run = build.family(config), parallel.make(config.parallel)
  run.check_batch(config.data.batch_size, config.optim.microbatches)
  data = source.load(config.data, config.data.train_split)
  held_out = source.load(config.data, config.data.eval_split)
  workdir = open_workdir(path, config)
  evaluator = Evaluator(config, family, run)
  prompts = sample.prompts_for(config, [], held_out)
  labels = sample.labels_for(config, prompts, held_out)
  each = max(1, config.sample.num_images // len(prompts))
  draw = sample.sampler(config, family, run, prompts, labels, each)
  hooks = [
    Hook(config.train.sample_every, sample.preview(draw, each, workdir / "samples")),
    Hook(
      config.train.eval_every,
      lambda state: evaluator.log(state, build.eval_stream(config, held_out)),
    ),
  ]
  run_training(config, family, run, build.train_stream(config, data), workdir, hooks)


def draw(config: ConfigDict, path: str) -> None:
  """Writes pictures of each --prompt, and of how they form, to samples/."""
  workdir = reopen_workdir(path, config)
  family, run, state = build.trained(config, workdir)
  data = source.load(config.data, config.data.eval_split)
  prompts = sample.prompts_for(config, FLAGS.prompt, data)
  labels = sample.labels_for(config, prompts, data)
  draw = sample.sampler(config, family, run, prompts, labels, config.sample.per_prompt)
  samples = draw(state)
  if jax.process_index() == 0:
    for file in sample.write(samples, prompts, int(state.step), workdir / "samples"):
      print(file)


def evaluate(config: ConfigDict, path: str) -> None:
  """Scores the newest EMA weights on the evaluation split; writes eval.json."""
  workdir = reopen_workdir(path, config)
  family, run, state = build.trained(config, workdir)
  data = source.load(config.data, config.data.eval_split)
  scores = Evaluator(config, family, run)(state, build.eval_stream(config, data))
  scores = {"step": int(state.step), "split": config.data.eval_split, **scores}
  if jax.process_index() == 0:
    with explained(workdir):
      write_atomic(workdir / "eval.json", json.dumps(scores, indent=2) + "\n")
    print(json.dumps(scores))


def prepare(config: ConfigDict, path: str) -> None:
  """Builds the data set ahead of time; needs no workdir."""
  source.prepare(config.data)


MODES = {"train": train, "sample": draw, "eval": evaluate, "prepare": prepare}
flags.DEFINE_enum("mode", "train", list(MODES), "what to do")


def main(argv: list[str]) -> int:
  """Exit status: 0 done, 2 the user must change something; other faults raise."""
  try:
    config = cli.parse(argv)
    if FLAGS.workdir is None and FLAGS.mode != "prepare":
      raise UserError(f"--mode={FLAGS.mode} needs --workdir=DIR.")
    parallel.keep_freed_memory()
    parallel.initialize()
    MODES[FLAGS.mode](config, FLAGS.workdir)
  except UserError as error:
    say(f"taolu: {error}")
    return 2
  return 0


if __name__ == "__main__":
  sys.exit(main(sys.argv))
