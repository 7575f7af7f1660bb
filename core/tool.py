"""What command lines beside main.py share."""

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from core.errors import UserError, check_text


class Parser(argparse.ArgumentParser):
  """Says what is wrong in one sentence; keeps the lines of its description.

  Args:
    prog: what is typed, 'python -m eval.score'.
    description: the module's docstring.
  """

  def __init__(self, prog: str, description: str):
    super().__init__(
      prog=prog,
      description=description,
      formatter_class=argparse.RawDescriptionHelpFormatter,
      allow_abbrev=False,
    )

  def error(self, message: str) -> NoReturn:
    """Raises UserError."""
    raise UserError(f"{message}; see {self.prog} --help.")


def status(run: Callable[[Sequence[str]], None], argv: Sequence[str]) -> int:
  """The exit status of run(argv): 0 done, 2 the user must change something."""
  try:
    check_text(argv)
    run(argv)
  except UserError as error:
    print(f"taolu: {error}", file=sys.stderr)
    return 2
  return 0
