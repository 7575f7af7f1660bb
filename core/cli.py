"""The command line: every fault in it is one sentence."""

import logging as standard
import os
import re
import sys
import traceback
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import NoReturn

from absl import flags, logging
from ml_collections import ConfigDict, config_flags

from core import hosts, limits
from core.errors import UserError, check_text, unknown


def parse(argv: list[str]) -> ConfigDict:
  """Parses absl's flags, the overrides in `--config.FIELD=VALUE` among them.

  Raises:
    UserError: no such config file, variant, field or flag, or a value of the
      wrong type or out of its range.
  """
  check_text(argv)
  fields = set(_fields(load(_only_config(argv))))
  for name in (m[1] for m in map(re.compile(r"--?config\.([\w.]+)").match, argv) if m):
    if name not in fields:
      raise unknown_field(name, fields)
  try:
    rest = flags.FLAGS(argv)
    config = flags.FLAGS.config
  except (flags.Error, ValueError, TypeError) as error:
    raise UserError(
      f"{str(error).rstrip('.')}; see README.md for the flags."
    ) from error
  if len(rest) > 1:
    raise UserError(f"unexpected argument {rest[1]!r}; flags look like --mode=train.")
  limits.check(config)
  return config


def unknown_field(name: str, fields: Collection[str]) -> UserError:
  """The error for a field that a config has not: of a system, where stages have it."""
  own = sorted(f for f in fields if re.fullmatch(rf"stages\.\w+\.{re.escape(name)}", f))
  if not own:
    return unknown("config field", name, fields)
  choices = " or ".join(f"--config.{field}" for field in own)
  return UserError(f"each stage has a {name} of its own: give {choices}.")


def be_quiet() -> None:
  """Silences Orbax, which logs at length what it raises as well, and its threads."""
  logging.set_verbosity(logging.FATAL)
  standard.getLogger("asyncio").setLevel(standard.CRITICAL)


def status(command: Callable[[], None]) -> int:
  """Runs it: 0 done, 2 the user must change something, 1 another process is gone.

  Other faults raise; of one process of several they end it with 1 at once, as the
  others would wait for it.
  """
  try:
    command()
  except UserError as error:
    print(f"taolu: {error}", file=sys.stderr)
    return 2
  except KeyboardInterrupt:
    print(
      "taolu: interrupted; the same command goes on from the last checkpoint.",
      file=sys.stderr,
    )
    return 130
  except Exception as error:
    if not hosts.several():
      raise
    if what := hosts.loss(error):
      print(f"taolu: {hosts.gone(what)}", file=sys.stderr)
    else:
      traceback.print_exc()
    return 1
  return 0


def leave(status: int) -> NoReturn:
  """Ends the process; a sentence for the user (status 2) is its last word.

  Threads and exit handlers of a logger that met a full disk would add theirs, and
  those of JAX would wait for the other processes of a run.
  """
  if status == 2 or (status and hosts.several()):
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
  sys.exit(status)


def _only_config(argv: list[str]) -> str:
  """The value of the --config flag, FILE or FILE:variant."""
  for i, arg in enumerate(argv):
    if match := re.match(r"--?config(=(.*)|$)", arg):
      value = match[2] or "".join(argv[i + 1 : i + 2])
      file = value.split(":")[0]
      if not Path(file).is_file():
        raise UserError(f"no config file {file!r}; look in configs/.")
      return value
  raise UserError("give --config=configs/FILE.py and --workdir=DIR.")


def load(path: str) -> ConfigDict:
  """The config FILE.py[:variant] without overrides.

  Raises:
    UserError: it is no config file, or has no such variant.
  """
  values, argv = flags.FlagValues(), ["", f"--config={path}"]
  config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
  try:
    values(argv)
  except (SyntaxError, flags.DuplicateFlagError) as error:
    raise UserError(
      f"--config={path} is not a config file; look in configs/."
    ) from error
  except flags.IllegalFlagValueError as error:
    # The message holds a whole traceback; a ValueError is the file's own refusal.
    last = str(error).strip().splitlines()[-1]
    if not last.startswith("ValueError: "):
      raise
    raise UserError(f"--config={path}: {last.removeprefix('ValueError: ')}.") from error
  return values.config


def _fields(config: ConfigDict, prefix: str = "") -> Iterator[str]:
  for key, value in config.items():
    yield prefix + key
    if isinstance(value, ConfigDict):
      yield from _fields(value, f"{prefix}{key}.")
