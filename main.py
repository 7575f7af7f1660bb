"""taolu: flags -> config -> mode. README.md lists the commands."""

import functools
import sys
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

from core import cli, hosts, parallel, profiling
from core.errors import UserError
from data import source
from pipelines import (
  compare,
  draw,
  pods,
  stages,
  sweep,
  system,
  training,
)

FLAGS = flags.FLAGS
config_flags.DEFINE_config_file("config", None, "configs/FILE.py[:variant]")
flags.DEFINE_string("workdir", None, "folder of the run")
flags.DEFINE_multi_string("image", [], "what to edit or enlarge; repeatable")
flags.DEFINE_string("mask", "", "picture, white where sample.edit=inpaint draws")
flags.DEFINE_string("stage", "", "which part of a system; '' for all")
flags.DEFINE_string("topology", "", "what to compile for, such as v5e:16x16")
flags.DEFINE_multi_string("sweep", [], "FIELD=VALUE,VALUE or FILE.json; repeatable")
flags.DEFINE_string("profile_steps", "", "FIRST:LAST, training steps to trace")
flags.DEFINE_multi_string("prompt", [], "what to draw (--mode=sample); repeatable")


def sample(config: ConfigDict, path: str) -> None:
  """Writes pictures of each --prompt, and of how they form, to samples/."""
  config, family, run, state = system.opened(config, path)
  load = functools.cache(lambda: source.load(config.data, config.data.eval_split))
  asked, folder = (FLAGS.prompt, FLAGS.image, FLAGS.mask), Path(path) / "samples"
  for file in draw.request(config, family, run, load, *asked)(state, folder):
    print(file)


def side_by_side(config: ConfigDict, path: str) -> None:
  """Trains and scores the runs of a comparison or a sweep; writes its report.

  Raises:
    UserError: some failed, each with a sentence of its own before.
  """
  from eval import report  # here, since only these modes wait for matplotlib

  command = {
    "config": config_flags.get_config_filename(FLAGS["config"]),
    "overrides": config_flags.get_override_values(FLAGS["config"]),
  }
  if FLAGS.mode == "sweep":
    failed = sweep.run(config, path, command, FLAGS.sweep)
  else:
    failed = compare.run(config, path, command)
  for file in report.write(Path(path)):
    print(file)
  if failed:
    raise UserError(f"failed: {', '.join(failed)}; the same command tries them again.")


MODES = {
  "train": training.train,
  "sample": sample,
  "eval": training.score,
  "prepare": training.prepare,
  "compare": side_by_side,
  "sweep": side_by_side,
}
flags.DEFINE_enum("mode", "train", [*MODES, "compile"], "what to do")


def main() -> None:
  """Does what the command line says."""
  config = cli.parse(sys.argv)
  compare.check_mode(config, FLAGS.mode, FLAGS.stage)
  sweep.check_mode(config, FLAGS.mode, FLAGS.stage, FLAGS.sweep)
  profiled = profiling.steps(FLAGS.profile_steps, FLAGS.mode)
  if FLAGS.mode == "compile":
    return pods.report(config, FLAGS.workdir, FLAGS.topology, FLAGS.stage)
  if not FLAGS.workdir and FLAGS.mode != "prepare":
    raise UserError(f"--mode={FLAGS.mode} needs --workdir=DIR.")
  hosts.initialize()
  parallel.keep_freed_memory()
  cli.be_quiet()
  if FLAGS.mode in ("compare", "sweep"):
    return side_by_side(config, FLAGS.workdir)
  do = MODES[FLAGS.mode]
  if profiled:
    do = functools.partial(do, profiled=profiled)
  for own, path in stages.runs(config, FLAGS.workdir, FLAGS.mode, FLAGS.stage):
    with stages.told(config, own, path):
      do(own, path)


if __name__ == "__main__":
  cli.leave(cli.status(main))
