"""The processes of a run: how they find each other, and what ends them all.

JAX's coordination service lets processes join and notices those that die. It ends a
process by abort(), from a thread of its own and with a stack trace, where another is
missing or lost; here that ends in a sentence. Between processes on CPUs gloo notices a
lost one first, as an exception.

Environment:
  TAOLU_DISTRIBUTED=auto: JAX finds the processes by itself, on TPU pods, GKE, Slurm
    and under Open MPI.
  TAOLU_COORDINATOR=host:port, TAOLU_PROCESSES=N, TAOLU_PROCESS=i: elsewhere.
  TAOLU_JOIN_SECONDS: how long to wait for those that are missing; 300.
  TAOLU_HEARTBEAT_SECONDS: after how long a silent process is taken for dead; 60.
"""

import contextlib
import ctypes
import functools
import os
import re
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator

import jax
from jax._src import distributed

from core.errors import UserError

WAITING = 10  # seconds of silence before it is said that others are waited for
# What JAX, gloo, NCCL and Orbax say where a process is gone.
LOST = re.compile(
  r"gloo|nccl|heartbeat|coordination|barrier|socket closed|connection (reset|closed)"
  r"|unavailable",
  re.IGNORECASE,
)


def initialize() -> None:
  """Joins the other processes of the run, if the environment names any.

  Processes on CPUs talk through gloo.

  Raises:
    UserError: the environment is incomplete, or JAX finds no cluster in it.
  """
  names = ("TAOLU_COORDINATOR", "TAOLU_PROCESSES", "TAOLU_PROCESS")
  values = [os.environ.get(name) for name in names]
  auto = os.environ.get("TAOLU_DISTRIBUTED") == "auto"
  if not auto and not any(values):
    return
  if not auto and not all(values):
    raise UserError(f"set all of {', '.join(names)} in the environment, or none.")
  address, count, index = (None, None, None) if auto else values
  if not auto and not (count.isdecimal() and index.isdecimal()):
    raise UserError(f"{names[1]} and {names[2]} must be whole numbers.")
  if not auto and not int(index) < int(count):
    raise UserError(
      f"{names[2]}={index} must be below {names[1]}={count}: they are counted from 0."
    )
  join = _seconds("TAOLU_JOIN_SECONDS", 300)
  heartbeat = _seconds("TAOLU_HEARTBEAT_SECONDS", 60)
  jax.config.update("jax_cpu_collectives_implementation", "gloo")
  with _joining(join):
    try:
      jax.distributed.initialize(
        address,
        None if auto else int(count),
        None if auto else int(index),
        # The coordinator gives up first: it knows how many have come.
        initialization_timeout=join + 10,
        heartbeat_timeout_seconds=heartbeat,
      )
    except (ValueError, RuntimeError) as error:
      reason = str(error).strip().splitlines()[0]
      raise UserError(
        f"the processes of this run do not find each other ({reason}); set"
        f" {', '.join(names)} in the environment of each."
      ) from error
  if several():
    _on_abort(gone)


def several() -> bool:
  """Whether this process has joined others; starts no backend."""
  return jax.distributed.is_initialized() and distributed.global_state.num_processes > 1


def together(where: str, seconds: int = 1800) -> None:
  """Returns when all processes have come here; raises if not in so many seconds.

  Gloo waits for no more than 30 s at the first exchange among devices, and one process
  may compile for longer than another.
  """
  if several():
    distributed.global_state.client.wait_at_barrier(f"taolu {where}", 1000 * seconds)


def gone(what: str = "") -> str:
  """The sentence for a process whose fellows are gone; `what` JAX says of it."""
  state = distributed.global_state
  return (
    f"process {state.process_id} of {state.num_processes} stops, since another process"
    f" of the run died or cannot be reached{what and f' ({what})'}; its own output says"
    " why; give the same command again to all of them: it goes on from the last"
    " checkpoint."
  )


def loss(error: BaseException) -> str:
  """What an exception says of other processes that are gone; '' if it does not."""
  seen: BaseException | None = error if several() else None
  while seen is not None:
    if not isinstance(seen, UserError) and LOST.search(str(seen)):
      return str(seen).strip().splitlines()[0][:200]
    seen = seen.__cause__ or seen.__context__
  return ""


def _seconds(name: str, default: int) -> int:
  value = os.environ.get(name) or str(default)
  if not value.isdecimal() or not int(value):
    raise UserError(f"{name}={value} must be a whole number of seconds, 1 or more.")
  return int(value)


def _missing(log: str, seconds: float) -> str:
  """The sentence for processes that have not come, from what JAX logged."""
  state = distributed.global_state
  came = re.search(r"# of tasks that reached the barrier: (\d+)/(\d+)", log)
  absent = re.search(r"timed out task names:\n((?:.+\n)*?)(?= ?\[|\n|\Z)", log)
  who = ""
  if came:
    who = f": {came[1]} of {came[2]} came"
    if absent:
      who += f", not process {', '.join(absent[1].split())}"
  elif state.process_id:
    who = f": no coordinator answers at {state.coordinator_address}"
  return (
    f"process {state.process_id} waited {seconds:.0f} s for the other processes of the"
    f" run{who}; start all of them with the same coordinator, see that its port can be"
    " reached, or wait longer by TAOLU_JOIN_SECONDS."
  )


@contextlib.contextmanager
def _joining(seconds: int) -> Iterator[None]:
  """Bounds the time that joining takes; what JAX logs meanwhile is kept back.

  Where it aborts, a sentence takes the place of that; else it is passed on.
  """
  sys.stderr.flush()
  began, real = time.monotonic(), os.dup(2)
  name, whole = "get_distributed_runtime_service", distributed._jax
  service = getattr(whole, name)
  with tempfile.TemporaryFile() as kept:

    def logged() -> str:
      size = os.fstat(kept.fileno()).st_size
      return os.pread(kept.fileno(), size, 0).decode(errors="replace")

    def waiting() -> None:
      text = f"waiting for the other processes of the run, {seconds} s at most\n"
      os.write(real, text.encode())

    os.dup2(kept.fileno(), 2)
    timer = threading.Timer(WAITING, waiting)
    timer.daemon = True
    timer.start()
    before = _on_abort(lambda: _missing(logged(), time.monotonic() - began), real)
    setattr(whole, name, functools.partial(service, cluster_register_timeout=seconds))
    try:
      yield
    finally:
      timer.cancel()
      setattr(whole, name, service)
      _libc().signal(signal.SIGABRT, before)
      os.dup2(real, 2)
      os.write(2, logged().encode())
      os.close(real)


_handlers = []  # C keeps no reference to them


def _on_abort(sentence: Callable[[], str], stderr: int = 2) -> int | None:
  """An abort() of any thread writes a sentence and exits with 1; the handler before.

  Python's own handlers would not run: abort() ends the process when they return.
  """

  @ctypes.CFUNCTYPE(None, ctypes.c_int)
  def handler(signum: int) -> None:
    try:
      os.write(stderr, f"taolu: {sentence()}\n".encode())
    finally:
      os._exit(1)

  _handlers.append(handler)
  return _libc().signal(signal.SIGABRT, ctypes.cast(handler, ctypes.c_void_p))


def _libc() -> ctypes.CDLL:
  libc = ctypes.CDLL(None)
  libc.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
  libc.signal.restype = ctypes.c_void_p
  return libc
