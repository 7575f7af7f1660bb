"""Captions under frozen encoders: prepared once, looked up, or encoded for a prompt."""

import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import jax
from ml_collections import ConfigDict

from core.errors import UserError
from core.log import say
from core.workdir import read_json, write_atomic
from data.source import Dataset
from text import cache, frozen
from text.bytes import spelled
from text.cache import Texts
from text.encoded import Encoded, Measured
from text.encoders import LookUp
from text.tokens import clean

Load = Callable[[str], Dataset]
LOOKED_AT = 10_000  # captions, for a report
PINNED = "text.json"


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
    yield from spoken(config, data, range(len(data)))


def prepare(config: ConfigDict, load: Load) -> None:
  """Encodes what `captions` gives and the cache lacks.

  Raises:
    UserError: an encoder is missing or damaged, or the cache can't be written.
  """
  if used(config):
    some_spoken(config, load(config.data.train_split))
    wanted = list(captions(config, load))
    report(config, wanted)
    for encoder in frozen.encoders(config.text):
      cache.prepare(encoder, wanted)
      say(f"{encoder.name}: the captions are in {cache.folder_of(encoder)}")


def report(config: ConfigDict, given: Iterable[str]) -> None:
  """Says how many captions are cut, or hold what the encoder has no token for.

  Of many it looks at every so many, LOOKED_AT at most.
  """
  every = [text for text in dict.fromkeys(map(clean, given)) if text]
  every = every[:: -(-len(every) // LOOKED_AT) or 1]
  if not every:
    return
  if config.text.encoder == "bytes":
    found = [Measured(len(spelled(text)), False) for text in every]
    tell("bytes", config.text.max_tokens, every, found)
  if used(config):
    for one in dict.fromkeys(frozen.encoders(config.text)):
      if found := one.measured(every):
        tell(one.name, one.length, every, found)


def tell(
  name: str, length: int, texts: Sequence[str], found: Sequence[Measured]
) -> None:
  """Says what is wrong with texts for an encoder that reads `length` tokens of each."""
  told = f"of {len(texts):,} texts looked at"
  if long := [one.tokens for one in found if one.tokens > length]:
    say(
      f"{name}: {len(long):,} {told} have more than {length} tokens, the longest"
      f" {max(long):,}, and the rest is not read (text.max_tokens, or the encoder's own"
      " limit)"
    )
  strange = [text for text, one in zip(texts, found, strict=True) if one.unknown]
  if strange:
    say(
      f"{name}: {len(strange):,} {told} hold what its tokenizer does not know, such as"
      f" {strange[0][:60]!r}"
    )


def spoken(config: ConfigDict, data: Dataset, rows: Iterable[int]) -> Iterator[str]:
  """The captions of some examples in the languages of a config."""
  for i in rows:
    own = data.captions(i)
    for language in config.data.languages:
      yield from own.get(language, ())


def some_spoken(config: ConfigDict, data: Dataset) -> list[str]:
  """The captions of at most LOOKED_AT examples; says how many have none."""
  some = range(0, len(data), -(-len(data) // LOOKED_AT))
  own = [tuple(spoken(config, data, (i,))) for i in some]
  if bare := own.count(()):
    say(
      f"{bare:,} of {len(own):,} pictures looked at have no caption in data.languages:"
      " they are learned without text"
    )
  return list(itertools.chain(*own))


def check(config: ConfigDict, load: Load, workdir: Path) -> None:
  """Says how many pictures have no caption, and what a trained encoder cuts.

  Raises:
    UserError: the cache of frozen ones lacks what training reads, or they are others
      than those of the run in `workdir`.
  """
  if config.text.encoder not in ("bytes", "frozen"):
    return
  own = some_spoken(config, load(config.data.train_split))
  if not used(config):
    report(config, own)
    return
  check_pinned(config, workdir)
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
  check_pinned(config, workdir)
  file = workdir / PINNED
  if not file.exists() and jax.process_index() == 0:
    own = {encoder.name: encoder.key for encoder in frozen.encoders(config.text)}
    write_atomic(file, json.dumps(own, indent=2) + "\n")


def check_pinned(config: ConfigDict, workdir: Path) -> None:
  """Raises UserError if `text.json` has other weights, or another tokenizer."""
  file = workdir / PINNED
  theirs = read_json(file) if file.exists() else {}
  for encoder in frozen.encoders(config.text):
    if theirs and theirs.get(encoder.name) != encoder.key:
      raise UserError(
        f"the encoder {encoder.name} in text.frozen has other weights or another"
        f" tokenizer than when {workdir} began; put them back, or give another"
        " --workdir."
      )
