"""Captions under frozen encoders: prepared once, looked up, or encoded for a prompt."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax
from ml_collections import ConfigDict

from core.errors import UserError
from core.log import say
from core.workdir import read_json, write_atomic
from data.source import Dataset
from text import cache, frozen
from text.cache import Texts
from text.encoded import Encoded
from text.encoders import LookUp
from text.tokens import clean

Load = Callable[[str], Dataset]


def used(config: ConfigDict) -> bool:
  """Whether there are frozen encoders."""
  return config.text.encoder == "frozen"


def captions(config: ConfigDict, load: Load) -> Iterator[str]:
  """All that training, its samples and its scores read; `load` gives a split."""
  yield from config.sample.prompts
  yield config.sample.negative_prompt
  splits = (
    config.data.train_split,
    config.data.eval_split,
    config.eval.reference_split,
  )
  for split in dict.fromkeys(filter(None, splits)):
    data = load(split)
    for i in range(len(data)):
      own = data.captions(i)
      for language in config.data.languages:
        yield from own.get(language, ())


def prepare(config: ConfigDict, load: Load) -> None:
  """Encodes what `captions` gives and the cache lacks.

  Raises:
    UserError: an encoder is missing or damaged, or the cache can't be written.
  """
  if used(config):
    wanted = list(captions(config, load))
    for encoder in frozen.encoders(config.text):
      cache.prepare(encoder, wanted)
      say(f"{encoder.name}: the captions are in {cache.folder_of(encoder)}")


def check(config: ConfigDict, load: Load) -> None:
  """Raises UserError if the cache lacks what training reads."""
  if not used(config):
    return
  wanted = list(captions(config, load))
  for texts in known(config):
    if missing := texts.missing(wanted):
      raise lacking(texts, len(missing), missing[0])


def lacking(texts: Texts, count: int, caption: str) -> UserError:
  """The error for captions that are not in the cache."""
  more = f" and {count - 1} more captions" if count > 1 else ""
  return UserError(
    f"{cache.folder_of(texts.encoder)} lacks {caption[:60]!r}{more} under these"
    f" weights, tokenizer and text.max_tokens of {texts.encoder.name}: run the same"
    " command with --mode=prepare first."
  )


def known(config: ConfigDict) -> list[Texts]:
  """The cache of each encoder, as it is now."""
  return [Texts(encoder) for encoder in frozen.encoders(config.text)]


def cached(config: ConfigDict) -> LookUp | None:
  """caption -> its vectors from the cache; None without frozen encoders.

  Raises (when called):
    UserError: the caption is not there.
  """
  if not used(config):
    return None
  all_texts = known(config)

  def look_up(caption: str) -> tuple[Encoded, ...]:
    found = tuple(texts.find(caption) for texts in all_texts)
    for texts, own in zip(all_texts, found, strict=True):
      if own is None:
        raise lacking(texts, 1, caption)
    return found

  return look_up


# (key of an encoder, clean caption) -> vectors that are in no cache
_made: dict[tuple[str, str], Encoded] = {}


def encoded(config: ConfigDict, wanted: Sequence[str]) -> LookUp | None:
  """caption -> its vectors, for those wanted; encoded now where no cache has them.

  None without frozen encoders, and where nothing but the empty caption is wanted.

  Raises:
    UserError: an encoder is missing or damaged.
  """
  if not used(config) or not any(map(clean, wanted)):
    return None
  every = known(config)
  for texts in every:
    key = texts.encoder.key
    new = [text for text in texts.missing(wanted) if (key, text) not in _made]
    if new:
      vectors = texts.encoder.load()(new)
      _made.update({(key, text): one for text, one in zip(new, vectors, strict=True)})

  def look_up(caption: str) -> tuple[Encoded, ...]:
    text = clean(caption)
    return tuple(texts.find(text) or _made[texts.encoder.key, text] for texts in every)

  return look_up


def pin(config: ConfigDict, workdir: Path) -> None:
  """Notes in `text.json` which weights the encoders have, or checks that they still do.

  Raises:
    UserError: one has other weights, or another tokenizer.
  """
  if not used(config):
    return
  own = {encoder.name: encoder.key for encoder in frozen.encoders(config.text)}
  file = workdir / "text.json"
  if file.exists():
    theirs = read_json(file)
    for name, key in own.items():
      if theirs.get(name) != key:
        raise UserError(
          f"the encoder {name} in text.frozen has other weights or another tokenizer"
          f" than when {workdir} began; put them back, or give another --workdir."
        )
  elif jax.process_index() == 0:
    write_atomic(file, json.dumps(own, indent=2) + "\n")
