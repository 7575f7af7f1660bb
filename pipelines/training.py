"""One run from its config: prepared, trained, and scored."""

import functools
from collections.abc import Callable
from pathlib import Path

from ml_collections import ConfigDict

from core import parallel, profiling, snapshots
from core.family import Family
from core.train import Hook
from core.train import train as run_training
from core.workdir import check_workdir, open_workdir
from data import source
from data.dataset import Dataset
from eval.evaluate import Scorer, in_training, usual
from pipelines import build, draw, inputs, system, texts


def prepare(config: ConfigDict, path: str = "") -> None:
  """Builds the data set, its texts and latents, ahead of time; needs no workdir."""
  build.example_batch(config)  # refuses what does not fit before the data are built
  source.prepare(config.data)
  load = functools.cache(functools.partial(source.load, config.data))
  texts.prepare(config, load)
  inputs.encode_splits(config, load)


def train(
  config: ConfigDict,
  path: str,
  scored: ConfigDict | None = None,
  profiled: range = range(0),
) -> None:
  """Trains; writes a grid of samples and scores at their cadence.

  With `scored`, what `score` would refuse of that config is refused before the first
  step. Steps that are `profiled` are traced, into the workdir's `profile`.
  """
  config.sample.guide = ""  # what is drawn in training is the model's own
  family = build.family(config, **build.teacher(config, Path(path)))
  run = parallel.make(config.parallel)
  run.check_batch(config.data.batch_size, config.optim.microbatches)
  profiling.check(profiled, config.train.steps)
  build.shapes(config, family)
  check_workdir(path, config)
  load = functools.cache(functools.partial(source.load, config.data))
  data, held_out = load(config.data.train_split), load(config.data.eval_split)
  inputs.check_classes(config, data)
  texts.check(config, load, Path(path))
  folder = Path(path) / "samples"
  grid = draw.preview(config, family, run, lambda: held_out, folder)
  metrics = tuple(config.eval.train_metrics) or in_training(config, family)
  scorer = Scorer(config, family, run, Path(path), metrics, load)
  if scored is not None:
    Scorer(scored, family, run, Path(path), asked(scored, family, load), load)
  workdir = open_workdir(path, config)
  build.pin(config, workdir)
  inputs.encode_splits(config, load)
  hooks = [
    # Before what may fail: a checkpoint of a step must not be without its snapshot.
    *snapshots.hooks(config, workdir),
    Hook(config.train.sample_every, grid),
    Hook(config.train.eval_every, scorer.log),
  ]
  stream = inputs.train_stream(config, data)
  run_training(config, family, run, stream, workdir, hooks, profiled)


def score(config: ConfigDict, path: str, show: bool = True) -> None:
  """Scores the newest EMA weights; writes eval.json, and prints it with `show`."""
  config, family, run, state = system.opened(config, path)
  load = functools.cache(functools.partial(source.load, config.data))
  metrics = asked(config, family, load)
  Scorer(config, family, run, Path(path), metrics, load).write(state, show)


def asked(
  config: ConfigDict, family: Family, load: Callable[[str], Dataset]
) -> tuple[str, ...]:
  """What a run is scored by."""
  return tuple(config.eval.metrics) or usual(config, family, load)
