"""The training loop, one for all families."""

import contextlib
import math
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import NamedTuple

import jax
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from core import hosts, profiling
from core.checkpoint import Checkpoints, abstract_like
from core.errors import UserError
from core.family import Batch, Family, State, count_params
from core.log import Log, say
from core.parallel import Parallel


class Hook(NamedTuple):
  """Something to do every so many steps, and after the last.

  `run(state)` returns numbers for the log, or an empty dict. What is `required` is done
  when the run is asked to stop as well, and no checkpoint passes over its failure.
  """

  every: int
  run: Callable[[State], dict[str, float]]
  required: bool = False


def train(
  config: ConfigDict,
  family: Family,
  run: Parallel,
  batches: Callable[[int], Iterator[Batch]],
  workdir: Path,
  hooks: Sequence[Hook] = (),
  profiled: range = range(0),
) -> State:
  """Trains until `config.train.steps`, from the workdir's newest checkpoint.

  The batch and the random key of a step depend on (seed, step) alone, so a run
  that was stopped or killed goes on to the same result.

  Args:
    config: the whole config; reads `seed`, `train`, `optim`, `data.batch_size`.
    family: what to train.
    run: the devices to train on.
    batches: first step -> this process's rows of each batch from there on.
    workdir: an opened workdir.
    hooks: samples and evaluations; those with `every` 0 run at the end only.
    profiled: steps to trace, into the workdir's `profile`.

  Raises:
    UserError: the batch does not fit the devices, too many steps in a row
      were not finite, or there is no place for a trace.
  """
  cfg, batch_size = config.train, config.data.batch_size
  say(
    f"{run.backend} on {run.mesh.size} x {jax.devices()[0].device_kind},"
    f" {jax.process_count()} process(es); compiling, which may take minutes"
  )
  run.check_batch(batch_size, config.optim.microbatches)
  if profiled:
    profiling.check_place(workdir / "profile")
  with contextlib.ExitStack() as closing:
    # From here on: compiling the step may take minutes.
    stopping = closing.enter_context(stop_requested())
    checkpoints = Checkpoints(workdir, cfg.keep, cfg.keep_every)
    closing.callback(checkpoints.close)
    start = checkpoints.latest() or 0
    stream = batches(start)
    closing.callback(getattr(stream, "close", lambda: None))
    first = next(stream)
    # One branch of keys for each use, so that no two share a draw.
    init_key, step_key = jax.random.split(jax.random.key(config.seed))
    state = initial_state(run, family, checkpoints, init_key, first)
    if start != (checkpoints.latest() or 0):  # the newest was damaged
      start = checkpoints.latest()
      getattr(stream, "close", lambda: None)()
      stream = batches(start)
      closing.callback(getattr(stream, "close", lambda: None))
      first = next(stream)
    if not cfg.steps and checkpoints.latest() is None:
      say("train.steps=0: the weights are kept as the family starts with them")
      checkpoints.save(0, state)
      checkpoints.wait()
      return state
    step_fn = run.compile_step(family.step, state, first)
    size, memory = count_params(state.params), step_fn.memory() / 2**20
    say(
      f"{size:,} parameters, {memory:,.0f} MiB a device; from step {start} to"
      f" {cfg.steps}"
    )
    if start >= cfg.steps:
      more = "set it higher to go on"
      if config.optim.schedule in ("cosine", "linear"):
        more = "its learning rate ends there, so more steps need a new workdir"
      say(f"nothing to do: train.steps={cfg.steps} are done; {more}")
    if start < cfg.steps <= config.optim.warmup_steps:
      say(
        f"its learning rate still rises at the end: optim.warmup_steps is"
        f" {config.optim.warmup_steps}; lower it unless that is meant"
      )
    log = Log(workdir, start, cfg.steps)
    closing.callback(log.close)
    if profiled:
      devices = len(run.mesh.local_devices)
      where = (start, devices, workdir / "profile", log.off_the_clock)
      tracing = profiling.traced(step_fn, profiled, *where)
      step_fn = closing.enter_context(tracing)
    step, batch, metrics = start, first, {}
    hosts.together(f"first step in {workdir}")
    while step < cfg.steps:
      before = metrics
      state, metrics = step_fn(state, batch, jax.random.fold_in(step_key, step))
      step += 1
      # The next batch is fetched while the devices work.
      batch = next(stream) if step < cfg.steps else None
      # No more than one step ahead of them, so that a stop takes no longer than two.
      jax.block_until_ready(before)
      done, stop = step == cfg.steps, stopping(step)
      if done or stop or due(step, cfg.log_every):
        values = report(log, step, metrics, batch_size, cfg.max_skipped)
        log.watch(step, values, family.watched)
      # Before the checkpoint: a run killed in between does both again.
      for hook in hooks:
        if done or (due(step, hook.every) and (hook.required or not stop)):
          jax.block_until_ready(state)
          try:
            with log.off_the_clock():
              values = hook.run(state)
          except UserError:
            if not hook.required:  # a score that fails costs no steps
              checkpoints.save(step, state)
            raise
          log.write(step, values)
      if done or stop or due(step, cfg.checkpoint_every):
        checkpoints.save(step, state)
      if stop:
        break
    checkpoints.wait()
    if step < cfg.steps:
      say(f"stopped at step {step}, saved; the same command goes on from there")
    return state


def initial_state(
  run: Parallel,
  family: Family,
  checkpoints: Checkpoints,
  rng: jax.Array,
  batch: Batch,
) -> State:
  """The newest checkpoint's state, or a fresh one, where training needs it."""
  if checkpoints.latest() is None:
    return run.init(family.init, rng, run.put(batch))
  shapes = jax.eval_shape(family.init, rng, batch)
  return checkpoints.restore(abstract_like(shapes, run.shardings(shapes)))


def report(
  log: Log, step: int, metrics: dict[str, jax.Array], batch_size: int, limit: int
) -> dict[str, float]:
  """Logs a step's metrics; raises UserError if too many in a row were skipped."""
  values = {k: float(v) for k, v in jax.device_get(metrics).items()}
  loss = values.get("loss", math.nan)
  values["images_per_second"] = log.progress(step, loss, batch_size)
  log.write(step, values)
  in_a_row = int(values.get("skipped_in_a_row", 0))
  if in_a_row >= limit:
    raise UserError(
      f"the loss or its gradient was not finite in the last {in_a_row} steps before"
      f" step {step}; start again in a new workdir with a lower optim.learning_rate"
      " (and gan.learning_rate, if the config has one) or with optim.grad_clip."
    )
  return values


def due(step: int, every: int) -> bool:
  """Whether `step` is a multiple of `every`; never for 0."""
  return every > 0 and step % every == 0


@contextlib.contextmanager
def stop_requested() -> Iterator[Callable[[int], bool]]:
  """step -> has someone asked to stop, by SIGTERM or Ctrl-C?

  With several processes JAX agrees on the step at which all of them stop. A
  second Ctrl-C stops at once.
  """
  if jax.process_count() > 1:
    yield multihost_utils.reached_preemption_sync_point
    return
  asked = []

  def note(signum: int, frame: FrameType | None) -> None:
    asked.append(signum)
    signal.signal(signal.SIGINT, signal.default_int_handler)

  before = {s: signal.signal(s, note) for s in (signal.SIGTERM, signal.SIGINT)}
  try:
    yield lambda step: bool(asked)
  finally:
    for signum, handler in before.items():
      signal.signal(signum, handler)
