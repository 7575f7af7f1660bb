"""CLIP's tokenizer from vocab.json and merges.txt, as older folders have it."""

from pathlib import Path

import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, processors

START, END = "<|startoftext|>", "<|endoftext|>"
# Contractions, words, single digits, and runs of anything else but spaces.
WORD = r"'(?:s|t|re|ve|m|ll|d)|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"


def clip(vocabulary: Path, merges: Path) -> tokenizers.Tokenizer:
  """Byte pairs of lower-case words, between the marks of start and end.

  Radford et al. 2021 (arXiv:2103.00020), section 2.4, as transformers reads it.

  Raises:
    Exception: the files are damaged.
  """
  model = models.BPE.from_file(
    str(vocabulary), str(merges), unk_token=END, end_of_word_suffix="</w>"
  )
  found = tokenizers.Tokenizer(model)
  space = normalizers.Replace(tokenizers.Regex(r"\s+"), " ")
  parts = [normalizers.NFC(), space, normalizers.Lowercase()]
  found.normalizer = normalizers.Sequence(parts)
  word = pre_tokenizers.Split(tokenizers.Regex(WORD), behavior="removed", invert=True)
  units = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
  found.pre_tokenizer = pre_tokenizers.Sequence([word, units])
  found.add_special_tokens([START, END])
  start, end = ((mark, found.token_to_id(mark)) for mark in (START, END))
  found.post_processor = processors.RobertaProcessing(
    end, start, trim_offsets=False, add_prefix_space=False
  )
  return found
