"""Fields of `config.autoregressive` that one method has and another would ignore."""

from ml_collections import ConfigDict

from core import checks

# As in configs/base.py.
DEFAULTS = {
  "text_weight": 0.125,
  "schedule": "cosine",
  "label_smoothing": 0.1,
  "order": "masked",
  "prediction": "eps",
  "head_dim": 1024,
  "head_depth": 3,
  "draws": 4,
  "components": 10,
}


def refuse_others(config: ConfigDict, *used: str) -> None:
  """Raises UserError if a field that is not `used` differs from its default."""
  others = {field: value for field, value in DEFAULTS.items() if field not in used}
  checks.refuse(config, "autoregressive", **others)
