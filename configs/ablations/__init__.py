"""Tables of papers: each file holds the rows of one, as overrides of one base config.

`--mode=sweep` trains and scores them, and writes a table that stands beside the paper's
numbers. Every file has these variants:
  :paper  the paper's own size, for pods; FID with Inception's weights, 50,000 pictures.
  :mini   minutes a row on two CPU cores: Fashion-MNIST, a small network.
  :tiny   seconds a row; what tests use.
"""

from collections.abc import Mapping
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict

from configs import base

VARIANTS = ("paper", "mini", "tiny")
Fields = dict[str, Any]
Rows = Mapping[str, Fields]


def check(variant: str) -> None:
  """Raises ValueError unless it is one of the scales; no scale is the paper's."""
  if variant not in ("", *VARIANTS):
    raise base.unknown_variant(variant, VARIANTS)


def table(
  c: ConfigDict,
  rows: Rows,
  source: str,
  paper: Mapping[str, Mapping[str, float]] | None = None,
  orderings: tuple[tuple[str, str, str], ...] = (),
  seeds: tuple[int, ...] = (0, 1),
  shared: Mapping[str, ConfigDict] | None = None,
) -> ConfigDict:
  """The config of a sweep (`pipelines/sweep.py`).

  Args:
    c: what rows do not say.
    rows: name -> field, such as 'diffusion.loss' -> value.
    source: paper and table.
    paper: score, such as fd or bpd -> row -> the number that the paper prints.
    orderings: (score, better row, worse row) that the paper tells without numbers.
    seeds: each row is trained once with each.
    shared: runs that rows need, in a field with '@NAME'.
  """
  t = ConfigDict()
  t.order = tuple(rows)  # which rows take part
  t.seeds = seeds
  t.source = source
  t.base = c
  t.rows = ConfigDict({name: nested(fields) for name, fields in rows.items()})
  t.paper = ConfigDict({k: dict(v) for k, v in (paper or {}).items()})
  t.orderings = orderings
  t.shared = ConfigDict(dict(shared or {}))
  return t


def nested(fields: Mapping[str, Any]) -> dict[str, Any]:
  """'a.b' -> value as dicts in dicts."""
  tree: dict[str, Any] = {}
  for field, value in fields.items():
    *parts, name = field.split(".")
    holder = tree
    for part in parts:
      holder = holder.setdefault(part, {})
    holder[name] = value
  return tree


def leaves(c: ConfigDict, prefix: str = "") -> Fields:
  """Every field of a config by its whole name."""
  found: Fields = {}
  for name, value in c.items():
    if isinstance(value, ConfigDict):
      found |= leaves(value, f"{prefix}{name}.")
    else:
      found[prefix + name] = value
  return found


def scaled(c: ConfigDict, variant: str, steps: int) -> None:
  """A full config at the scale of a variant; `steps` are those of mini."""
  match variant:
    case "mini":
      mini(c, steps)
    case "tiny":
      tiny(c)
    case _:
      c.eval.metrics, c.eval.num_images = ("fd", "is"), 50_000
      c.eval.features = "inception"


def own(module: ModuleType, variant: str, steps: int) -> ConfigDict:
  """A config with small networks of its own, at the scale of a variant."""
  if variant in ("", "paper"):
    c = module.get_config()
    scaled(c, variant, steps)
    return c
  c = module.get_config({"mini": "fashion_mnist"}.get(variant, variant))
  if variant == "mini":
    short(c, steps)
  c.train.sample_every = c.train.eval_every = 0
  c.eval.metrics = ("fd", "kid")
  return c


def mini(c: ConfigDict, steps: int) -> None:
  """16x16 grey Fashion-MNIST, a small DiT where there is a diffusion."""
  base.fashion_mnist(c)
  c.data.size, c.data.batch_size, c.data.flip = 16, 64, False
  c.data.train_split, c.data.eval_split = "train", "test"
  c.text.dim = 64
  c.model.net, c.model.patch = "dit", 4
  c.model.dim, c.model.depth, c.model.heads = 128, 4, 4
  c.model.dropout, c.model.remat = 0.0, False
  c.model.scan = False  # a loop over layers costs a CPU a quarter of its speed
  c.optim.learning_rate, c.optim.warmup_steps, c.optim.schedule = 1e-3, 100, "cosine"
  c.optim.ema, c.optim.ema_decay, c.optim.grad_clip = "warmup", 0.995, 1.0
  short(c, steps)


def short(c: ConfigDict, steps: int) -> None:
  """A training of minutes, and the scores of a thousand pictures."""
  c.train.steps, c.train.log_every, c.train.keep = steps, max(1, steps // 20), 1
  c.train.checkpoint_every = max(1, steps // 4)
  c.train.sample_every = c.train.eval_every = 0
  c.sample.num_images, c.sample.prompts = 16, ()
  c.eval.metrics, c.eval.num_images, c.eval.batch_size = ("fd", "kid"), 1000, 50


def tiny(c: ConfigDict) -> None:
  """8x8 pictures of OpenMoji, in `base.tiny`'s networks."""
  c.data.name, c.data.size, c.data.channels = "openmoji", 8, 3
  c.data.train_split, c.data.eval_split, c.data.flip = "train", "test", False
  if c.text.encoder == "label":
    c.text.encoder, c.text.classes = "bytes", 0
  base.tiny(c)
  c.train.sample_every = c.train.eval_every = 0
  c.eval.metrics = ("fd", "kid")
