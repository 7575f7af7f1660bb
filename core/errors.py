"""The one exception that means: the user must change something."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
  """A fault the user can mend.

  The message is one sentence that says what is wrong, where, and what to do;
  `main.py` prints it on stderr without a traceback and exits with status 2.
  """


def unknown(what: str, given: object, known: Iterable[str]) -> UserError:
  """The error for a name that is not among the known ones, with the nearest.

  Reads like: optim.schedule='cosin' is unknown; did you mean 'cosine'? Without a
  near name it lists all.
  """
  known = sorted(known)
  near = difflib.get_close_matches(str(given), known, n=1)
  hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}."
  return UserError(f"{what}={given!r} is unknown; {hint}")


def counted(times: int) -> str:
  """'once', '2 times', ..."""
  return "once" if times == 1 else f"{times} times"


def check_text(arguments: Iterable[str]) -> None:
  """Raises UserError for an argument of other bytes, which no text file can hold."""
  for one in arguments:
    if any("\ud800" <= c <= "\udfff" for c in one):
      raise UserError(f"the argument {one!a} is not UTF-8 text: give it as that.")
