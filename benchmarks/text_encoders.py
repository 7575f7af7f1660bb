"""Captions a second under MiniLM, against transformers on PyTorch.

    .venv-parity/bin/python benchmarks/text_encoders.py [captions] [rounds]

The same weights and captions, on one core and one thread, in turn: from text to the
states of all tokens and the pooled vector. Both read captions of one length together,
64 at a time; PyTorch pads to the longest of them, which is less than we do. Time is
that of the process on its core, so other work on the machine counts little; the first
round of each, with what it compiles, does not count. The ratio (ours / theirs) is what
counts: the goal is 1.0 or more.
"""

import os
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "parity"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import conftest  # noqa: F401, lets transformers load beside a PyTorch for the CPU
import emoji
import numpy as np
import torch
import transformers
from ml_collections import ConfigDict

from core import weights
from data.openmoji import LANGUAGES, text
from text import frozen
from text.published import BATCH

MOST = 24  # tokens


def captions(count: int) -> list[str]:
  """Names of emoji in 14 languages, as many as asked for, once each."""
  emoji.config.load_language(list(LANGUAGES))
  names = [own for own in emoji.EMOJI_DATA.values() if set(LANGUAGES) <= own.keys()]
  found = dict.fromkeys(text(own[code]) for own in names for code in LANGUAGES)
  draw = np.random.default_rng(0).permutation(len(found))[:count]
  every = list(found)
  return [every[i] for i in draw]


def peer() -> frozen.Encode:
  """transformers, with MiniLM's pooling."""
  folder = weights.packaged(*frozen.PACKAGED["minilm"]).parent
  tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
  net = transformers.BertModel.from_pretrained(folder).eval()

  @torch.inference_mode()
  def encode(texts: list[str]) -> list[tuple[np.ndarray, np.ndarray]]:
    ids = tokenizer(texts, truncation=True, max_length=MOST)["input_ids"]
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    found = {}
    for start in range(0, len(order), BATCH):
      which = order[start : start + BATCH]
      batch = tokenizer.pad({"input_ids": [ids[i] for i in which]}, return_tensors="pt")
      seq, mask = net(**batch).last_hidden_state, batch["attention_mask"]
      pooled = (seq * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
      pooled = torch.nn.functional.normalize(pooled).numpy()
      for row, i in enumerate(which):
        found[i] = seq[row, : len(ids[i])].numpy(), pooled[row]
    return [found[i] for i in range(len(ids))]

  return encode


def cosine(a: np.ndarray, b: np.ndarray) -> float:
  """Of the angle between two vectors."""
  return float(a @ b / np.sqrt(a @ a * (b @ b)))


def main(count: str = "1024", rounds: str = "7") -> None:
  """Prints captions a second of each, their ratio and how far the results are apart."""
  os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
  torch.set_num_threads(1)
  config = {
    "frozen": ("minilm",),
    "max_tokens": MOST,
    "frozen_dtype": "float32",
    "frozen_as_is": False,
  }
  (own,) = frozen.encoders(ConfigDict(config))
  both, texts = {"ours": own.load(), "theirs": peer()}, captions(int(count))
  vectors = {name: encode(texts) for name, encode in both.items()}
  speeds: dict[str, list[float]] = {name: [] for name in both}
  for _ in range(int(rounds)):
    for name, encode in both.items():
      began = time.process_time()
      encode(texts)
      speeds[name].append(len(texts) / (time.process_time() - began))
  ours, theirs = (statistics.median(speeds[name]) for name in both)
  pairs = zip(*([one[1] for one in vectors[name]] for name in both), strict=True)
  apart = min(cosine(np.float32(a), np.float32(b)) for a, b in pairs)
  print(f"{len(texts)} captions, {rounds} rounds in turn, median captions a second")
  print(f"ours {ours:.0f}  transformers {theirs:.0f}  ratio {ours / theirs:.2f}")
  ratios = sorted(a / b for a, b in zip(*speeds.values(), strict=True))
  print(f"ratios of the rounds {ratios[0]:.2f} to {ratios[-1]:.2f}")
  print(f"least cosine of pooled vectors {apart:.5f}")


if __name__ == "__main__":
  main(*sys.argv[1:])
