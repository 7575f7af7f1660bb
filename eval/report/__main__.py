"""`python -m eval.report WORKDIR`: writes the report of a comparison or a sweep."""

import sys
from pathlib import Path

from core import cli
from core.errors import UserError
from eval import report


def main() -> None:
  """Prints the files that it has written."""
  if len(sys.argv) != 2:
    raise UserError("usage: python -m eval.report WORKDIR")
  for file in report.write(Path(sys.argv[1])):
    print(file)


if __name__ == "__main__":
  cli.leave(cli.status(main))
