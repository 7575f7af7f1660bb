"""What a sweep is of: a base config, and rows of other values for some of its fields.

The rows are those of a table (`configs/ablations/`) or come from flags:
`FIELD=VALUE,VALUE`, or `FILE.json`, a list of objects {"FIELD": VALUE, ...}, in which
"name" may name the row. Of several flags all combinations are rows.
"""

import ast
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from core import limits
from core.errors import UserError, unknown
from core.workdir import flat

Fields = Mapping[str, Any]
KINDS = {int: "a whole number", float: "a number", bool: "True or False", str: "a text"}


class Study(NamedTuple):
  """Rows of one base.

  Attributes:
    base: what a row does not say.
    rows: name -> field -> value.
    order: the rows that this call is for.
    seeds: each row is trained with each.
    shared: runs that a row may need, by the name that its '@NAME' has.
    paper: score -> row -> the paper's number.
    orderings: (score, better row, worse row) that the paper tells besides.
    source: paper and table; '' for a study of one's own.
  """

  base: ConfigDict
  rows: Mapping[str, Fields]
  order: Sequence[str]
  seeds: Sequence[int]
  shared: Mapping[str, ConfigDict]
  paper: Mapping[str, Mapping[str, float]]
  orderings: Sequence[tuple[str, str, str]]
  source: str


def of_table(config: ConfigDict) -> Study:
  """The rows of a file of `configs/ablations/`.

  Raises:
    UserError: `order` or `seeds` are no such values, or an ordering names no row.
  """
  plain = config.copy_and_resolve_references()
  for name in plain.order:
    if name not in plain.rows:
      raise unknown("row in order", name, plain.rows)
  names = dict.fromkeys((*plain.order, *plain.rows))  # a ConfigDict sorts its own
  rows = {name: dict(flat(plain.rows[name].to_dict())) for name in names}
  paper = plain.paper.to_dict()
  told = [name for numbers in paper.values() for name in numbers]
  for name in (*told, *(row for _, *pair in plain.orderings for row in pair)):
    if name not in rows:
      raise unknown("row that the paper orders", name, rows)
  found = Study(
    plain.base, rows, plain.order, plain.seeds, dict(plain.shared.items()), paper,
    plain.orderings, plain.source,
  )  # fmt: skip
  check_seeds(found.seeds)
  return found


def of_flags(config: ConfigDict, flags: Sequence[str]) -> Study:
  """The rows that --sweep flags ask for, in all combinations.

  Raises:
    UserError: an unknown field, a value of another type, two rows of one name, seeds
      that not all rows have, a damaged file.
  """
  parts = [list(listed(config, flag)) for flag in flags]
  rows, seeds, asked = {}, [], set()
  for chosen in itertools.product(*parts):
    fields: dict[str, Any] = {}
    for own in (own for _, own in chosen):
      if again := fields.keys() & own.keys():
        raise UserError(f"--sweep gives {min(again)} twice; give its values in one.")
      fields |= own
    seed = fields.pop("seed", config.seed)
    seeds += [] if seed in seeds else [seed]
    name = named([name for name, _ in chosen if name])
    asked.add((name, seed))
    if rows.setdefault(name, fields) != fields:
      raise UserError(
        f"--sweep has two rows called {name!r}, {rows[name]} and {fields}: give each a"
        ' "name" of its own in a FILE.json.'
      )
  check_seeds(seeds)
  for name, seed in itertools.product(rows, seeds):
    if (name, seed) not in asked:
      raise UserError(
        f"each row is trained with each seed, but --sweep gives {name!r} no seed"
        f' {seed}: leave the seeds out of the FILE.json, and give --sweep="seed=0,1".'
      )
  return Study(config, rows, tuple(rows), seeds, {}, {}, (), "")


def listed(config: ConfigDict, flag: str) -> Iterator[tuple[str, Fields]]:
  """(name, fields) of each row that one flag asks for; of a seed the name is ''."""
  if "=" not in flag:
    yield from of_file(config, Path(flag))
    return
  field, _, texts = flag.partition("=")
  values = split(texts)
  if not values or "" in values and kind(config, field) is not str:
    raise UserError(f"--sweep={flag} gives no values: write FIELD=VALUE,VALUE.")
  for text in values:
    fields = {field: fitted(config, field, read(config, field, text))}
    yield label(fields), fields


def of_file(config: ConfigDict, file: Path) -> Iterator[tuple[str, Fields]]:
  """The rows of a JSON file.

  Raises:
    UserError: it is not there, is no list of objects, or a field does not fit.
  """
  try:
    text = file.read_text(encoding="utf-8-sig")
    rows = json.loads(text, object_pairs_hook=once)
  except (OSError, ValueError) as error:
    raise UserError(
      f"--sweep={file} is neither FIELD=VALUE,VALUE nor a JSON file ({error})."
    ) from error
  if (
    not isinstance(rows, list) or not rows or not all(isinstance(r, dict) for r in rows)
  ):
    raise UserError(f'{file} must hold a list of rows, such as [{{"model.dim": 128}}].')
  for row in rows:
    name = row.pop("name", "")
    if not isinstance(name, str):
      raise UserError(f'{file}: "name" must be text, not {name!r}.')
    fields = {field: fitted(config, field, value) for field, value in row.items()}
    yield name or label(fields), fields


def once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
  """An object of a JSON file; ValueError if it has a name twice."""
  names = [name for name, _ in pairs]
  for name in names:
    if names.count(name) > 1:
      raise ValueError(f"{name!r} stands in it twice")
  return dict(pairs)


def split(text: str) -> list[str]:
  """At commas outside of brackets: '(8,16),(8,)' -> '(8,16)', '(8,)'."""
  found, depth = [""], 0
  for c in text:
    depth += (c in "([") - (c in ")]")
    if c == "," and depth == 0:
      found.append("")
    else:
      found[-1] += c
  return [part.strip() for part in found]


def kind(config: ConfigDict, field: str) -> type:
  """The type of a field's values.

  Raises:
    UserError: there is no such field, or it is a group of fields.
  """
  leaves = dict(flat(config.to_dict()))
  if field not in leaves:
    raise unknown("--sweep field", field, leaves)
  *parts, name = field.split(".")
  for part in parts:
    config = config[part]
  return config.get_type(name)


def read(config: ConfigDict, field: str, text: str) -> Any:
  """A value as the command line has it."""
  if kind(config, field) is str:
    return text
  try:
    return ast.literal_eval({"true": "True", "false": "False"}.get(text, text))
  except (ValueError, SyntaxError):
    return text  # `fitted` refuses it


def fitted(config: ConfigDict, field: str, value: Any) -> Any:
  """The value, as what the field holds.

  Raises:
    UserError: it is of another type.
  """
  wanted = kind(config, field)
  value = tupled(value)
  if wanted is float and type(value) is int:
    value = float(value)
  if wanted is not object and type(value) is not wanted:
    told = KINDS.get(wanted, "a tuple such as (1, 2)")
    raise UserError(f"sweep: {field} must be {told}, not {value!r}.")
  if wanted is object and not isinstance(value, int | tuple):
    raise UserError(f"sweep: {field} must be a number or a tuple, not {value!r}.")
  return value


def label(fields: Fields) -> str:
  """What a row is called unless told: 'dim=128', 'widths=8x16'."""
  said = {k.rpartition(".")[2]: v for k, v in fields.items() if k != "seed"}
  parts = {k: v if isinstance(v, tuple) else (v,) for k, v in said.items()}
  return ",".join(f"{k}={'x'.join(map(str, v))}" for k, v in parts.items())


def named(labels: Sequence[str]) -> str:
  """A row's name, which its folder has."""
  return re.sub(r"[^\w.=,+-]+", "_", ",".join(labels))[:120] or "base"


def check_seeds(seeds: Sequence[int]) -> None:
  """Raises UserError unless they are different whole numbers from 0, one at least."""
  whole = all(isinstance(seed, int) and seed >= 0 for seed in seeds)
  if not seeds or not whole or len(set(seeds)) < len(seeds):
    raise UserError(f"seeds must be different whole numbers from 0, not {seeds}.")


def configs(study: Study) -> dict[str, ConfigDict]:
  """The config of each row.

  Raises:
    UserError: a field is unknown, a value of another type or out of its range.
  """
  found = {}
  for name, fields in study.rows.items():
    own = study.base.copy_and_resolve_references()
    values = {field: fitted(own, field, value) for field, value in fields.items()}
    own.update_from_flattened_dict(values)
    try:
      limits.check(own)
    except UserError as error:
      raise UserError(f"row {name}: {error}") from error
    found[name] = own
  return found


def told(study: Study) -> dict[str, Any]:
  """A study for config.json."""
  plain = {k: v for k, v in study._asdict().items() if k not in ("base", "order")}
  plain["shared"] = {k: as_json(v) for k, v in study.shared.items()}
  return json.loads(json.dumps({"base": as_json(study.base), **plain}))


def as_json(config: ConfigDict) -> dict[str, Any]:
  """A config as a file has it."""
  return json.loads(config.to_json_best_effort())


def tuples(rows: Mapping[str, Fields]) -> dict[str, Fields]:
  """Rows as they were before a file had them: with tuples, which JSON has not."""
  return {name: {k: tupled(v) for k, v in own.items()} for name, own in rows.items()}


def tupled(value: Any) -> Any:
  """A value with tuples in the place of lists, however deep."""
  return tuple(map(tupled, value)) if isinstance(value, list | tuple) else value
